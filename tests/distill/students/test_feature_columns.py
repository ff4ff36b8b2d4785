"""Students of features: kept, run by `extract`, teachers of others in turn."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import check, columns_of
from distill.recipes.recipe_table import make_recipe
from distill.students.feature_students import extract
from distill.students.saved_student import write_student
from distill.students.student_table import make_task
from distill.students.task import TrainingTask, on_device
from distill.targets.missing_stats import fit_missing
from distill.targets.norms import fit_norms, read_norms
from featurestore import Lake, open_lake, verify
from featurestore.storage.sealed_json import sealed
from ingest import TeacherError, licence_of, list_teachers
from tests.featurestore.read.test_stream_under import made

TEACHERS = ("plain", "packed")
SMALL: dict[str, dict[str, Any]] = {
    "shazam": {"width": 16, "blocks": 1, "mpps": (0.5, 2.0)},
    "pathme": {"width": 16, "depth": 1, "prototypes": 8, "heads": 2, "attention_layers": 1},
}


def kept(lake: Lake, recipe: Recipe, name: str) -> TrainingTask:
    """A student with random weights, put into the lake as a run does it."""
    ids = lake.slides().collect()["slide_id"].to_list()
    needs = recipe.needs(lake.config.mpps)
    fit_missing(lake, needs, ids)
    torch.manual_seed(recipe.seed)
    norms = read_norms(fit_norms(lake, recipe.targets, needs, ids))
    task = make_task(lake, recipe, norms).eval()
    identities = {f"{t}@{m}": lake.identity(t, mpp=m) for t, m in needs}
    report = {"student": name}
    write_student(lake, task, report, name=name, recipe=recipe, identities=identities)
    return task


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_students_column_holds_its_embedding_of_each_tile(tmp_path: Path, name: str) -> None:
    lake = made(tmp_path / "lake")
    recipe = make_recipe(name, TEACHERS, **SMALL[name])
    student: Any = kept(lake, recipe, "fused").student
    first = extract(lake.uri, ["fused"])
    assert not first.failed
    read, under = recipe.levels_of(lake.config.mpps)
    tiles = {mpp: lake.info()["tiles"][str(mpp)] for mpp in read}
    assert first.teachers["fused"]["tiles"] == sum(tiles.values())
    lake = lake.refreshed()
    assert verify(lake).ok
    region = name == "pathme"
    for mpp in read:
        for slide in lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0)["slide_id"]:
            bag = lake.bag(slide, "fused", mpp=mpp)
            (batch,) = lake.stream(
                TEACHERS[:1] if region else TEACHERS,
                mpp=mpp,
                slide_ids=[slide],
                shuffle=False,
                batch_tiles=1000,
                under=dict.fromkeys(under, TEACHERS[:1]),
            )
            np.testing.assert_array_equal(batch.tile_id, bag.tile_id)
            tensors = on_device(batch, "cpu")
            vectors = student.embed(tensors) if region else student.embed(tensors.features, mpp=mpp)
            np.testing.assert_allclose(bag.features, vectors, atol=5e-3)
    again = extract(lake.uri, ["fused"])
    assert again.teachers["fused"]["tiles"] == 0


def test_a_fused_column_teaches_a_student_of_pixels(tmp_path: Path) -> None:
    """The second stage of Shazam is `agglomerate` from the fused vector."""
    lake = made(tmp_path / "lake")
    kept(lake, make_recipe("shazam", TEACHERS, **SMALL["shazam"]), "fused")
    extract(lake.uri, ["fused"])
    lake = lake.refreshed()
    recipe = make_recipe("agglomerate", ("fused",), mpps=(0.5, 2.0))
    check(lake, recipe)
    (column,) = columns_of(lake, recipe)
    assert (column.teacher, column.dim, column.tokens) == ("fused", 16, None)
    assert licence_of(lake.store, "fused").text == "plain: not stated; packed: not stated"
    rows = {row["teacher"]: row for row in list_teachers(lake.store)}
    assert (rows["fused"]["dim"], rows["fused"]["available"]) == (16, True)
    assert rows["fused"]["source"] == f"features of {', '.join(TEACHERS)}"


def test_columns_that_a_student_of_features_can_not_make_are_refused(tmp_path: Path) -> None:
    lake = made(tmp_path / "lake")
    kept(lake, make_recipe("shazam", TEACHERS, **SMALL["shazam"]), "fused")
    with pytest.raises(DistillError, match=r"was trained at mpps \[0.5, 2.0\], not at \[1.0\]"):
        extract(lake.uri, ["fused"], mpps=[1.0])
    with pytest.raises(TeacherError, match="no teacher 'fussed'"):
        extract(lake.uri, ["fussed"])
    card = lake.read_json("students/fused/features.json")
    card["identities"]["plain@0.5"] = {"card": "another"}
    lake.write_json("students/fused/features.json", card)
    report = lake.read_json("students/fused/report.json")
    files = {"features.json": lake.read_bytes("students/fused/features.json")}
    lake.write_json("students/fused/report.json", sealed(report, files))
    with pytest.raises(DistillError, match=r"saw another 'plain' at mpp 0.5 than the lake has now"):
        extract(lake.uri, ["fused"])


def test_recipes_of_several_mpps_name_what_they_need(tmp_path: Path) -> None:
    lake = open_lake(made(tmp_path / "lake").uri)
    with pytest.raises(DistillError, match=r"is of 2 mpps that nest.*\[2.0, 1.0, 0.5\] given"):
        check(lake, make_recipe("xmag", TEACHERS))
    with pytest.raises(DistillError, match=r"needs mpps \[4.0\]; the lake has"):
        check(lake, make_recipe("xmag", TEACHERS, mpps=(4.0, 0.5)))
    recipe = make_recipe("xmag", TEACHERS, mpps=(0.5, 2.0))
    assert recipe.levels_of(lake.config.mpps) == ((2.0,), (0.5,))
    assert recipe.needs(lake.config.mpps) == [("plain", 0.5), ("packed", 0.5)]
    regions = make_recipe("pathme", TEACHERS)
    expected = [("plain", 2.0), ("plain", 1.0), ("plain", 0.5), ("packed", 0.5)]
    assert regions.needs(lake.config.mpps) == expected
