"""Self-distillation against float64 by hand, and their limits: DINO, iBOT, KoLeo, centre, EMA."""

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill.errors import DistillError
from distill.losses.self_losses import (
    Centre,
    dino_loss,
    ibot_loss,
    koleo_loss,
    random_mask,
)
from distill.losses.weighting import BalanceWeighting
from distill.train.ema import Ema

RNG = np.random.default_rng(0)
K = 6


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(logit) for logit in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(student: list[float], teacher: list[float], centre: list[float]) -> float:
    """Compute cross-entropy by hand, at temperatures 0.1 and 0.05."""
    p = softmax([(t - c) / 0.05 for t, c in zip(teacher, centre, strict=True)])
    q = softmax([s / 0.1 for s in student])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def centred() -> tuple[Centre, list[float]]:
    """A centre after two steps, and the same by hand."""
    centre, by_hand = Centre(K, momentum=0.9), [0.0] * K
    for _ in range(2):
        logits = RNG.normal(0.1, 0.3, size=(4, K))
        centre.update(torch.from_numpy(logits))
        for k in range(K):
            by_hand[k] = 0.9 * by_hand[k] + 0.1 * sum(logits[:, k]) / 4
    return centre, by_hand


def test_dino_with_centring_and_temperatures_by_hand() -> None:
    s, t = RNG.normal(0, 0.3, size=(2, 5, K))
    centre, by_hand = centred()
    np.testing.assert_allclose(centre.mean, by_hand, rtol=1e-5)
    probabilities = centre.probabilities(torch.from_numpy(t), temperature=0.05)
    loss = dino_loss(torch.from_numpy(s), probabilities)
    expected = [cross_entropy(a, b, by_hand) for a, b in zip(s.tolist(), t.tolist(), strict=True)]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_teacher_is_without_gradient_and_the_student_is_not() -> None:
    centre = Centre(K)
    t, s = torch.randn(2, 3, K, requires_grad=True).unbind()
    probabilities = centre.probabilities(t, temperature=0.05)
    centre.update(t)
    assert not probabilities.requires_grad
    assert not centre.mean.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert dino_loss(s, probabilities).requires_grad


def test_dino_is_least_at_the_teacher_and_sharper_with_a_lower_temperature() -> None:
    t, centre = torch.randn(4, K, generator=torch.Generator().manual_seed(0)), Centre(K)
    p = centre.probabilities(t, temperature=0.1)
    entropy = -(p * p.log()).sum(dim=1)
    torch.testing.assert_close(dino_loss(t, p), entropy)
    assert bool((dino_loss(t.roll(1, 0), p) > entropy).all())
    sharp = centre.probabilities(t, temperature=0.04)
    assert bool((sharp.max(dim=1).values > p.max(dim=1).values).all())


def test_a_centre_subtracts_the_logits_that_all_samples_share() -> None:
    """A prototype that wins everywhere goes on winning without a centre: collapse to one."""
    shared = torch.tensor([5.0] + [0.0] * (K - 1))
    logits = shared + 0.1 * torch.randn(64, K, generator=torch.Generator().manual_seed(0))
    centre = Centre(K, momentum=0)
    assert set(centre.probabilities(logits, temperature=0.05).argmax(dim=1).tolist()) == {0}
    centre.update(logits)
    torch.testing.assert_close(centre.mean, logits.mean(dim=0))
    assert len(set(centre.probabilities(logits, temperature=0.05).argmax(dim=1).tolist())) == K
    assert "mean" in centre.state_dict()


def test_centre_of_tokens_is_that_of_all_of_them() -> None:
    tokens, flat, grid = torch.randn(2, 3, K), Centre(K), Centre(K)
    grid.update(tokens)
    flat.update(tokens.reshape(6, K))
    torch.testing.assert_close(grid.mean, flat.mean)


def test_ibot_by_hand_counts_masked_tokens_only() -> None:
    s, t = RNG.normal(0, 0.3, size=(2, 3, 4, K))
    mask = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], bool)
    centre, by_hand = centred()
    probabilities = centre.probabilities(torch.from_numpy(t), temperature=0.05)
    student = torch.from_numpy(s).requires_grad_()
    loss = ibot_loss(student, probabilities, torch.from_numpy(mask))
    expected = []
    for i in range(3):
        tokens = [
            cross_entropy(s[i, n].tolist(), t[i, n].tolist(), by_hand)
            for n in range(4)
            if mask[i, n]
        ]
        expected.append(sum(tokens) / len(tokens) if tokens else 0.0)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert bool(((gradient.abs().sum(dim=-1) > 0).numpy() == mask).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**31))
