"""Mutual distillation of two students, and hints inside the student, against plain formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe, parse_terms
from distill.students.task import SECOND
from distill.targets.target_sources import CLS
from distill.train.distill_run import second_name
from distill.train.ray_train import distill
from featurestore import annotate, open_lake
from ingest.teachers.ray_extract import extract
from tests.conftest import TEACHERS
from tests.worlds.tile_worlds import GRADES, TileWorld, train

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "architecture": "test_efficientnet",
    "input_px": 32,
    "head_width": 16,
    "targets": "z-score",
    "dihedral": False,
    "stain": 0.0,
}


def recipe(*terms: str, teachers: tuple[str, ...] = ("a", "b"), **changes: Any) -> Recipe:  # noqa: ANN401
    made = parse_terms(terms)
    return make_recipe("agglomerate", teachers, **{**TINY, **changes}, extra_terms=made)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def matched(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    smooth = F.smooth_l1_loss(p, t, reduction="none").mean(dim=1)
    return 0.9 * (1 - F.cosine_similarity(p, t, dim=1)) + 0.1 * smooth


# ---------------------------------------------------------------------- mutual


def test_both_students_match_the_other_and_the_teachers() -> None:
    world = TileWorld.make()
    task: Any = world.task(recipe("mutual=2", peer="test_vit")).train()
    outputs: dict[str, Any] = {}
    term = task.terms[1]
    task.heads.register_forward_hook(lambda _m, _i, out: outputs.update(own=out))
    term.peer_heads.register_forward_hook(lambda _m, _i, out: outputs.update(peer=out))
    batch = world.batch(8)
    losses = task(batch, generator())
    own, peer = ({n: outputs[k][n, CLS].detach() for n in "ab"} for k in ("own", "peer"))
    both = [2 * matched(own[n], peer[n]) for n in "ab"]  # each direction the same number
    torch.testing.assert_close(losses["mutual"].detach(), 2 * torch.stack(both).mean(dim=0))
    norms = world.norms("z-score")
    alone = [matched(peer[n], norms[n, 2.0](batch.features[n])) for n in "ab"]
    torch.testing.assert_close(losses["peer"].detach(), 2 * torch.stack(alone).mean(dim=0))
    networks = {"own": task.network, "peer": term.network}
    mutual = losses["mutual"].sum()
    for network in networks.values():
        gradients = torch.autograd.grad(
            mutual, list(network.parameters()), retain_graph=True, allow_unused=True
        )
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    assert type(term.network.trunk).__name__ != type(task.network.trunk).__name__


def test_classes_are_learnt_from_labels_and_from_each_other() -> None:
    """Deep mutual learning: two cross-entropies and KL both ways."""
    world = TileWorld.make()
    task: Any = world.task(recipe("mutual/clinical.grade")).train()
    logits: list[torch.Tensor] = []
    for classifier in task.terms[1].classifiers:
        classifier.register_forward_hook(lambda _m, _i, out: logits.append(out.detach()))
    batch = world.batch(16)
    loss = task(batch, generator())["mutual classes"].detach()
    labels = torch.from_numpy(GRADES.of(batch.tile_id.numpy()))
    expected = torch.zeros(16)
    for s, t in (logits, logits[::-1]):
        ce = F.cross_entropy(s, labels.clamp_min(0), reduction="none") * (labels >= 0)
        kl = (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)
        expected += ce + kl
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_both_learn_and_are_measured() -> None:
    world = TileWorld.make()
    task = world.task(recipe("mutual", dihedral=True))
    losses = train(task, world, steps=14)
    assert sum(losses[-5:]) < sum(losses[:5])
    task.eval()
    predictions = task.predict(world.batch(128, seed=7))
    assert set(predictions) == {"a", "b", f"a{SECOND}", f"b{SECOND}"}
    for name, part in predictions.items():
        raw, guess = part.features.float(), part.norm.inverse(part.predicted)
        ours = F.cosine_similarity(guess, raw).mean()
        assert ours > F.cosine_similarity(part.norm.mean.expand_as(raw), raw).mean(), name
    second = task.second_student
    assert second is not None
    assert second.kept_parts["model"] is not task.student
    assert world.task(recipe()).second_student is None
    with pytest.raises(DistillError, match="several terms 'mutual' given"):
        world.task(recipe("mutual", "mutual"))


# ---------------------------------------------------------------------- hints


@pytest.mark.parametrize("name", ["b", "a:patches", "a:patches5"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_level_learns_the_hint_by_half_the_squared_distance(name: str, level: float) -> None:
    world = TileWorld.make(scale=1.0)
    teachers = ("a", name)
    terms = (Term(kind="match"), Term(kind="hint", teachers=(name,), settings={"level": level}))
    task: Any = world.task(recipe(teachers=teachers, terms=terms)).train()
    term, outputs = task.terms[1], []
    task.network.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    batch = world.batch(8)
    losses = task(batch, generator())
    assert set(losses) == {"match a", f"hint {name}"}  # the hint's column is for the hint alone
    map_BCHW = outputs[0].maps[term.level].detach()
    assert term.level == round(level * (len(outputs[0].maps) - 1))
    side = outputs[0].tokens.shape[1]
    weight, offset = (p.detach() for p in term.regressors[0].parameters())
    norm = world.norms("z-score")[name, 2.0]
    target = norm(batch.features[name].view(8, -1, 12))
    if name == "b":
        predicted = (map_BCHW.mean(dim=(2, 3)) @ weight.T + offset)[:, None]
    else:
        pooled = F.adaptive_avg_pool2d(map_BCHW, side).flatten(2).mT
        predicted = pooled @ weight.T + offset
        cells = torch.arange(4) * side // 4
        if name == "a:patches":
            grid = target.view(8, 4, 4, 12)
            target = F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2), side).flatten(2).mT
        else:
            places = batch.features["a:places5"]
            at = cells[places // 4] * side + cells[places % 4]
            predicted = predicted.gather(1, at[..., None].expand(-1, -1, 12))
    expected = ((predicted - target) ** 2).mean(dim=(1, 2)) / 2
    torch.testing.assert_close(losses[f"hint {name}"].detach(), expected, rtol=1e-4, atol=1e-5)


def test_hints_that_do_not_fit_are_refused() -> None:
    world = TileWorld.make()
    with pytest.raises(DistillError, match="term 'hint' of no teacher: name its column of a, b"):
        world.task(recipe("hint"))
    terms = (Term(kind="match"), Term(kind="hint", teachers=("b",), settings={"level": 2.0}))
    with pytest.raises(DistillError, match="'level' is a share from 0 to 1, 2 given"):
        world.task(recipe(terms=terms))


# ---------------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_a_run_keeps_both_students_with_their_labels_and_sizes(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    slides = lake.slides().select("slide_id").collect().with_row_index("grade")
    annotate(lake, slides.with_columns(grade=slides["grade"].cast(int) % 2), "clinical")
    made = make_recipe(
        "agglomerate",
        TEACHERS,
        architecture="test_efficientnet",
        input_px=64,
        sizes=(32,),
        peer="test_vit",
        arguments={},
        epochs=1,
        batch_tiles=16,
        head_width=16,
        mpps=(2.0,),
        extra_terms=parse_terms(["mutual/clinical.grade", "label/clinical.grade=0.1"]),
    )
    report = distill(str(lake_copy), made, name="pair")
    assert report["classes"]["clinical.grade"]["classes"] == ["0", "1"]
    assert set(report["fidelity_per_size"]) == {"32", "64"}
    assert set(report["fidelity"]) == set(TEACHERS)
    second = json.loads((lake_copy / "students/pair-peer/report.json").read_text())
    assert second["recipe"]["student"]["architecture"] == "test_vit"
    assert second["beside"] == "pair"
    assert second["train_patients"] == report["train_patients"]
    assert set(second["fidelity"]) == set(TEACHERS)
    name, path = second_name("pair"), lake_copy / "students/pair/report.json"
    other = make_recipe("agglomerate", TEACHERS, mpps=(2.0,), extra_terms=parse_terms(["mutual"]))
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DistillError, match="'pair-peer' is there already, from another run"):
        distill(str(lake_copy), other, name="pair")
    path.write_bytes(content)
    assert not extract(str(lake_copy), ["pair", name], mpps=[2.0]).failed
    card = json.loads((lake_copy / f"students/{name}/card.json").read_text())
    plain = timm.create_model(card["architecture"], num_classes=0, **card["arguments"])
    weights = load_file(lake_copy / f"students/{name}/model.safetensors")
    assert set(weights) == set(plain.state_dict())
    slide = lake.slides().collect()["slide_id"][0]
    bag = open_lake(lake_copy).bag(slide, ["pair", name], mpp=2.0).by_teacher
    assert {k: x.shape[1] for k, x in bag.items()} == {"pair": report_dim(lake_copy), name: 64}
    assert np.isfinite(bag[name]).all()


def report_dim(lake_copy: Path) -> int:
    dim: int = json.loads((lake_copy / "students/pair/card.json").read_text())["dim"]
    return dim
