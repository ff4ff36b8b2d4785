"""Labels of an annotation as a term: read from a lake, against plain formulas, refused, hashed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_table import make_recipe, parse_terms
from distill.targets.target_sources import ViewGeometry
from distill.targets.tile_classes import read_classes
from distill.train.distill_run import plan_run
from featurestore import Lake, annotate, open_lake
from tests.conftest import TEACHERS
from tests.worlds.tile_worlds import GRADES, TileWorld

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {"architecture": "test_efficientnet", "input_px": 32, "head_width": 16}


def recipe(*terms: str, teachers: tuple[str, ...] = ("a", "b"), **changes: Any) -> Recipe:  # noqa: ANN401
    settings = {**TINY, "targets": "z-score", "dihedral": False, "stain": 0.0, **changes}
    return make_recipe("agglomerate", teachers, **settings, extra_terms=parse_terms(terms))


def run_term(text: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a term's loss, the logits of its classifier, those of the teacher, and labels."""
    world = TileWorld.make(scale=1.0)
    task: Any = world.task(recipe(text)).train()
    batch, term = world.batch(16), task.terms[1]
    logits: list[Tensor] = []
    classifier: Any = term.classifier if hasattr(term, "classifier") else term.classifiers[0]
    classifier.register_forward_hook(lambda _m, _i, out: logits.append(out))
    losses = task(batch, torch.Generator().manual_seed(0))
    (name,) = [name for name in losses if not name.startswith("match")]
    labels = torch.from_numpy(GRADES.of(batch.tile_id.numpy()))
    return losses[name].detach(), logits[0].detach(), batch.features["b"].float(), labels


def test_labels_alone_are_a_cross_entropy_of_tiles_that_have_one() -> None:
    loss, logits, _, labels = run_term("label/clinical.grade=2")
    has_label = labels >= 0
    assert 0 < int(has_label.sum()) < 16
    expected = 2 * F.cross_entropy(logits[has_label], labels[has_label], reduction="none")
    torch.testing.assert_close(loss[has_label], expected)
    assert float(loss[~has_label].abs().sum()) == 0


def test_hinton_mixes_labels_and_logits() -> None:
    loss, logits, teacher, labels = run_term("kl:b/clinical.grade")
    soft = F.softmax(teacher / 4, dim=1)
    kl = (soft * (soft.log() - F.log_softmax(logits / 4, dim=1))).sum(dim=1) * 16
    ce = F.cross_entropy(logits, labels.clamp_min(0), reduction="none") * (labels >= 0)
    torch.testing.assert_close(loss, 0.5 * ce + 0.5 * kl, rtol=1e-4, atol=1e-5)


def test_the_true_class_is_the_label_where_there_is_one() -> None:
    with_labels, logits, teacher, labels = run_term("decoupled:b/clinical.grade")
    plain = run_term("decoupled:b")[0]
    is_other = (labels >= 0) & (labels != teacher.argmax(dim=1))
    ce = F.cross_entropy(logits, labels.clamp_min(0), reduction="none") * (labels >= 0)
    decoupled = (with_labels - 0.5 * ce) / 0.5
    torch.testing.assert_close(decoupled[~is_other], plain[~is_other], rtol=1e-4, atol=1e-4)
    assert bool((decoupled[is_other] != plain[is_other]).all())


