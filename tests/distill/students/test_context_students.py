"""Tiles in context: any teacher in, all teachers out; plain formulas, and what it learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.spatial
import torch
from torch import Tensor

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe
from distill.students.feature_students import extract
from distill.students.of_features.context_network import NearAttention, tile_distances
from distill.students.of_features.context_task import ContextTask
from distill.students.task import Batch, on_device
from tests.distill.students.test_feature_columns import TEACHERS, kept
from tests.featurestore.read.test_stream_under import made
from tests.worlds.feature_worlds import (
    World,
    backward,
    centred_cosine,
    fit,
    region_batch,
    region_norms,
)

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(dims={"a": 12, "b": 10})
SMALL: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "head_width": 32, "levels": 3}


def batch(samples: int = 8, seed: int = 1) -> Batch:
    return region_batch(WORLD, samples, seed, side=2, each=2, everywhere=True)


def recipe(**changes: Any) -> Recipe:  # noqa: ANN401
    return make_recipe("context", tuple(WORLD.dims), **{**SMALL, "targets": "z-score", **changes})


def task(**changes: Any) -> ContextTask:  # noqa: ANN401
    torch.manual_seed(0)
    return ContextTask(recipe(**changes), WORLD.dims, region_norms(WORLD, batch(64, 7), "z-score"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_attention_is_the_plain_formula() -> None:
    torch.manual_seed(1)
    attention = NearAttention(8, 2).double()
    x_BSD, bias = torch.randn(3, 5, 8).double(), torch.randn(3, 2, 5, 5).double()
    bias[0, :, :, 4] = -torch.inf
    weight, offset = (p.detach().numpy() for p in attention.query_key_value.parameters())
    projected = x_BSD.numpy() @ weight.T + offset
    expected = np.zeros((3, 5, 8))
    for b in range(3):
        for h in range(2):
            q, k, v = (
                projected[b, :, part * 8 + h * 4 : part * 8 + h * 4 + 4] for part in range(3)
            )
            scores = np.exp(q @ k.T / 2 + bias[b, h].numpy())
            expected[b, :, h * 4 : h * 4 + 4] = scores / scores.sum(1, keepdims=True) @ v
    out_weight, out_offset = (p.detach().numpy() for p in attention.out.parameters())
    ours = attention(x_BSD, bias).detach().numpy()
    np.testing.assert_allclose(ours, expected @ out_weight.T + out_offset, rtol=1e-6)


def test_distances_are_those_of_the_tiles_centres() -> None:
    """In tiles of the finest mpp: 1, 2 x 2 and 4 x 4 tiles of a region of 4 x 4."""
    places = [(2.0, 2.0)]
    places += [(y, x) for y in (1.0, 3.0) for x in (1.0, 3.0)]
    places += [(y + 0.5, x + 0.5) for y in range(4) for x in range(4)]
    expected = scipy.spatial.distance.cdist(places, places)
    np.testing.assert_allclose(tile_distances((1, 2, 4)), expected, atol=1e-6)


def test_losses_are_per_region_and_every_parameter_has_a_gradient() -> None:
    made_task = task().train()
    losses = made_task(batch(), generator())
    assert list(losses) == ["context a", "context b"]
    assert all(loss.shape == (8,) and loss.dtype == torch.float32 for loss in losses.values())
    backward(losses)
    trained = {n: p for n, p in made_task.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None] == []


def test_it_learns_all_teachers_from_any_and_fills_in_hidden_tiles() -> None:
    made_task = task()
    history = fit(made_task, [batch(32, seed) for seed in range(6)], 120)
    assert np.mean(history[-5:]) < 0.6 * history[0]
    predictions = made_task.eval().predict(batch(128, 99))
    cosines = {name: centred_cosine(part) for name, part in predictions.items()}
    assert min(cosines["a"], cosines["b"]) > 0.8
    assert min(cosines["a hidden"], cosines["b hidden"]) > 0.6
    made_task.network.reads = "b"
    other = made_task.predict(batch(128, 99))
    assert centred_cosine(other["a"]) > 0.8
    # What is drawn and hidden differs from step to step, the column does not.
    vectors = made_task.network.embed(batch())
    torch.testing.assert_close(made_task.network.embed(batch()), vectors)
    assert vectors.shape == (8, 32)


def changed(one: Batch, mpp: float, is_changed: Tensor) -> Batch:
    """Return the batch with other features of some finer tiles."""
    under = one.under[mpp]
    features = {
        name: torch.where(is_changed[..., None], torch.full_like(x, 7), x)
        for name, x in under.features.items()
    }
    return replace(one, under={**one.under, mpp: replace(under, features=features)})


def test_background_and_hidden_tiles_do_not_reach_the_vector() -> None:
    network, one = task().network.eval(), batch()
    before = network.embed(one)
    torch.testing.assert_close(
        network.embed(changed(one, 1.0, ~one.under[1.0].mask)), before, rtol=0, atol=0
    )
    assert not torch.equal(network.embed(changed(one, 1.0, one.under[1.0].mask)), before)
    region = network.region(one)
    is_hidden = torch.zeros_like(region.is_present)
    is_hidden[:, 5:] = True  # all of the finest mpp
    other = network.region(changed(one, 1.0, one.under[1.0].mask))
    shares = network.shares_of("a", len(is_hidden))
    torch.testing.assert_close(
        network(region, shares, is_hidden), network(other, shares, is_hidden), rtol=0, atol=0
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DistillError, match="tiles in context have 'context'"):
        task(terms=(Term(kind="match"),))
    with pytest.raises(DistillError, match=r"given settings \['hide'\]"):
        task(terms=(Term(kind="context", settings={"hide": 1.0}),))
    with pytest.raises(DistillError, match=r"reads='c' given.*is of one of a, b"):
        task(reads="c")
    with pytest.raises(DistillError, match=r"a batch of mpp 1.0 with \[\] under it"):
        task()(replace(batch(), mpp=1.0, under={}), generator())


@pytest.mark.slow
def test_the_column_holds_the_vector_of_each_coarse_tile(tmp_path: Path) -> None:
    lake = made(tmp_path / "lake")
    small = make_recipe(
        "context", TEACHERS, width=16, depth=1, heads=2, reads="packed", mpps=(0.5, 2.0)
    )
    student: Any = kept(lake, small, "context").student
    done = extract(lake.uri, ["context"])
    assert not done.failed
    assert done.teachers["context"]["tiles"] == lake.info()["tiles"]["2.0"]
    lake, teacher = lake.refreshed(), "packed"
    for slide in lake.tiles_of(mpp=2.0).filter(pl.col("tiles") > 0)["slide_id"]:
        bag = lake.bag(slide, "context", mpp=2.0)
        (tiles,) = lake.stream(
            [teacher],
            mpp=2.0,
            slide_ids=[slide],
            shuffle=False,
            batch_tiles=1000,
            under={0.5: [teacher]},
        )
        np.testing.assert_array_equal(tiles.tile_id, bag.tile_id)
        np.testing.assert_allclose(bag.features, student.embed(on_device(tiles, "cpu")), atol=5e-3)
    assert extract(lake.uri, ["context"]).teachers["context"]["tiles"] == 0


def test_losses_stay_float32_under_bfloat16() -> None:
    plain = task().train()(batch(), generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = task().train()(batch(), generator())
    for name, loss in low.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, plain[name], rtol=0.1, atol=0.02)
