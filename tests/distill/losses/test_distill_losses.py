"""Losses of predictions, relations and branches against float64 by hand, and their limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.errors import DistillError
from distill.losses.feature_losses import (
    cosine_loss,
    info_nce_loss,
    log_sum_loss,
    match_loss,
    smooth_l1_loss,
)
from distill.losses.logit_losses import kl_loss
from distill.losses.numeric import weighted_mean
from distill.losses.relation_losses import batch_relation_loss, token_relation_loss
from distill.losses.self_losses import dino_loss
from distill.losses.vicreg import covariance_loss, variance_loss, vicreg_loss

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 9))
P = RNG.normal(size=(7, 9))


def torch_of(x: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def unit(x: Array) -> Array:
    direction: Array = x / math.sqrt(sum(float(v) ** 2 for v in x))
    return direction


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_loss,
    "smooth_l1": smooth_l1_loss,
    "match": lambda p, t: match_loss(p, t, cosine_weight=0.9),
    "info_nce": info_nce_loss,
    "log_sum": log_sum_loss,
    "batch_relation": batch_relation_loss,
    "token_relation": lambda p, t: token_relation_loss(p[:, None], t[:, None]),
    "kl": kl_loss,
    "dino": dino_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_failure_3_targets_that_require_gradients_are_refused(name: str) -> None:
    """Trainable targets that are not detached may collapse; the error advises to detach them."""
    p, t = torch_of(P), torch_of(T).requires_grad_()
    with pytest.raises(DistillError, match=r"requires gradients.*detach"):
        LOSSES[name](p, t)
    assert LOSSES[name](p, t.detach()).shape == (7,)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_are_float32_whatever_comes_in(name: str, dtype: torch.dtype) -> None:
    p, t = torch_of(P).to(dtype), torch_of(T).to(dtype)
    if name == "dino":
        t = t.softmax(dim=-1)
    plain = LOSSES[name](p.float(), t.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](p, t)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"token_relation"}))
def test_gradients_reach_the_student(name: str) -> None:
    p = torch_of(P).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSSES[name](p, torch_of(T).softmax(dim=-1)).sum(), p)
    assert bool((gradient.abs().sum(dim=1) > 0).all())


def test_losses_of_half_precision_do_not_overflow() -> None:
    """The dot product of two float16 vectors of length 65504 is infinite already."""
    big = torch.full((3, 8), 60000.0, dtype=torch.float16)
    for name in ("cosine", "info_nce", "batch_relation"):
        assert bool(LOSSES[name](big, big).isfinite().all()), name


# ------------------------------------------------------------------ contrast, log-sum


def test_info_nce_by_hand() -> None:
    b, tau = len(P), 0.2
    similar = [[float(unit(p) @ unit(t)) / tau for t in T] for p in P]
    expected = []
    for i in range(b):
        row = math.log(sum(math.exp(similar[i][j]) for j in range(b))) - similar[i][i]
        column = math.log(sum(math.exp(similar[j][i]) for j in range(b))) - similar[i][i]
        expected.append((row + column) / 2)
    loss = info_nce_loss(torch_of(P), torch_of(T), temperature=tau)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_info_nce_is_log_b_or_0_at_its_limits_whatever_the_order_and_length() -> None:
    same = torch.ones(6, 4)
    torch.testing.assert_close(info_nce_loss(same, same), torch.full((6,), math.log(6)))
    eye = torch.eye(6)
    assert float(info_nce_loss(eye, eye, temperature=0.01).max()) < 1e-6
    p, t, order = torch_of(P), torch_of(T), torch.randperm(7)
    torch.testing.assert_close(info_nce_loss(p[order], t[order]), info_nce_loss(p, t)[order])
    torch.testing.assert_close(info_nce_loss(9 * p, t / 9), info_nce_loss(p, t))


def test_info_nce_refuses_a_batch_of_one_and_no_temperature() -> None:
    with pytest.raises(DistillError, match="1 given, at least 2 needed"):
        info_nce_loss(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(DistillError, match="temperature must be above 0, 0 given"):
        info_nce_loss(torch.ones(2, 3), torch.ones(2, 3), temperature=0)


@pytest.mark.parametrize("power", [2.0, 4.0])
def test_log_sum_by_hand(power: float) -> None:
    expected = [
        math.log(sum(abs(a - b) ** power for a, b in zip(p, t, strict=True)) + 1e-6)
        for p, t in zip(P, T, strict=True)
    ]
    loss = log_sum_loss(torch_of(P), torch_of(T), power=power)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_log_sum_is_finite_at_the_target_and_damps_large_differences() -> None:
    t = torch.zeros(3, 4)
    p = torch.tensor([[0.0] * 4, [1.0] * 4, [100.0] * 4], requires_grad=True)
    loss = log_sum_loss(p, t)
    assert loss[0].item() == pytest.approx(math.log(1e-6))
    (gradient,) = torch.autograd.grad(loss.sum(), p)
    assert gradient[0].tolist() == [0.0] * 4
    torch.testing.assert_close(gradient[1], 100 * gradient[2])
    with pytest.raises(DistillError, match="power must be above 0"):
        log_sum_loss(t, t, power=0)
    with pytest.raises(DistillError, match="floor must be above 0"):
        log_sum_loss(t, t, floor=0)


# ------------------------------------------------------------------ relations


def relations_by_hand(x: Array) -> Array:
    return np.array([unit(np.array([float(a @ b) for b in x])) for a in x])


def test_batch_relations_by_hand() -> None:
    gap = relations_by_hand(T) - relations_by_hand(S)
    expected = [sum(float(v) ** 2 for v in row) / len(S) for row in gap]
    loss = batch_relation_loss(torch_of(S), torch_of(T))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-7)
    whole = np.linalg.norm(gap, "fro") ** 2 / len(S) ** 2
    assert loss.mean().item() == pytest.approx(whole, rel=1e-4)


def test_relations_see_neither_rotation_nor_scale_but_the_order() -> None:
    t = torch_of(T).float()
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0)))[0]
    zero = torch.zeros(7)
    torch.testing.assert_close(batch_relation_loss(3 * t @ rotation, t), zero, atol=1e-6, rtol=0)
    s, order = torch_of(S), torch.tensor([3, 1, 0, 2, 6, 5, 4])
    torch.testing.assert_close(
        batch_relation_loss(s[order], t[order]), batch_relation_loss(s, t)[order]
    )
    assert float(batch_relation_loss(t[order], t).mean()) > 1e-3
    with pytest.raises(DistillError, match="at least 2"):
        batch_relation_loss(s[:1], t[:1])


def test_token_relations_by_hand_with_masked_tokens_left_out() -> None:
    rng = np.random.default_rng(1)
    s, t = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6, 8))
    mask = np.array([[1] * 6, [1, 0, 1, 1, 0, 1], [0] * 6], bool)
    expected = []
    for i in range(3):
        a, b = relations_by_hand(s[i][mask[i]]), relations_by_hand(t[i][mask[i]])
        n = int(mask[i].sum())
        expected.append(float(((a - b) ** 2).sum()) / n**2 if n else 0.0)
    t[~mask] = np.nan
    loss = token_relation_loss(torch_of(s), torch_of(t), torch.from_numpy(mask))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-7)
    whole = token_relation_loss(torch_of(s[:1]), torch_of(t[:1]))
    assert whole.item() == pytest.approx(expected[0], rel=1e-4)


def test_tokens_on_different_grids_are_refused() -> None:
    with pytest.raises(DistillError, match="align the grids first"):
        token_relation_loss(torch.ones(2, 9, 3), torch.ones(2, 4, 3))


# ------------------------------------------------------------------ VICReg


def vicreg_by_hand(a: Array, b: Array) -> list[float]:
    n, d = a.shape
    shared = 0.0
    for x in (a, b):
        mean = [sum(x[:, j]) / n for j in range(d)]
        for j in range(d):
            for k in range(d):
                pairs = [(x[i, j] - mean[j]) * (x[i, k] - mean[k]) for i in range(n)]
                covariance = sum(pairs) / (n - 1)
                if j == k:
                    shared += 25 * max(0.0, 1 - math.sqrt(covariance + 1e-4)) / d / 2
                else:
                    shared += covariance**2 / d
    return [
        25 * sum((p - q) ** 2 for p, q in zip(a[i], b[i], strict=True)) / d + shared
        for i in range(n)
    ]


def test_vicreg_of_two_branches_by_hand() -> None:
    a, b = 0.6 * P, 0.9 * T
    loss = vicreg_loss([torch_of(a), torch_of(b)])
    np.testing.assert_allclose(loss, vicreg_by_hand(a, b), rtol=1e-4)


def test_vicreg_of_three_branches_is_the_mean_over_every_ordered_pair() -> None:
    x = [0.6 * P, 0.9 * T, RNG.normal(size=(7, 9))]
    pairs = [vicreg_by_hand(x[i], x[j]) for i in range(3) for j in range(3) if i != j]
    loss = vicreg_loss([torch_of(branch) for branch in x])
    np.testing.assert_allclose(loss, np.mean(pairs, axis=0), rtol=1e-4)


def test_vicreg_terms_know_their_limits() -> None:
    collapsed, signs = torch.ones(8, 4), torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert variance_loss(collapsed).item() == pytest.approx(1 - 0.01)
    assert covariance_loss(collapsed).item() == 0
    assert variance_loss(2 * signs).item() == covariance_loss(signs).item() == 0
    twin = signs[:, :1].repeat(1, 2)
    assert covariance_loss(twin).item() == pytest.approx((4 / 3) ** 2)
    torch.testing.assert_close(vicreg_loss([2 * signs, 2 * signs]), torch.zeros(4))


def test_vicreg_moves_every_branch() -> None:
    branches = [torch_of(x).requires_grad_() for x in (P, T, P + T)]
    gradients = torch.autograd.grad(vicreg_loss(branches).mean(), branches)
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_vicreg_refuses_branches_that_it_cannot_compare() -> None:
    with pytest.raises(DistillError, match="1 given, at least 2"):
        vicreg_loss([torch_of(P)])
    with pytest.raises(DistillError, match=r"one shape.*project them first"):
        vicreg_loss([torch_of(P), torch_of(S)])
    with pytest.raises(DistillError, match="compares samples"):
        vicreg_loss([torch.ones(1, 3), torch.ones(1, 3)])


# ------------------------------------------------------------------ means over tokens


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=1, max_size=12))
def test_weighted_mean_is_that_of_kept_tokens(tokens: list[tuple[float, bool]]) -> None:
    kept = [number for number, keep in tokens if keep]
    values = torch.tensor([[number if keep else math.inf for number, keep in tokens]])
    mean = weighted_mean(values, torch.tensor([[keep for _, keep in tokens]]))
    expected = sum(kept) / len(kept) if kept else 0.0
    assert mean.item() == pytest.approx(expected, abs=1e-4)


def test_masked_tokens_give_no_gradient() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        weighted_mean(values, torch.tensor([[1, 0, 1]])).sum(), values
    )
    assert gradient.tolist() == [[0.5, 0.0, 0.5]]
