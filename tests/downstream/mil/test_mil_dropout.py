"""Our dropout is torch's in law: rate, scale, gradient, seed; and the identity where torch's is."""

import pytest
import torch
from scipy import stats
from torch import nn

from downstream.mil.aggregators.dropout import Dropout


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(200_000,), (1, 501, 401)])
def test_units_are_dropped_with_their_probability_and_the_rest_scaled(
    p: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    y = Dropout(p).train()(torch.ones(shape))
    dropped = int((y == 0).sum())
    # 200,000 draws: a wrong rate of a percent of p is far outside
    assert stats.binomtest(dropped, y.numel(), p).pvalue > 1e-4
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - p)]), rtol=1e-3, atol=0)


def test_units_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5).train()(torch.ones(4 * 50_000)) != 0).view(-1, 4).double()
    # the four that share a word, and each with its neighbour in the next word
    between = torch.corrcoef(torch.cat([kept[:-1], kept[1:]], dim=1).T)
    assert float((between - torch.eye(8)).abs().max()) < 0.02


def test_gradient_passes_where_the_unit_did() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.25).train()(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_same_seed_same_units() -> None:
    x, drop = torch.randn(7, 13), Dropout(0.25).train()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one, other = drop(x), drop(x)
        torch.manual_seed(3)
        again = drop(x)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (1.0, True), (0.25, False)])
def test_ends_are_torchs_own(p: float, *, training: bool) -> None:
    x = torch.randn(5, 3)
    assert torch.equal(Dropout(p).train(training)(x), nn.Dropout(p).train(training)(x))


def test_bfloat16_stays_bfloat16() -> None:
    y = Dropout(0.25).train()(torch.ones(64, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