def test_hviskd_is_a_sum_of_terms() -> None:
    """Both relation levels with labels, against numpy on the student's own outputs."""
    texts = ("relation=3", "token-relation=2", "kl:b/clinical.grade")
    teachers = ("a", "a:patches", "b")
    world = TileWorld.make(scale=1.0)
    task = world.task(recipe(*texts, teachers=teachers)).train()
    outputs: list[Any] = []
    task.network.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    batch = world.batch(8)
    losses = task(batch, torch.Generator().manual_seed(0))
    embedding = outputs[0].embedding.detach().double().numpy()
    seen = ViewGeometry(turns=torch.zeros(8, dtype=torch.int64))
    goal = task.source("a", "cls").goal(batch, seen).target

    def relations(x: np.ndarray) -> np.ndarray:
        products = x @ x.T
        return np.asarray(products / np.linalg.norm(products, axis=1, keepdims=True))

    gap = relations(embedding) - relations(goal.double().numpy())
    np.testing.assert_allclose(
        losses["relation"].detach(), 3 * (gap**2).sum(axis=1) / 8, rtol=1e-3, atol=1e-6
    )
    assert {"relation", "token-relation", "kl b"} < set(losses)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label", "term 'label' with labels 'none'; it needs labels, as KIND/ANNOTATION.COLUMN"),
        ("contrast/clinical.grade", "labels 'clinical.grade'; it takes no labels"),
    ],
)
def test_terms_with_wrong_labels_are_refused(text: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        TileWorld.make().task(recipe(text))


def test_classes_that_are_no_logits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(GRADES, names=("x", "y"), numbers=GRADES.numbers % 2)
    monkeypatch.setattr("tests.worlds.tile_worlds.GRADES", few)
    with pytest.raises(DistillError, match=r"'b' has 12 logits.*2 classes \(x, y\)"):
        TileWorld.make().task(recipe("kl:b/clinical.grade"))


# ---------------------------------------------------------------------- from a lake


def test_classes_of_slides_patients_and_tiles(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    slides = lake.slides().select("slide", "slide_id", "patient_id").collect()
    patients_table = slides.select("patient_id").drop_nulls().unique().sort("patient_id")
    grades = patients_table.with_row_index("grade")
    annotate(lake, grades.with_columns(pl.col("grade").cast(pl.Int64)), "clinical")
    tiles = lake.tiles(mpp=0.5).select("tile_id", "x").collect()
    regions = tiles.select("tile_id", region=pl.when(pl.col("x") > 512).then(pl.lit("tumour")))
    regions = regions.with_columns(pl.col("region").fill_null("benign"))[:-3]
    annotate(lake.refreshed(), regions, "regions")
    lake = lake.refreshed()
    by_patient, by_tile = read_classes(lake, "grade"), read_classes(lake, "regions.region")
    assert by_patient.column == "clinical.grade"
    assert by_tile.names == ("benign", "tumour")
    keys = tiles["tile_id"].to_numpy()
    expected = dict(regions.iter_rows())
    names = [by_tile.names[n] if n >= 0 else None for n in by_tile.of(keys)]
    assert names == [expected.get(key) for key in keys.tolist()]
    patients = dict(slides.select("slide", "patient_id").iter_rows())
    grade_of = dict(grades.select("patient_id", "grade").iter_rows())
    slide_of_tile = lake.tiles(mpp=0.5).select("tile_id", "slide").collect()
    # One slide has no patient.
    expected_grades = [grade_of.get(patients[slide], -1) for slide in slide_of_tile["slide"]]
    assert {-1, 0, 1} < set(expected_grades)
    assert by_patient.of(slide_of_tile["tile_id"].to_numpy()).tolist() == expected_grades
    with pytest.raises(DistillError, match=r"classes stage: give a column.*clinical\.grade"):
        read_classes(lake, "stage")
    dates = patients_table.with_row_index("seen").with_columns(pl.col("seen").cast(pl.Int64))
    annotate(lake, dates.with_columns(pl.col("seen") + 20240101), "visits")
    with pytest.raises(DistillError, match=r"visits\.seen has whole numbers up to 2024010\d"):
        read_classes(lake.refreshed(), "seen")


def test_labels_are_part_of_the_run(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)

    def planned(lake: Lake) -> Any:  # noqa: ANN401
        made = recipe("label/clinical.grade", teachers=TEACHERS, batch_tiles=16)
        return plan_run(lake, made, student="s")

    names = lake.slides().collect()["slide_id"].to_list()
    for shift in (0, 1):
        grades = pl.DataFrame(
            {"slide_id": names, "grade": [(n + shift) % 2 for n in range(len(names))]}
        )
        annotate(lake, grades, "clinical", replace_old=shift > 0)
        lake = lake.refreshed()
        run = planned(lake)
        if not shift:
            first = run
    assert run.run != first.run
    assert run.to_json()["classes"]["clinical.grade"]["classes"] == ["0", "1"]
