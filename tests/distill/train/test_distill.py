"""Distillation: data order, the loop, fidelity, and a real run on Ray Train."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.evaluate.measures.fidelity import Fidelity, combined_fidelity
from distill.losses.feature_losses import cosine_loss, match_loss, smooth_l1_loss
from distill.recipes.recipe import Recipe, Schedule
from distill.recipes.recipe_table import make_recipe
from distill.students.student_table import make_task
from distill.students.task import Batch
from distill.students.tile_task import TileTask
from distill.targets.missing_stats import fit_missing, split_slides
from distill.targets.norms import fit_norms, read_norms
from distill.targets.target import TargetNorm
from distill.train.batches import Feed, mixed
from distill.train.loop import Loop, NotFiniteError, State, TrainingStep, learning_rate, measure
from distill.train.ray_train import distill
from featurestore import Lake, Moments, open_lake
from ingest import find_teachers, load_encoder
from ingest.teachers.ray_extract import extract
from tests.conftest import TEACHERS
from tests.worlds.feature_worlds import make_norm

TINY: dict[str, Any] = {
    "architecture": "test_efficientnet",
    "input_px": 64,
    "epochs": 2,
    "batch_tiles": 16,
    "head_width": 32,
}
SMALL = make_recipe("agglomerate", TEACHERS, **TINY)


def test_losses_equal_numpy_by_hand() -> None:
    rng = np.random.default_rng(0)
    p, t = (rng.normal(size=(5, 9)) * 2 for _ in range(2))
    cosine = 1 - (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
    gap = np.abs(p - t)
    smooth = np.where(gap < 1, gap**2 / 2, gap - 0.5).mean(1)
    prediction, target = torch.from_numpy(p), torch.from_numpy(t)
    np.testing.assert_allclose(cosine_loss(prediction, target), cosine, rtol=1e-5)
    np.testing.assert_allclose(smooth_l1_loss(prediction, target), smooth, rtol=1e-5)
    both = match_loss(prediction, target, cosine_weight=0.9)
    np.testing.assert_allclose(both, 0.9 * cosine + 0.1 * smooth, rtol=1e-5)


def norm_of(features: np.ndarray) -> TargetNorm:
    covariance = np.cov(features.T, ddof=0)
    moments = Moments(n=len(features), mean=features.mean(0), covariance=covariance)
    return make_norm("z-score", moments=moments)


def test_standardised_targets_have_unit_channels_and_come_back() -> None:
    x = np.random.default_rng(0).normal(3, [0.1, 1, 50], (2000, 3))
    norm = norm_of(x)
    target = norm(torch.from_numpy(x))
    torch.testing.assert_close(target.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        norm.inverse(target).double(), torch.from_numpy(x), atol=1e-3, rtol=1e-4
    )
    with pytest.raises(DistillError, match="4 channels, statistics 3"):
        norm(torch.zeros(1, 4))


def test_a_teacher_of_another_scale_weighs_the_same() -> None:
    """Failure 1 of the field: one teacher's scale dominates. Scaling one by 100 changes nothing."""
    x = np.random.default_rng(0).normal(size=(64, 8))
    prediction = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    losses = [
        match_loss(prediction, norm_of(x * s)(torch.from_numpy(x * s)), cosine_weight=0.9)
        for s in (1.0, 100.0)
    ]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-4)


def test_targets_carry_no_gradient() -> None:
    norm = norm_of(np.random.default_rng(0).normal(size=(9, 3)))
    assert not norm(torch.ones(2, 3, requires_grad=True)).requires_grad


def test_fidelity_of_truth_and_of_nothing() -> None:
    x = np.random.default_rng(0).normal(2, 1, (50, 6))
    norm, raw = norm_of(x), torch.from_numpy(x)
    perfect, ignorant = Fidelity(), Fidelity()
    perfect.add(norm(raw), raw, norm)
    ignorant.add(torch.zeros(50, 6), raw, norm)
    assert perfect.cosine == pytest.approx(1, abs=1e-5)
    assert ignorant.cosine == pytest.approx(ignorant.baseline)
    assert ignorant.centred == 0
    both = combined_fidelity({0.5: perfect, 2.0: ignorant})
    assert both["tiles"] == 100
    assert both["cosine"] == pytest.approx((perfect.cosine + ignorant.cosine) / 2, abs=1e-4)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule()
    rates = [learning_rate(schedule, step, 100) for step in range(100)]
    assert rates[9] == pytest.approx(schedule.learning_rate)
    assert rates[0] < rates[5] < rates[9]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01 * schedule.learning_rate


def test_unknown_recipes_and_bad_fields_are_refused() -> None:
    with pytest.raises(DistillError, match="did you mean 'agglomerate'"):
        make_recipe("aglomerate", TEACHERS)
    with pytest.raises(DistillError, match="at least one teacher"):
        make_recipe("agglomerate", ())
    with pytest.raises(DistillError, match="epochs=0"):
        make_recipe("agglomerate", TEACHERS, epochs=0)
    with pytest.raises(DistillError, match=r"trains a TileStudent; it has no \['blocks'\]"):
        make_recipe("agglomerate", TEACHERS, blocks=3)
    with pytest.raises(DistillError, match="'h0' is of a single teacher"):
        make_recipe("h0", TEACHERS)


