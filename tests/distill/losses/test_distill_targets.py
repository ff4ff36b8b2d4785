"""Targets and their normalisation, grids of tokens, and what is refused before training."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import DistillError
from distill.losses.feature_losses import FeatureMatch, cosine_loss, match_loss, smooth_l1_loss
from distill.losses.numeric import full_precision, weighted_mean
from distill.targets.norm_arrays import norm_arrays
from distill.targets.target import NORMS, Rotator, TargetNorm, align_grid, axis_weights
from distill.targets.target import norm_of as norm_of_arrays
from featurestore import Moments, PhiS
from featurestore.stats import phi_s
from tests.worlds.feature_worlds import make_norm

FITTED = ("z-score", "phi-s")
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def moments_of(x_ND: Array) -> Moments:
    return Moments(n=len(x_ND), mean=x_ND.mean(0), covariance=np.cov(x_ND.T, ddof=0))


def norm_of(name: str, x_ND: Array) -> TargetNorm:
    moments = moments_of(x_ND)
    return make_norm(name, moments=moments, phi_s=phi_s(moments.mean, moments.covariance))


def features(n: int = 300, dim: int = 6) -> Array:
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.1, 10, dim)
    drawn: Array = rng.normal(2, scales, (n, dim)) @ rng.normal(size=(dim, dim))
    return drawn


# ------------------------------------------------------------------ normalisations


@pytest.mark.parametrize("name", NORMS)
def test_targets_come_back_and_carry_no_gradient(name: str) -> None:
    x = features()
    norm = norm_of(name, x)
    assert norm.name == name
    raw = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    target = norm(raw)
    assert target.dtype == torch.float32
    assert not target.requires_grad
    back = norm.inverse(target)
    if name == "l2":
        length = math.sqrt(float((x**2).sum(1).mean()))
        torch.testing.assert_close(back.norm(dim=1), torch.full((len(x),), length))
        raw = F.normalize(raw, dim=1) * length
    torch.testing.assert_close(back, raw.detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_targets_have_channels_of_mean_0_and_variance_1(name: str) -> None:
    x = features()
    target = norm_of(name, x)(torch.from_numpy(x)).double()
    torch.testing.assert_close(target.mean(0), torch.zeros(6).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        target.var(0, correction=0), torch.ones(6).double(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("name", FITTED)
def test_a_dead_channel_has_finite_targets_and_comes_back(name: str) -> None:
    x = features()
    x[:, 2] = 3.0
    x[:, 4] = 1 + 1e-7 * np.arange(len(x))
    norm = norm_of(name, x)
    raw = torch.from_numpy(x).float()
    target = norm(raw)
    assert bool(torch.isfinite(target).all())
    torch.testing.assert_close(norm.inverse(target), raw, rtol=1e-3, atol=1e-3)
    if name == "z-score":
        assert float(target[:, [2, 4]].abs().max()) < 0.01
        torch.testing.assert_close(
            target[:, [0, 1, 3, 5]].var(0, correction=0), torch.ones(4), atol=1e-3, rtol=0
        )


def test_a_teacher_without_any_variance_is_refused() -> None:
    moments = moments_of(np.ones((9, 3)))
    with pytest.raises(DistillError, match="all tiles have the same features"):
        norm_arrays("z-score", moments)


def test_phi_s_equals_the_transform_in_float64_and_keeps_ratios_of_distances() -> None:
    x = features()
    moments = moments_of(x)
    exact: PhiS = phi_s(moments.mean, moments.covariance)
    norm = make_norm("phi-s", moments=moments, phi_s=exact)
    target = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(target, exact(x), atol=1e-4)
    np.testing.assert_allclose(
        norm.inverse(torch.from_numpy(target)), exact.inverse(target), atol=1e-3
    )
    ratio = np.linalg.norm(target[1:] - target[:-1], axis=1) / np.linalg.norm(
        np.diff(x, axis=0), axis=1
    )
    np.testing.assert_allclose(ratio, exact.scale, rtol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_targets_of_tokens_are_those_of_each_token(name: str) -> None:
    x = features()
    norm, grid = norm_of(name, x), torch.from_numpy(x[:24].reshape(2, 3, 4, 6))
    torch.testing.assert_close(norm(grid).reshape(24, 6), norm(torch.from_numpy(x[:24])))


def test_a_zero_vector_stays_zero_under_l2() -> None:
    assert norm_of("l2", features())(torch.zeros(1, 6)).tolist() == [[0.0] * 6]


@pytest.mark.parametrize("name", FITTED)
def test_targets_are_float32_under_autocast(name: str) -> None:
    x = features()
    norm, raw = norm_of(name, x), torch.from_numpy(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = norm(raw)
        low_back = norm.inverse(low)
    assert low.dtype == low_back.dtype == torch.float32
    torch.testing.assert_close(low, norm(raw), rtol=0, atol=0)
    torch.testing.assert_close(low_back, norm.inverse(norm(raw)), rtol=0, atol=0)


def test_statistics_move_to_a_device() -> None:
    norm = norm_of("phi-s", features())
    assert isinstance(norm, Rotator)
    moved = norm.to("meta")
    assert moved.mean.device.type == moved.rotation.device.type == "meta"
    assert moved.scale == norm.scale
    assert norm.mean.device.type == "cpu"


def test_unknown_and_unfitted_normalisations_are_refused() -> None:
    with pytest.raises(DistillError, match="known are none, l2, z-score, phi-s"):
        make_norm("whitened", moments=moments_of(features()))
    with pytest.raises(DistillError, match="'phi-s' need mean, rotation, scale; mean given"):
        norm_of_arrays("phi-s", mean=np.zeros(3))
    with pytest.raises(DistillError, match="4 channels, statistics 6"):
        norm_of("phi-s", features())(torch.zeros(2, 4))


# ------------------------------------------------------------------ failures of the field


def gradient_shares(name: str, factor: float) -> Array:
    """Length of the gradient of a shared layer through each of two teachers, over their sum."""
    torch.manual_seed(0)
    trunk = torch.nn.Linear(5, 4)
    heads = [torch.nn.Linear(4, 6) for _ in range(2)]
    x_BC = torch.randn(32, 5)
    small = features(32) / 1000
    lengths = []
    for head, raw in zip(heads, (small * factor, small[::-1].copy()), strict=True):
        target = norm_of(name, raw)(torch.from_numpy(raw))
        loss = smooth_l1_loss(head(trunk(x_BC)) / 10, target)
        (gradient,) = torch.autograd.grad(loss.mean(), trunk.weight)
        lengths.append(float(gradient.norm()))
    return np.array(lengths) / sum(lengths)


@pytest.mark.parametrize("name", FITTED)
def test_failure_1_scaling_a_teacher_by_100_leaves_the_gradient_shares(name: str) -> None:
    np.testing.assert_allclose(gradient_shares(name, 100), gradient_shares(name, 1), rtol=1e-3)


def test_failure_1_is_there_without_normalisation() -> None:
    """The test above fails for a normalisation that does nothing."""
    before, after = gradient_shares("none", 1), gradient_shares("none", 100)
    assert after[0] - before[0] > 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**31))
def test_failure_2_smooth_l1_of_unit_vectors_is_the_cosine_over_d(dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, t = F.normalize(torch.randn(2, 4, dim, generator=generator), dim=-1)
    # Holds while no channel differs by more than 1, where smooth L1 is not yet linear.
    near = (p - t).abs().amax(dim=-1) < 1
    torch.testing.assert_close(
        smooth_l1_loss(p, t)[near], cosine_loss(p, t)[near] / dim, atol=1e-6, rtol=1e-4
    )


def test_failure_2_smooth_l1_on_l2_targets_is_refused() -> None:
    with pytest.raises(DistillError, match=r"\(1 - cos\) / D.*'phi-s'.*cosine_weight=1"):
        FeatureMatch(targets="l2", cosine_weight=0.9)
    p, t = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    alone = FeatureMatch(targets="l2", cosine_weight=1)
    torch.testing.assert_close(alone(p, t), cosine_loss(p, t), rtol=0, atol=0)
    both = match_loss(p, t, cosine_weight=0.9)
    torch.testing.assert_close(both, 0.9 * cosine_loss(p, t) + 0.1 * smooth_l1_loss(p, t))
    for name in set(NORMS) - {"l2"}:
        FeatureMatch(targets=name)


def test_matches_of_unknown_targets_or_weights_are_refused() -> None:
    with pytest.raises(DistillError, match="no normalisation 'unit'"):
        FeatureMatch(targets="unit")
    with pytest.raises(DistillError, match=r"from 0 to 1, 1\.5 given"):
        FeatureMatch(targets="phi-s", cosine_weight=1.5)


# ------------------------------------------------------------------ grids


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@settings(max_examples=40, deadline=None)
@given(*[st.integers(1, 9)] * 4)
def test_grids_keep_constants_and_weights_add_up(h: int, w: int, new_h: int, new_w: int) -> None:
    out, share = align_grid(torch.full((2, h, w, 3), 7.0), (new_h, new_w))
    assert out.shape == (2, new_h, new_w, 3)
    torch.testing.assert_close(out, torch.full_like(out, 7.0))
    torch.testing.assert_close(share, torch.ones(2, new_h, new_w))


@pytest.mark.parametrize("new", [(8, 8), (4, 2), (2, 8), (1, 1)])
def test_coarser_grids_are_means_of_blocks(new: tuple[int, int]) -> None:
    x = tokens(2, 8, 8, 3)
    out, _ = align_grid(x, new)
    torch.testing.assert_close(out, F.adaptive_avg_pool2d(x.movedim(-1, 1), new).movedim(1, -1))


@pytest.mark.parametrize("new", [(8, 8), (14, 16), (5, 9)])
def test_finer_grids_are_bilinear(new: tuple[int, int]) -> None:
    x = tokens(2, 4, 5, 3)
    out, _ = align_grid(x, new)
    expected = F.interpolate(x.movedim(-1, 1), new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(out, expected.movedim(1, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(16, 14), (7, 5), (3, 2)])
def test_uneven_cells_weigh_by_area(old: int, new: int) -> None:
    """The result is as if each token were `new` pixels wide and each cell `old` pixels."""
    x = np.random.default_rng(0).normal(size=old)
    drawn = np.repeat(x, new)
    expected = [drawn[i * old : (i + 1) * old].mean() for i in range(new)]
    np.testing.assert_allclose(
        axis_weights(old, new) @ torch.from_numpy(x).float(), expected, atol=1e-6
    )


def test_equal_grids_are_exact() -> None:
    x = tokens(2, 7, 5, 3)
    assert torch.equal(align_grid(x, (7, 5))[0], x)


def test_masked_tokens_do_not_count_even_if_they_are_not_finite() -> None:
    x, mask = tokens(1, 4, 4, 2), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 2:, 2:] = False
    out, share = align_grid(torch.where(mask[..., None], x, torch.nan), (2, 2), mask)
    assert share.tolist() == [[[0.75, 1.0], [1.0, 0.0]]]
    torch.testing.assert_close(out[0, 0, 0], (x[0, 0, 1] + x[0, 1, 0] + x[0, 1, 1]) / 3)
    torch.testing.assert_close(out[0, 0, 1], x[0, :2, 2:].mean(dim=(0, 1)))
    assert out[0, 1, 1].tolist() == [0.0, 0.0]
    losses = weighted_mean(torch.tensor([[[1.0, 2.0], [3.0, torch.nan]]]), share)
    assert losses.tolist() == pytest.approx([(0.75 + 2 + 3) / 2.75])


def test_grids_that_cannot_be_are_refused() -> None:
    with pytest.raises(DistillError, match="0 x 4"):
        align_grid(tokens(1, 2, 2, 3), (0, 4))
    with pytest.raises(DistillError, match=r"the mask is \(1, 3, 2\), the tokens \(1, 2, 2\)"):
        align_grid(tokens(1, 2, 2, 3), (2, 2), torch.ones(1, 3, 2))


# ------------------------------------------------------------------ precision


def test_products_are_in_float32_under_autocast() -> None:
    x = torch.full((2, 2), 1.001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x.double(), x.half()) as (one, two):
            assert (one @ two).dtype == torch.float32
