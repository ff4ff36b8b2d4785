"""Two experts: what each head learns from, what holds them together, what it is good for."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn

from downstream.mil.aggregators.experts import Experts
from downstream.mil.aggregators.pooling import Abmil, MeanPool
from downstream.mil.losses import BagTask, balanced_order, expert_agreement
from downstream.mil.padded_bags import MilError, pad_bags
from tests.worlds.mil_examples import WIDTH, doubles

__all__ = ["doubles"]  # the fixture
pytestmark = pytest.mark.usefixtures("doubles")
TASK = BagTask(kind="multiclass", outputs=3)


def tailed(bags: int, *, seed: int) -> tuple[list[Tensor], Tensor]:
    """Nine of ten bags are of class 0; classes differ by the mean of a feature each."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, size=bags, p=[0.9, 0.05, 0.05])
    label[:3] = [0, 1, 2]
    features = rng.standard_normal((bags, 10, WIDTH))
    features[np.arange(bags), :, label] += 0.6
    return list(torch.from_numpy(features)), torch.from_numpy(label)


def test_the_loss_is_its_three_terms() -> None:
    net = Experts(Abmil(WIDTH, hidden=8, attention=4, dropout=0.0), TASK)
    bags, label = tailed(6, seed=0)
    one, other = pad_bags(bags[:4]), pad_bags(bags[2:])
    losses = net.pair_loss(one, label[:4], other, label[2:])
    a, b = net.opinions(one.x, one.mask), net.opinions(other.x, other.mask)
    apart = torch.cat([expert_agreement(o.natural, o.balanced) for o in (a, b)]).mean()
    expected = (
        nn.functional.cross_entropy(a.natural, label[:4])
        + nn.functional.cross_entropy(b.balanced, label[2:])
        + 0.25 * apart
    )
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    mean = (a.natural.softmax(dim=1) + a.balanced.softmax(dim=1)) / 2
    pooled = net(one.x, one.mask).logits.softmax(dim=1).double()
    torch.testing.assert_close(pooled, mean, rtol=1e-5, atol=1e-6)


def test_the_balanced_head_finds_rare_classes() -> None:
    net = Experts(MeanPool(WIDTH), TASK, agreement=0.0)
    bags, label = tailed(120, seed=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for epoch in range(8):
        orders = (torch.randperm(120).numpy(), balanced_order(label.numpy(), seed=epoch))
        for rows in zip(*(order.reshape(-1, 12) for order in orders), strict=True):
            one, other = (pad_bags([bags[at] for at in part]) for part in rows)
            loss = net.pair_loss(one, label[rows[0]], other, label[rows[1]])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    test, truth = tailed(300, seed=2)
    batch = pad_bags(test)
    with torch.no_grad():
        opinions = net.opinions(batch.x, batch.mask)
    natural = balanced_accuracy_score(truth, opinions.natural.argmax(dim=1))
    balanced = balanced_accuracy_score(truth, opinions.balanced.argmax(dim=1))
    assert balanced > natural + 0.1
    assert balanced > 0.6  # a third is chance; six bags of rare classes to learn from


def test_experts_are_for_classes() -> None:
    with pytest.raises(MilError, match="a binary task"):
        Experts(MeanPool(WIDTH), BagTask(kind="binary"))
