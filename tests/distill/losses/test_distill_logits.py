"""Losses of logits against float64 by hand, and their limits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from distill.errors import DistillError
from distill.losses.logit_losses import (
    decoupled_levels_loss,
    decoupled_loss,
    kl_loss,
    label_loss,
    mixed_kl_loss,
    multi_level_loss,
)

RNG = np.random.default_rng(0)
S, T = 3 * RNG.normal(size=(5, 6)), 3 * RNG.normal(size=(5, 6))
LABELS = [0, 5, 2, 2, 4]
STUDENT, TEACHER, LABEL = torch.from_numpy(S), torch.from_numpy(T), torch.tensor(LABELS)


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(logit / temperature) for logit in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_by_hand(temperature: float) -> None:
    expected = [
        temperature**2 * kl(softmax(t, temperature), softmax(s, temperature))
        for s, t in zip(S.tolist(), T.tolist(), strict=True)
    ]
    loss = kl_loss(STUDENT, TEACHER, temperature=temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def dkd_by_hand(alpha: float, beta: float, temperature: float) -> list[float]:
    losses = []
    for s, t, label in zip(S.tolist(), T.tolist(), LABELS, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        sure = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [c for c in range(6) if c != label]
        rest_t, rest_s = ([row[c] for c in others] for row in (t, s))
        rest = kl(softmax(rest_t, temperature), softmax(rest_s, temperature))
        losses.append(temperature**2 * (alpha * sure + beta * rest))
    return losses


def test_decoupled_by_hand() -> None:
    loss = decoupled_loss(STUDENT, TEACHER, LABEL)
    np.testing.assert_allclose(loss, dkd_by_hand(1, 8, 4), rtol=1e-4)
    loss = decoupled_loss(STUDENT, TEACHER, LABEL, temperature=2, target_weight=0.5, other_weight=3)
    np.testing.assert_allclose(loss, dkd_by_hand(0.5, 3, 2), rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.floats(0.5, 8), st.integers(0, 2**31))
def test_decoupled_parts_add_up_to_kl(classes: int, temperature: float, seed: int) -> None:
    """KL = target part + (1 - p_label) x other part: what the paper starts from."""
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, 4, classes, generator=generator)
    label = torch.randint(classes, (4,), generator=generator)
    both = [
        decoupled_loss(s, t, label, temperature=temperature, target_weight=a, other_weight=1 - a)
        for a in (1.0, 0.0)
    ]
    sure = (t / temperature).softmax(dim=1).gather(1, label[:, None])[:, 0]
    whole = kl_loss(s, t, temperature=temperature)
    torch.testing.assert_close(both[0] + (1 - sure) * both[1], whole, rtol=1e-3, atol=1e-5)


def test_a_sure_teacher_still_teaches_the_ratios_of_other_classes() -> None:
    """`kl_loss` is almost 0 there, and 1 - p is 0 in float32."""
    t = torch.tensor([[200.0, 3.0, 0.0]])
    s = torch.tensor([[200.0, 0.0, 3.0]], requires_grad=True)
    loss = decoupled_loss(s, t, torch.tensor([0]), temperature=1)
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert bool(gradient.isfinite().all())
    assert gradient[0, 1] < -1 < 1 < gradient[0, 2]
    assert kl_loss(s, t, temperature=1).item() == 0


def test_decoupled_of_two_classes_is_refused() -> None:
    with pytest.raises(DistillError, match=r"2 classes given.*kl_loss"):
        decoupled_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))


def multi_by_hand(temperature: float) -> tuple[list[float], float, float]:
    p, q = ([softmax(row, temperature) for row in x.tolist()] for x in (T, S))
    instance = [temperature**2 * kl(a, b) for a, b in zip(p, q, strict=True)]
    over_batch = over_classes = 0.0
    for i in range(5):
        for j in range(5):
            gap = sum(p[i][c] * p[j][c] - q[i][c] * q[j][c] for c in range(6))
            over_batch += gap**2 / 5
    for c in range(6):
        for d in range(6):
            gap = sum(p[i][c] * p[i][d] - q[i][c] * q[i][d] for i in range(5))
            over_classes += gap**2 / 6
    return instance, over_batch, over_classes


def test_multi_level_by_hand() -> None:
    temperatures = (2.0, 5.0)
    parts = [multi_by_hand(temperature) for temperature in temperatures]
    expected = np.mean([np.mean(i) + 3 * b + 7 * c for i, b, c in parts])
    loss = multi_level_loss(
        STUDENT, TEACHER, temperatures=temperatures, batch_weight=3, class_weight=7
    )
    assert loss.shape == (5,)
    assert loss.mean().item() == pytest.approx(expected, rel=1e-4)
    alone = multi_level_loss(
        STUDENT, TEACHER, temperatures=temperatures, batch_weight=0, class_weight=0
    )
    np.testing.assert_allclose(alone, np.mean([i for i, _, _ in parts], axis=0), rtol=1e-4)


def decoupled_parts(row: list[float], label: int) -> tuple[list[float], list[float]]:
    """(p, 1 - p) of the label, and the softmax over the other classes with 0 at the label."""
    others = [0.0 if c == label else p / (1 - row[label]) for c, p in enumerate(row)]
    return [row[label], 1 - row[label]], others


def decoupled_levels_by_hand(temperature: float, alpha: float, beta: float) -> np.ndarray:
    p, q = (np.array([softmax(row, temperature) for row in x.tolist()]) for x in (T, S))
    total = np.array(dkd_by_hand(alpha, beta, temperature))
    for part, weight in ((0, alpha), (1, beta)):
        t, s = (
            np.array([decoupled_parts(list(r), y)[part] for r, y in zip(x, LABELS, strict=True)])
            for x in (p, q)
        )
        total += weight * ((t @ t.T - s @ s.T) ** 2).sum(axis=1)
        total += weight * ((t.T @ t - s.T @ s) ** 2).sum() / t.shape[1]
    return total


def test_decoupled_levels_by_hand() -> None:
    temperatures = (2.0, 5.0)
    expected = np.mean([decoupled_levels_by_hand(t, 0.5, 3) for t in temperatures], axis=0)
    loss = decoupled_levels_loss(
        STUDENT, TEACHER, LABEL, temperatures=temperatures, target_weight=0.5, other_weight=3
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    same = decoupled_levels_loss(TEACHER, TEACHER, LABEL)
    torch.testing.assert_close(same, torch.zeros(5), atol=1e-5, rtol=0)
    with pytest.raises(DistillError, match="at least one temperature"):
        decoupled_levels_loss(STUDENT, TEACHER, LABEL, temperatures=())


def test_labels_by_scikit_learn() -> None:
    expected = [
        log_loss([y], [softmax(s, 1.0)], labels=range(6))
        for s, y in zip(S.tolist(), LABELS, strict=True)
    ]
    np.testing.assert_allclose(label_loss(STUDENT, LABEL), expected, rtol=1e-4)
    some = torch.tensor([-1, 5, -1, 2, 4])
    assert (label_loss(STUDENT, some) == 0).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("difficulty", [0.5, 3.0])
def test_hard_tiles_lean_on_the_label(difficulty: float) -> None:
    labels = [0, -1, 2, 2, 4]
    expected = []
    for s, t, label in zip(S.tolist(), T.tolist(), labels, strict=True):
        share = math.exp(-difficulty * kl(softmax(t, 1.0), softmax(s, 1.0))) if label >= 0 else 1
        mixed = [share * p + (1 - share) * (c == label) for c, p in enumerate(softmax(t, 4.0))]
        expected.append(16 * kl(mixed, softmax(s, 4.0)))
    loss = mixed_kl_loss(STUDENT, TEACHER, torch.tensor(labels), difficulty=difficulty)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    plain = mixed_kl_loss(STUDENT, TEACHER, LABEL, difficulty=0.0)
    torch.testing.assert_close(plain, kl_loss(STUDENT, TEACHER))


def test_logit_losses_are_0_at_the_teacher_and_do_not_see_order() -> None:
    order = torch.tensor([4, 2, 0, 1, 3])
    for loss in (kl_loss, multi_level_loss):
        torch.testing.assert_close(loss(TEACHER, TEACHER), torch.zeros(5), atol=1e-6, rtol=0)
        shifted = loss(STUDENT + 7, TEACHER - 3)
        torch.testing.assert_close(shifted, loss(STUDENT, TEACHER), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            loss(STUDENT[order], TEACHER[order]), loss(STUDENT, TEACHER)[order]
        )
    same = decoupled_loss(TEACHER, TEACHER, LABEL)
    torch.testing.assert_close(same, torch.zeros(5), atol=1e-5, rtol=0)


def test_gradients_of_kl_keep_their_size_as_the_temperature_grows() -> None:
    sizes = []
    for temperature in (16.0, 32.0, 64.0):
        s = STUDENT.float().requires_grad_()
        loss = kl_loss(s, TEACHER, temperature=temperature).sum()
        sizes.append(float(torch.autograd.grad(loss, s)[0].norm()))
    assert all(b == pytest.approx(a, rel=0.1) for a, b in pairwise(sizes))


def test_inputs_that_no_logit_loss_can_use_are_refused() -> None:
    with pytest.raises(DistillError, match="temperature must be above 0, -1 given"):
        kl_loss(STUDENT, TEACHER, temperature=-1)
    with pytest.raises(DistillError, match="at least one temperature"):
        multi_level_loss(STUDENT, TEACHER, temperatures=())
    with pytest.raises(DistillError, match="at least 2"):
        multi_level_loss(STUDENT[:1], TEACHER[:1])
    trainable = TEACHER.clone().requires_grad_()
    with pytest.raises(DistillError, match="requires gradients"):
        decoupled_loss(STUDENT, trainable, LABEL)
    with pytest.raises(DistillError, match="requires gradients"):
        multi_level_loss(STUDENT, trainable)
