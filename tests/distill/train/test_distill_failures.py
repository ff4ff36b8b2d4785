"""Failures of the field that only a run, or a view of a tile, can have; each by its number."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.recipes.recipe_columns import check
from distill.recipes.recipe_table import make_recipe
from distill.students.student_table import make_task
from distill.students.task import on_device
from distill.targets.missing_stats import fit_missing
from distill.targets.norms import fit_norms, read_norms
from distill.targets.target_sources import CLS, GRID, PATCH, ViewGeometry
from distill.train.batches import Feed
from distill.train.loop import Loop, State, TrainingStep, measure
from distill.train.views import draw, sized, turned
from featurestore import Lake, open_lake, read_stats
from tests.conftest import TEACHERS
from tests.worlds.tile_worlds import FINE, TileWorld, colours

TINY = {"architecture": "test_efficientnet", "input_px": 64, "head_width": 16, "epochs": 1}


def slide_ids(lake: Lake) -> list[str]:
    return lake.slides().collect()["slide_id"].to_list()


@pytest.mark.slow
def test_failure_13_every_teacher_is_matched_at_every_mpp_and_measured_at_each(
    lake_copy: Path,
) -> None:
    """A student that is matched with a teacher at one mpp only differs from it at the others."""
    lake = open_lake(lake_copy)
    recipe = make_recipe("agglomerate", TEACHERS, **TINY)
    assert set(recipe.needs(lake.config.mpps)) == {(t, m) for t in TEACHERS for m in (0.5, 2.0)}
    fit_missing(lake, recipe.needs(lake.config.mpps), slide_ids(lake))
    norms = fit_norms(lake, recipe.targets, recipe.needs(lake.config.mpps), slide_ids(lake))
    task = make_task(lake, recipe, read_norms(norms))
    feed = Feed(lake=lake, recipe=recipe, slide_ids=slide_ids(lake))
    mpps = {batch.mpp for stream in feed.training() for batch in stream}
    assert mpps == {0.5, 2.0}
    fidelity = measure(task, feed.measuring(), tiles=16)
    assert {name: set(parts) for name, parts in fidelity.items()} == dict.fromkeys(TEACHERS, mpps)


def test_failure_13_a_teacher_that_an_mpp_lacks_is_refused(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    lake.committer.add_teacher(0.5, "other", 8, {"card": "other"})
    with pytest.raises(DistillError, match=r"needs features of 'other' for every tile at mpp 0.5"):
        check(lake.refreshed(), make_recipe("agglomerate", (TEACHERS[0], "other")))


@pytest.mark.slow
def test_failure_16_statistics_are_exact_and_do_not_move_while_training(lake_copy: Path) -> None:
    lake, ids = open_lake(lake_copy), slide_ids(open_lake(lake_copy))
    recipe = make_recipe("agglomerate", TEACHERS, **TINY, targets="z-score")
    needs = recipe.needs(lake.config.mpps)
    fit_missing(lake, needs, ids)
    norms = read_norms(fit_norms(lake, recipe.targets, needs, ids))
    exact = {key: read_stats(lake, key[0], mpp=key[1], slide_ids=ids) for key in needs}
    before = {key: norm.mean.clone() for key, norm in norms.items()}
    task = make_task(lake, recipe, norms)
    feed = Feed(lake=lake, recipe=recipe, slide_ids=ids)
    steps: list[TrainingStep] = []
    Loop(recipe, State.fresh(task, recipe.schedule), feed.training()).run(steps.append)
    assert steps
    for key, norm in norms.items():
        moments = exact[key]
        assert moments is not None
        raw = lake.features(key[0], mpp=key[1]).collect()[key[0]].to_numpy().astype(np.float64)
        torch.testing.assert_close(norm.mean, before[key], rtol=0, atol=0)
        np.testing.assert_allclose(moments.mean, raw.mean(axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(norm.mean, raw.mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "output"), [("a", GRID), ("a", CLS), ("a:patches", PATCH), ("a:patches5", PATCH)]
)
def test_failure_20_cached_grids_turn_with_the_pixels(name: str, output: str) -> None:
    """Targets of a turned view are the teacher's features of the turned pixels."""
    world = TileWorld.make()
    batch = world.batch(16)
    assert batch.pixels is not None
    turns = torch.arange(16) % 8
    pixels = turned(batch.pixels, turns, axes=(1, 2))
    fine = FINE if output in (GRID, CLS) else None
    settings = {**TINY, "targets": "none", "architecture": "test_vit", "input_px": 64}
    recipe = make_recipe("xmag" if fine else "agglomerate", (name,), **settings)
    task = world.task(recipe, fine=fine)
    assert task.network.grid == (4, 4)
    source = task.source(name, output)
    goal = source.goal(batch, ViewGeometry(turns=turns))
    again = world.of("a", colours(pixels, 2 if fine else 4)).flatten(1, 2)
    if output == CLS:
        mask = batch.under[FINE].mask.flatten(1)[..., None]
        plain = batch.under[FINE].features["a"].flatten(1, 2) * mask
        expected = plain.sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        torch.testing.assert_close(goal.target, expected)
    elif output == GRID:
        kept = goal.weight
        assert kept is not None
        assert bool((kept == 0).any())
        torch.testing.assert_close(goal.target[kept > 0], again[kept > 0])
    elif goal.cells is None:
        torch.testing.assert_close(goal.target, again)
    else:
        cells = goal.cells[..., None].expand(-1, -1, again.shape[-1])
        torch.testing.assert_close(goal.target, again.gather(1, cells))


def test_failure_21_a_tile_looks_different_each_time_and_its_target_does_not(lake: Lake) -> None:
    recipe = make_recipe("agglomerate", TEACHERS, **TINY)
    feed = Feed(lake=lake, recipe=recipe, slide_ids=slide_ids(lake))
    batch = on_device(next(iter(feed.measuring()[0])), "cpu")
    assert batch.pixels is not None
    x = sized(batch.pixels, 64)
    one, two = (draw(x, recipe.views, torch.Generator().manual_seed(s)).pixels for s in (0, 1))
    assert bool((one - two).abs().flatten(1).mean(dim=1).gt(0.01).all())
    # Colours move by a few grey levels: what is seen is jittered, not only turned.
    assert float((one.flatten(2).sort().values - two.flatten(2).sort().values).abs().mean()) > 0.003
