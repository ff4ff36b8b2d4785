"""Memory grows with the tiles of a bag, not with their square; and every aggregator learns."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from downstream.mil.aggregators.fusion import FusedAggregator, ShazamGate
from downstream.mil.aggregators.pooling import Abmil
from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel, make_aggregator
from downstream.mil.padded_bags import pad_bags
from tests.worlds.mil_examples import NAMES, WIDTH, doubles, model, places

__all__ = ["doubles"]  # the fixture
pytestmark = pytest.mark.usefixtures("doubles")


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return made


def footprint(net: MilModel, x: Tensor, coords: Tensor) -> tuple[int, int]:
    """Elements of a training step's largest tensor, and of all kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(part: Tensor) -> Tensor:
        kept[part.untyped_storage().data_ptr()] = part.numel()
        return part

    mode = Largest()  # type: ignore[no-untyped-call]
    with mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        prediction = net.train()(x, None, coords)
        net.loss(prediction, torch.tensor([1])).sum().backward()  # type: ignore[no-untyped-call]
    return mode.elements, sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "fused"])
def test_memory_grows_linearly(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    task, rng = BagTask(kind="multiclass", outputs=3), np.random.default_rng(0)
    net = model(name) if name != "fused" else MilModel(
        FusedAggregator(ShazamGate([5, 7], 8), Abmil(8, hidden=8), reconstruct=0.1), task
    )  # fmt: skip
    footprints = []
    for tiles in (1500, 4500):
        coords = places(name, tiles, rng)
        footprints.append((len(coords), *footprint(net, torch.randn(len(coords), WIDTH), coords)))
    (few, largest_few, kept_few), (many, largest_many, kept_many) = footprints
    growth = many / few
    assert largest_many < 1.3 * growth * largest_few
    assert kept_many < 1.3 * growth * kept_few
    assert largest_many < many * 4200  # the transformer's blocks: 512 queries x 8 heads


def cohort(name: str, bags: int, *, seed: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Every other bag has four tiles that lie off the rest."""
    rng = np.random.default_rng(seed)
    label = torch.arange(bags) % 2
    coords = [places(name, int(rng.integers(12, 20)), rng) for _ in range(bags)]
    features = [torch.from_numpy(rng.standard_normal((len(c), WIDTH))) for c in coords]
    for bag, y in zip(features, label.tolist(), strict=True):
        bag[:4, 0] += 5.0 * y
    return features, coords, label


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_learns_a_planted_signal(name: str) -> None:
    """Padded batches, few steps; 0.5 is chance."""
    task = BagTask(kind="multiclass", outputs=2)
    options: dict[str, Any] = {} if name in {"mean", "max"} else {"hidden": 32, "dropout": 0.0}
    net = MilModel(make_aggregator(name, WIDTH, task, **options), task)
    features, coords, label = cohort(name, 48, seed=0)
    rate = 0.1 if name in {"mean", "max"} else 5e-3  # a linear layer alone
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = rng.permutation(48)[:12].tolist()
        batch = pad_bags([features[r] for r in rows], [coords[r] for r in rows])
        loss = net.loss(net(batch.x, batch.mask, batch.coords), label[rows]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    test, where, truth = cohort(name, 60, seed=1)
    batch = pad_bags(test, where)
    with torch.no_grad():
        pooled = net.eval()(batch.x, batch.mask, batch.coords)
    assert roc_auc_score(truth, task.scores(pooled.logits)[:, 1]) > 0.9
    if name in {"abmil", "clam_sb", "clam_mb"}:
        ranked = [
            roc_auc_score(np.arange(len(bag)) < 4, share[: len(bag)])
            for bag, share, y in zip(test, pooled.pooled.attention, truth, strict=True)
            if y
        ]
        assert np.mean(ranked) > 0.9
