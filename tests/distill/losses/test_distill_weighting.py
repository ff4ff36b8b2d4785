"""Weights of teachers, heads and gates."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.weighting import (
    BalanceWeighting,
    KeepMaxWeighting,
    StaticWeighting,
    make_weighting,
)
from distill.students.fusion import check_after_gate
from distill.students.heads import HEADS, Heads, LadderHead, ResidualHead, make_head, mlp_head
from downstream.mil.layers.teacher_fusion import TeacherGate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def losses_of(teachers: int = 3, samples: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(teachers, samples, generator=seeded(seed)) + 0.1


# ------------------------------------------------------------------ weighting


@pytest.mark.parametrize("name", ["static", "keep-max", "balance"])
def test_weights_add_up_to_1_and_carry_no_gradient(name: str) -> None:
    losses = losses_of().requires_grad_()
    weights = make_weighting(name, 3)(losses, seeded())
    assert weights.shape == losses.shape
    assert not weights.requires_grad
    assert float(weights.min()) >= 0
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(8))
    (gradient,) = torch.autograd.grad((weights * losses).sum(), losses)
    torch.testing.assert_close(gradient, weights)


def test_static_weights_are_shares() -> None:
    weights = StaticWeighting([1, 3, 0])(losses_of())
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.75, 0.0])[:, None].expand(3, 8))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**31))
def test_keep_max_always_keeps_the_largest(teachers: int, keep: float, seed: int) -> None:
    losses = losses_of(teachers, 16, seed)
    weights = KeepMaxWeighting(teachers, keep=keep)(losses, seeded(seed))
    for b in range(16):
        column, kept = losses[:, b].tolist(), weights[:, b].tolist()
        assert kept[column.index(max(column))] > 0
        count = sum(weight > 0 for weight in kept)
        assert kept == pytest.approx([(weight > 0) / count for weight in kept])


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_keep_max_keeps_others_with_the_probability_one_by_one(keep: float) -> None:
    n = 20_000
    losses = losses_of(3, n)
    kept = KeepMaxWeighting(3, keep=keep)(losses, seeded(1)) > 0
    others = torch.ones(3, n, dtype=torch.bool).scatter(0, losses.argmax(dim=0)[None], value=False)
    slack = 4 * math.sqrt(keep * (1 - keep) / n)
    for teacher in range(3):
        rate = kept[teacher][others[teacher]].float().mean().item()
        assert rate == pytest.approx(keep, abs=1.5 * slack)
    # Independent of each other: both others of a sample are kept with the square.
    both = (kept & others).sum(dim=0) == 2
    assert both.float().mean().item() == pytest.approx(keep**2, abs=slack)


def test_keep_max_at_its_ends_is_repeatable_and_needs_a_generator() -> None:
    losses = losses_of()
    alone = KeepMaxWeighting(3, keep=0)(losses, seeded())
    assert torch.equal(alone.argmax(dim=0), losses.argmax(dim=0))
    torch.testing.assert_close(alone.max(dim=0).values, torch.ones(8))
    torch.testing.assert_close(
        KeepMaxWeighting(3, keep=1)(losses, seeded()), torch.full((3, 8), 1 / 3)
    )
    torch.testing.assert_close(
        KeepMaxWeighting(3)(losses, seeded(5)), KeepMaxWeighting(3)(losses, seeded(5))
    )
    with pytest.raises(DistillError, match="give a generator"):
        KeepMaxWeighting(3)(losses)


def test_balance_by_hand() -> None:
    balance, running = BalanceWeighting(3, momentum=0.9), [0.0, 0.0, 0.0]
    for step in range(4):
        losses = losses_of(seed=step) * torch.tensor([1.0, 10.0, 100.0])[:, None]
        weights = balance(losses)
        rows = losses.double().tolist()
        running = [0.9 * old + 0.1 * sum(row) / 8 for old, row in zip(running, rows, strict=True)]
        inverse = [(1 - 0.9 ** (step + 1)) / mean for mean in running]
        expected = [mean / sum(inverse) for mean in inverse]
        np.testing.assert_allclose(weights[:, 0], expected, rtol=1e-4)
    assert torch.equal(weights, weights[:, :1].expand_as(weights))


def test_balance_takes_away_the_scale_of_a_teacher() -> None:
    plain, scaled = BalanceWeighting(3), BalanceWeighting(3)
    for step in range(3):
        losses = losses_of(seed=step)
        by_hundred = losses * torch.tensor([1.0, 1.0, 100.0])[:, None]
        before, after = plain(losses) * losses, scaled(by_hundred) * by_hundred
        shares = [part.mean(dim=1) / part.mean(dim=1).sum() for part in (before, after)]
        torch.testing.assert_close(shares[1], shares[0])


def test_balance_stands_still_in_evaluation_and_goes_on_from_its_state() -> None:
    balance = BalanceWeighting(2)
    torch.testing.assert_close(balance.eval()(losses_of(2)), torch.full((2, 8), 0.5))
    balance.train()(losses_of(2))
    state = {key: tensor.clone() for key, tensor in balance.state_dict().items()}
    balance.eval()(losses_of(2, seed=1))
    assert all(torch.equal(tensor, state[key]) for key, tensor in balance.state_dict().items())
    again = BalanceWeighting(2)
    again.load_state_dict(state)
    torch.testing.assert_close(
        again(losses_of(2, seed=2)), balance.train()(losses_of(2, seed=2)), rtol=0, atol=0
    )


def test_wrong_weightings_are_refused() -> None:
    with pytest.raises(DistillError, match="known are static, keep-max, balance"):
        make_weighting("drop", 2)
    with pytest.raises(DistillError, match="1 weights given for 2 teachers"):
        make_weighting("static", 2, weights=[1])
    with pytest.raises(DistillError, match="'balance' computes its own"):
        make_weighting("balance", 2, weights=[1, 2])
    with pytest.raises(DistillError, match="not all 0"):
        StaticWeighting([0, 0])
    with pytest.raises(DistillError, match=r"from 0 to 1, 1\.5"):
        KeepMaxWeighting(2, keep=1.5)
    with pytest.raises(DistillError, match="below 1"):
        BalanceWeighting(2, momentum=1)
    with pytest.raises(DistillError, match="at least one teacher"):
        BalanceWeighting(0)
    with pytest.raises(DistillError, match=r"losses are \(3, 8\); \(2, samples\)"):
        BalanceWeighting(2)(losses_of(3))


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"ladder"}))
@pytest.mark.parametrize("shape", [(4,), (4, 9)])
def test_heads_work_on_embeddings_and_tokens_and_train(name: str, shape: tuple[int, ...]) -> None:
    head = make_head(name, 5, width=7, dim_out=3).eval()
    x = torch.randn(*shape, 5)
    out = head(x)
    assert out.shape == (*shape, 3)
    torch.testing.assert_close(head(x[:1]), out[:1])
    gradients = torch.autograd.grad(out.square().sum(), list(head.parameters()))
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_residual_head_without_its_blocks_is_its_ends() -> None:
    head, x = ResidualHead(5, 7, 3, blocks=2), torch.randn(4, 5)
    before = head(x)
    for name, parameter in head.blocks.named_parameters():
        if name.split(".")[1] == "2":
            parameter.data.zero_()
    assert not torch.allclose(head(x), before)
    torch.testing.assert_close(head(x), head.last(head.first(x)))


def test_ladder_is_the_sum_of_its_rungs_and_depends_on_each_level() -> None:
    head = LadderHead([5, 6, 8], 7, 3)
    levels = [torch.randn(4, dim, requires_grad=True) for dim in (5, 6, 8)]
    rungs = [rung(level) for rung, level in zip(head.rungs, levels, strict=True)]
    torch.testing.assert_close(head(levels), rungs[0] + rungs[1] + rungs[2])
    gradients = torch.autograd.grad(head(levels).sum(), levels)
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)
    for wrong, received in ((levels[:2], "2 levels"), (levels[0], "one tensor")):
        with pytest.raises(DistillError, match=f"3 levels got {received}"):
            head(wrong)


def test_each_teacher_and_token_has_its_own_head() -> None:
    targets = {("uni.v2", "cls"): 3, ("uni.v2", "patch"): 4, ("", "cls"): 5}
    heads = Heads("mlp", {"cls": 6, "patch": 7}, targets, width=8)
    cls, patch = torch.randn(2, 6), torch.randn(2, 9, 7)
    out = heads({key: cls if key[1] == "cls" else patch for key in targets})
    assert list(heads({("", "cls"): cls})) == [("", "cls")]
    assert {key: tuple(prediction.shape) for key, prediction in out.items()} == {
        ("uni.v2", "cls"): (2, 3),
        ("uni.v2", "patch"): (2, 9, 4),
        ("", "cls"): (2, 5),
    }
    one, two = (set(map(id, head.parameters())) for head in list(heads.heads)[:2])
    assert not one & two
    with pytest.raises(DistillError, match=r"outputs \['patch'\] given; the student has \['cls'\]"):
        Heads("linear", {"cls": 6}, targets, width=8)


def test_ladders_take_all_levels_of_an_output() -> None:
    heads = Heads("ladder", {"cls": [5, 6]}, {("uni", "cls"): 3}, width=4)
    out = heads({("uni", "cls"): [torch.randn(2, 5), torch.randn(2, 6)]})
    assert out["uni", "cls"].shape == (2, 3)


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(DistillError, match="known are linear, mlp, normed, residual, ladder"):
        make_head("transformer", 5, width=7, dim_out=3)
    with pytest.raises(DistillError, match="takes one level, 2 given"):
        make_head("mlp", [5, 5], width=7, dim_out=3)


# ------------------------------------------------------------------ gates


def gate_gradient(gate: nn.Module, after: nn.Module, tokens_BKD: Tensor, score: Tensor) -> float:
    out = after(gate(tokens_BKD))
    # Weighed by a fixed random vector: a plain sum after a norm is 0 whatever comes in.
    loss = (out * torch.randn(out.shape, generator=seeded(9))).sum()
    return float(torch.autograd.grad(loss, score)[0].norm())


class GateFirst(nn.Module):
    """The wrong order: tokens are weighed as they are."""

    def __init__(self, teachers: int) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(teachers))

    def forward(self, x_BKD: Tensor) -> Tensor:
        return torch.softmax(self.score, dim=0)[:, None] * x_BKD


def test_failure_4_a_gate_before_a_norm_is_erased_and_ours_is_not() -> None:
    torch.manual_seed(0)
    x_BKD = torch.randn(6, 3, 16)
    wrong, gate = GateFirst(3), TeacherGate(3, 16)
    last = gate.score[-1]
    assert isinstance(last, nn.Linear)
    erased = gate_gradient(wrong, nn.LayerNorm(16), x_BKD, wrong.score)
    kept = gate_gradient(gate, nn.Linear(16, 16), x_BKD, last.weight)
    assert erased < 1e-2
    assert kept > 1
    # The size of a gated token is its share, and no longer that of the teacher's features.
    scale = torch.tensor([1.0, 100.0, 0.01])[None, :, None]
    torch.testing.assert_close(gate(x_BKD * scale), gate(x_BKD), rtol=5e-2, atol=5e-2)
    sizes_BK = gate(x_BKD).square().mean(dim=-1).sqrt()
    torch.testing.assert_close(sizes_BK, gate.shares(x_BKD), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gate.shares(x_BKD).sum(dim=1), torch.ones(6))


NORMS = [nn.LayerNorm(8), nn.RMSNorm(8)]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_failure_4_a_gate_before_a_norm_is_refused(norm: nn.Module) -> None:
    x_BKD = 3 * torch.randn(5, 3, 8, generator=seeded())
    torch.testing.assert_close(norm(x_BKD), norm(0.2 * x_BKD), rtol=1e-2, atol=1e-3)
    message = f"before {type(norm).__name__} is erased.*after the norm"
    for following in (norm, nn.Sequential(nn.Dropout(), nn.Sequential(norm, nn.Linear(8, 8)))):
        with pytest.raises(DistillError, match=message):
            check_after_gate(following)


def test_a_gate_before_anything_else_is_welcome() -> None:
    check_after_gate(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
    for keeps_sizes in (nn.BatchNorm1d(3), nn.LayerNorm((3, 8))):
        check_after_gate(keeps_sizes)
    check_after_gate(mlp_head(3, 4, 5))


def test_gates_depend_on_all_teachers() -> None:
    gate, x_BKD = TeacherGate(3, 8), torch.randn(2, 3, 8, generator=seeded()).requires_grad_()
    for k, other in itertools.permutations(range(3), 2):
        (gradient,) = torch.autograd.grad(gate.shares(x_BKD)[:, k].sum(), x_BKD)
        assert float(gradient[:, other].abs().sum()) > 0
