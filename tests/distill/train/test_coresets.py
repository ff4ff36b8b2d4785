"""Clusters, coverage, scores and the self-paced weights, against plain formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

from distill.errors import DistillError
from distill.losses.weighting import self_paced_weights
from distill.recipes.recipe import Schedule
from distill.train.coresets import Clusters, farthest_first, kept_by_score, projected, unit_rows
from distill.train.loop import pace


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), st.integers(0, 2**31), st.data())
def test_coverage_by_plain_loops(tiles: int, seed: int, data: st.DataObject) -> None:
    x = np.random.default_rng(seed).normal(size=(tiles, 3)).astype(np.float32)
    count = data.draw(st.integers(1, tiles))
    ours = farthest_first(x, count)
    chosen = [int(np.argmin(cdist(x, [x.mean(axis=0)])[:, 0]))]
    while len(chosen) < count:
        nearest = cdist(x, x[chosen]).min(axis=1)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))
    assert ours.tolist() == chosen
    assert len(set(chosen)) == count


def test_equal_tiles_come_once_each() -> None:
    assert sorted(farthest_first(np.ones((5, 2), np.float32), 4).tolist()) == [0, 1, 2, 3]


def test_coverage_covers_rare_tissue_that_chance_leaves_out() -> None:
    """A cluster of 4 among 400 tiles: coverage has one of them among 8, whatever the order."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(396, 8)), rng.normal(30, 1, (4, 8))]).astype(np.float32)
    assert farthest_first(x, 8).max() >= 396


def test_wide_features_keep_their_distances() -> None:
    x = np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32)
    ratio = pdist(projected(x)) / pdist(x)
    assert projected(x).shape == (40, 64)
    assert 0.6 < ratio.min() < 1 < ratio.max() < 1.4
    assert projected(x[:, :8]) is not None
    np.testing.assert_array_equal(projected(x[:, :8]), x[:, :8])


def test_clusters_that_are_apart_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 3, 300)
    directions = np.eye(3, 6) * 4
    x = (directions[group] + rng.normal(0, 0.2, (300, 6))).astype(np.float32)
    clusters = Clusters(x[:90], 3, seed=0)
    cluster, distance = clusters.of(x)
    pairs = set(zip(group.tolist(), cluster.tolist(), strict=True))
    assert len(pairs) == 3
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centres = clusters._means.cluster_centers_
    np.testing.assert_allclose(distance, cdist(unit, centres).min(axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(unit_rows(np.zeros((1, 3), np.float32)), np.zeros((1, 3)))
    with pytest.raises(DistillError, match="no tiles to make clusters of"):
        Clusters(x[:0], 3, seed=0)


def test_hard_and_easy_tiles_by_sorting() -> None:
    distance = np.array([3, 1, 2, 5, 4], np.float32)
    assert kept_by_score(distance, 0.4, "hard").tolist() == [3, 4]
    assert kept_by_score(distance, 0.4, "easy").tolist() == [1, 2]
    assert kept_by_score(distance, 0.01, "easy").tolist() == [1]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_smallest_losses_count_and_their_mean_is_the_loss(share: float) -> None:
    loss = torch.rand(20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = self_paced_weights(loss, share)
    smallest = np.sort(loss.detach().numpy())[: math.ceil(share * 20)]
    assert float((weights * loss).mean().detach()) == pytest.approx(smallest.mean(), rel=1e-5)
    assert not weights.requires_grad


def test_all_tiles_count_from_the_middle_of_the_run_on() -> None:
    schedule = Schedule(self_paced=0.2)
    assert [round(pace(schedule, step, 10), 2) for step in range(10)] == [
        0.2, 0.36, 0.52, 0.68, 0.84, 1.0, 1.0, 1.0, 1.0, 1.0,
    ]  # fmt: skip
    assert pace(Schedule(), 0, 10) == 1
    with pytest.raises(DistillError, match="self_paced=0 given; a share above 0"):
        Schedule(self_paced=0.0)