# ---------------------------------------------------------------------- with a lake


def slide_ids(lake: Lake) -> list[str]:
    return lake.slides().collect()["slide_id"].to_list()


def feed(lake: Lake, recipe: Recipe = SMALL) -> Feed:
    return Feed(lake=lake, recipe=recipe, slide_ids=slide_ids(lake))


def steps_of(
    lake: Lake, epoch: int, *, first: int = 0, **place: int
) -> list[tuple[float, list[int]]]:
    """(mpp, keys) of every batch."""
    batches = mixed(feed(lake).training(**place), epoch=epoch, seed=SMALL.seed, first=first)
    return [(batch.mpp, batch.tile_id.tolist()) for batch in batches]


def test_an_epoch_mixes_the_mpps_and_repeats_no_tile(lake: Lake) -> None:
    steps = steps_of(lake, 0)
    tiles = lake.info()["tiles"]
    counts = {mpp: sum(m == mpp for m, _ in steps) for mpp in (0.5, 2.0)}
    assert counts == {mpp: tiles[str(mpp)] // SMALL.schedule.batch_tiles for mpp in counts}
    assert {len(keys) for _, keys in steps} == {SMALL.schedule.batch_tiles}
    keys = [key for _, part in steps for key in part]
    assert len(keys) == len(set(keys))
    assert [m for m, _ in steps] != sorted(m for m, _ in steps)
    assert steps == steps_of(lake, 0) != steps_of(lake, 1)
    assert steps_of(lake, 0, first=5) == steps[5:]


def test_ranks_share_every_step(lake: Lake) -> None:
    ranks = [steps_of(lake, 3, rank=rank, world=2) for rank in range(2)]
    assert [mpp for mpp, _ in ranks[0]] == [mpp for mpp, _ in ranks[1]]
    keys = [key for steps in ranks for _, part in steps for key in part]
    assert len(keys) == len(set(keys))
    assert {len(part) for steps in ranks for _, part in steps} == {SMALL.schedule.batch_tiles // 2}


def test_too_few_tiles_make_one_small_step(lake: Lake) -> None:
    recipe = make_recipe("agglomerate", TEACHERS, batch_tiles=1000)
    streams = feed(lake, recipe).training()
    sizes = [[len(batch.tile_id) for batch in stream] for stream in streams]
    assert sizes == [[tiles] for tiles in lake.info()["tiles"].values()]


def test_pixels_and_features_are_of_the_same_tile(lake: Lake) -> None:
    (stream, _) = feed(lake).training()
    batch = next(iter(stream))
    (teacher,) = find_teachers(lake.store, TEACHERS[:1])
    assert batch.pixels is not None
    encoder = load_encoder(lake.store, teacher)
    again = encoder(batch.pixels[:9], batch.tile_id[:9], teacher.outputs)[TEACHERS[0]]
    for ours, stored in zip(again, batch.features[TEACHERS[0]].astype(np.float32), strict=False):
        assert np.corrcoef(ours, stored)[0, 1] > 0.9999


def ready(lake: Lake, recipe: Recipe) -> tuple[TileTask, Feed]:
    """A task with random weights, and its tiles."""
    ids = slide_ids(lake)
    fit_missing(lake, recipe.needs(lake.config.mpps), ids)
    torch.manual_seed(recipe.seed)
    norms = fit_norms(lake, recipe.targets, recipe.needs(lake.config.mpps), ids)
    task = make_task(lake, recipe, read_norms(norms))
    assert isinstance(task, TileTask)
    return task, feed(lake, recipe)


def trained(
    lake: Lake, recipe: Recipe, *, until: int | None = None
) -> tuple[Loop, list[TrainingStep]]:
    """A loop after some steps, or all."""
    task, tiles = ready(lake, recipe)
    loop = Loop(recipe, State.fresh(task, recipe.schedule), tiles.training())
    steps: list[TrainingStep] = []
    go_on(loop, steps, until=until)
    return loop, steps


class StoppedError(Exception):
    """Stands for a kill."""


def go_on(loop: Loop, steps: list[TrainingStep], *, until: int | None = None) -> None:
    def after(step: TrainingStep) -> None:
        steps.append(step)
        if step.number == until:
            raise StoppedError

    try:
        loop.run(after)
    except StoppedError:
        assert until is not None


@pytest.mark.slow
def test_a_run_stopped_at_any_step_goes_on_as_if_it_had_not(lake_copy: Path) -> None:
    """A checkpoint holds all that there is, also in the middle of an epoch."""
    lake = open_lake(lake_copy)
    recipe = make_recipe("agglomerate", TEACHERS, **{**TINY, "ema": 0.9, "accumulate": 2})
    whole, steps = trained(lake, recipe)
    assert len(steps) == whole.steps == 2 * whole.epoch_steps
    at = whole.epoch_steps + 3
    part, _ = trained(lake, recipe, until=at)
    other = make_recipe("agglomerate", TEACHERS, **{**TINY, "ema": 0.9, "accumulate": 2, "seed": 9})
    resumed, _ = trained(lake, replace(other, seed=0), until=1)
    resumed.state.load(part.state.to_bytes())
    again: list[TrainingStep] = []
    go_on(resumed, again)
    assert [step.number for step in again] == [step.number for step in steps[at:]]
    for one, two in zip(again, steps[at:], strict=True):
        assert one.losses == pytest.approx(two.losses, rel=1e-4)
    ours, undisturbed = (loop.state.task.state_dict() for loop in (resumed, whole))
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_tiles(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    task, tiles = ready(lake, SMALL)
    loop = Loop(SMALL, State.fresh(task, SMALL.schedule), tiles.training())
    batch = next(mixed(tiles.training(), epoch=0, seed=SMALL.seed))
    bad = batch.tile_id[3]

    class Broken(torch.nn.Module):
        def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            wrong = (batch.tile_id == int(bad)).float()
            losses = task(batch, generator)
            return {name: loss / (1 - wrong) for name, loss in losses.items()}

    loop = Loop(SMALL, loop.state, tiles.training(), model=Broken())
    before = {name: value.clone() for name, value in task.named_parameters()}
    with pytest.raises(NotFiniteError, match=rf"\[{bad}\] is not finite at step 0") as caught:
        loop.run(lambda _: None)
    assert caught.value.tiles == (bad,)
    for name, value in task.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.slow
def test_measuring_sees_each_held_out_tile_once(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    task, tiles = ready(lake, SMALL)
    fidelity = measure(task, tiles.measuring())
    tiles_by_mpp = {str(mpp): part.tiles for mpp, part in fidelity[TEACHERS[0]].items()}
    assert tiles_by_mpp == lake.info()["tiles"]


def test_incomplete_teacher_is_refused_before_the_run(filled: Path) -> None:
    recipe = make_recipe("agglomerate", (*TEACHERS, "uni2"))
    with pytest.raises(DistillError, match=r"needs features of 'uni2'.*extract"):
        distill(str(filled), recipe)


def test_held_out_patients_have_no_slide_in_training(lake: Lake) -> None:
    train, held = split_slides(lake, holdout=0.25, seed=0)
    slides = lake.slides().collect()
    patient = dict(slides.select("slide_id", "patient_id").iter_rows())
    assert set(train) | set(held) == set(slides["slide_id"])
    assert not {patient[s] for s in train} & {patient[s] for s in held}


def check_log(run: Path, steps: int) -> None:
    """A run's lines, TensorBoard and picture."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "losses" in line] == list(range(1, steps + 1))
    for line in (line for line in lines if "losses" in line):
        assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert line["loss"] == pytest.approx(sum(line["losses"].values()), abs=1e-4)
    held = [line["held_out"] for line in lines if "held_out" in line]
    assert [set(parts) for line in held for parts in line.values()] == [{"0.5", "2.0"}] * 4
    (events,) = (run / "tensorboard").iterdir()
    assert b"held_out/efficientnet_lite0/0.5/cosine" in events.read_bytes()
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_up")
def test_student_from_ray_train_to_a_teacher_in_the_lake(lake_copy: Path) -> None:
    report = distill(str(lake_copy), SMALL, name="tiny")
    assert report["steps"] % 2 == 0 < report["steps"]
    assert set(report["fidelity"]) == set(TEACHERS)
    assert 0 <= report["data_wait"] < 1 < report["tiles_per_s"]
    train, held = split_slides(open_lake(lake_copy), holdout=0.25, seed=0)
    assert report["held_out_slides"] == held
    assert not (set(report["held_out_slides"]) & set(train))
    kept = json.loads((lake_copy / "students/tiny/report.json").read_text())
    assert distill(str(lake_copy), SMALL, name="tiny") == kept
    with pytest.raises(DistillError, match="other data or settings"):
        distill(str(lake_copy), make_recipe("agglomerate", TEACHERS, **TINY, seed=3), name="tiny")
    check_log(lake_copy / "runs" / report["run"], report["steps"])

    # Plain timm opens the student without us, and gives what the lake's column holds.
    card = json.loads((lake_copy / "students/tiny/card.json").read_text())
    plain = timm.create_model(card["architecture"], num_classes=0)
    plain.load_state_dict(
        safetensors.torch.load_file(lake_copy / "students/tiny/model.safetensors")
    )
    assert not extract(str(lake_copy), ["tiny"], mpps=[2.0]).failed
    lake = open_lake(lake_copy)
    bag = lake.bag(held[0], "tiny", mpp=2.0)
    (batch,) = lake.stream("tiny", mpp=2.0, slide_ids=[held[0]], pixels="uint8", shuffle=False)
    assert batch.pixels is not None
    (teacher,) = find_teachers(lake.store, ["tiny"])
    encoder = load_encoder(lake.store, teacher)
    reference = encoder(batch.pixels, batch.tile_id, teacher.outputs)["tiny"]
    np.testing.assert_allclose(bag.features, reference, atol=2e-2)
    assert card["dim"] == bag.features.shape[1] == plain.num_features