def test_masks_leave_a_token_and_hide_one(tokens: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(50, tokens, generator, probability=1, share=(0, 1))
    assert 1 <= int(mask.sum(dim=1).min()) <= int(mask.sum(dim=1).max()) <= tokens - 1


def test_masks_have_the_given_share_and_are_repeatable() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return random_mask(4000, 100, torch.Generator().manual_seed(seed))

    mask = drawn(0)
    masked = mask.any(dim=1)
    assert float(masked.float().mean()) == pytest.approx(0.5, abs=0.04)
    share = mask[masked].float().mean(dim=1)
    assert float(share.mean()) == pytest.approx(0.3, abs=0.01)
    assert 0.1 <= float(share.min()) < 0.12 < 0.48 < float(share.max()) <= 0.5
    each = mask.float().mean(dim=0)
    assert float(each.max() - each.min()) < 0.06
    assert torch.equal(mask, drawn(0))
    assert not torch.equal(mask, drawn(1))
    with pytest.raises(DistillError, match=r"share=\(0\.5, 0\.1\)"):
        random_mask(2, 9, torch.Generator(), share=(0.5, 0.1))


def test_koleo_by_hand() -> None:
    x = RNG.normal(size=(6, 3))
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in x]
    expected = []
    for i, row in enumerate(rows):
        gaps = [math.dist(row, other) for j, other in enumerate(rows) if j != i]
        expected.append(-math.log(min(gaps) + 1e-8))
    np.testing.assert_allclose(koleo_loss(torch.from_numpy(x)), expected, rtol=1e-4)
    np.testing.assert_allclose(koleo_loss(torch.from_numpy(9 * x)), expected, rtol=1e-4)


def test_koleo_of_a_collapsed_batch_is_large_and_finite() -> None:
    same = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(same)
    torch.testing.assert_close(loss.detach(), torch.full((4,), -math.log(1e-8)))
    (gradient,) = torch.autograd.grad(loss.sum(), same)
    assert bool(gradient.isfinite().all())
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(koleo_loss(poles), torch.full((2,), -math.log(2.0)))
    with pytest.raises(DistillError, match="at least 2"):
        koleo_loss(torch.ones(1, 3))


def test_descending_koleo_spreads_a_batch() -> None:
    x = 1 + 0.01 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    before = float(koleo_loss(x).mean())
    for _ in range(50):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(koleo_loss(x).mean(), x)
        x = (x - 0.05 * gradient).detach()
    assert float(koleo_loss(x).mean()) < before - 2


def test_temperatures_momenta_and_empty_batches_are_refused() -> None:
    with pytest.raises(DistillError, match="temperature must be above 0"):
        Centre(K).probabilities(torch.zeros(1, K), temperature=0)
    with pytest.raises(DistillError, match="below 1, 1 given"):
        Centre(K, momentum=1)
    with pytest.raises(DistillError, match="no logits"):
        Centre(K).update(torch.zeros(0, K))


# ------------------------------------------------------------------ moving average


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def weight_of(ema: Ema) -> torch.Tensor:
    return ema.get_parameter("module.0.weight")


def rising(step: int) -> float:
    """A momentum that rises from 0.5 to 1 in four steps."""
    return 1 - 0.5 * (1 + math.cos(math.pi * min(step, 4) / 4)) / 2


def test_ema_by_hand_and_buffers_are_copied() -> None:
    torch.manual_seed(0)
    source = network()
    ema = Ema(source, rising)
    by_hand = {
        name: parameter_value.double().clone()
        for name, parameter_value in source.named_parameters()
    }
    for step in range(6):
        source(torch.randn(8, 3))
        for parameter in source.parameters():
            parameter.data += torch.randn(parameter.shape)
        momentum = rising(step)
        ema.update(source, step)
        for name, parameter_value in source.named_parameters():
            by_hand[name] = (
                momentum * by_hand[name] + (1 - momentum) * parameter_value.detach().double()
            )
    for name, parameter_value in ema.module.named_parameters():
        np.testing.assert_allclose(
            parameter_value.detach(), by_hand[name].detach(), rtol=1e-4, atol=1e-5
        )
    for (_, own_buffer), (_, source_buffer) in zip(
        ema.module.named_buffers(), source.named_buffers(), strict=True
    ):
        assert torch.equal(own_buffer, source_buffer)


def test_ema_is_a_frozen_copy_in_evaluation_mode() -> None:
    source = network()
    ema = Ema(source, lambda _step: 1.0)
    holder = nn.ModuleList([ema]).train()
    assert not any(part.training for part in ema.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())
    weights, kept = source.get_parameter("0.weight"), weight_of(ema).clone()
    weights.data.zero_()
    ema.update(source, 0)
    assert torch.equal(weight_of(ema), kept)
    assert not ema(torch.ones(2, 3, requires_grad=True)).requires_grad
    always = Ema(source, lambda _step: 0.0)
    weights.data.fill_(2.0)
    always.update(source, 0)
    assert torch.equal(weight_of(always), weights)


def test_ema_of_another_module_is_refused() -> None:
    ema = Ema(network(), lambda _step: 0.9)
    with pytest.raises(DistillError, match="without the wrapper"):
        ema.update(nn.Sequential(network()), 0)


# ------------------------------------------------------------------ several workers


def work(rank: int, folder: str) -> None:
    """Save the centre and the balance of one of two workers, after both got losses."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    centre, balance = Centre(2, momentum=0), BalanceWeighting(2, momentum=0)
    centre.update(torch.tensor([[1.0, 10.0]]) * (1 + 2 * rank))
    weights = balance(torch.tensor([[1.0 + 2 * rank], [6.0]]))
    torch.save((centre.mean, weights), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_centre_and_balance_are_those_of_all_workers(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0
    for rank in range(2):
        mean, weights = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(mean, torch.tensor([2.0, 20.0]))
        torch.testing.assert_close(weights[:, 0], torch.tensor([0.75, 0.25]))
