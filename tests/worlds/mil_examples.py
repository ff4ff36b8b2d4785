"""Small bags and models that the tests of MIL share."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel, make_aggregator
from downstream.run.model_tables import AGGREGATORS

WIDTH = 12
TASK = BagTask(kind="multiclass", outputs=3)
NAMES = sorted(AGGREGATORS)


@pytest.fixture
def doubles() -> Iterator[None]:
    """One thread, float64, a seed."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def places(name: str, tiles: int, rng: np.random.Generator) -> Tensor:
    """Places on a sparse grid; for the hierarchical model also of up to 3 children each."""
    side = int(tiles**0.5) + 3
    cell = rng.permutation(side * side)[:tiles]
    coarse = np.stack([cell // side, cell % side], axis=1)
    if name != "hierarchical":
        return torch.from_numpy(coarse)
    parents = coarse[1:] if tiles > 1 else coarse  # the first has no children: background
    some = [parents * 4 + rng.integers(0, 4, size=parents.shape) for _ in range(3)]
    fine = np.unique(np.concatenate(some), axis=0)
    level = np.repeat([0, 1], [len(coarse), len(fine)])[:, None]
    return torch.from_numpy(np.hstack([level, np.concatenate([coarse, fine])]))


def bags(name: str, sizes: tuple[int, ...] = (7, 30, 1)) -> tuple[list[Tensor], list[Tensor]]:
    rng = np.random.default_rng(0)
    coords = [places(name, tiles, rng) for tiles in sizes]
    return [torch.from_numpy(rng.standard_normal((len(c), WIDTH))) for c in coords], coords


def model(name: str, task: BagTask = TASK) -> MilModel:
    options = {} if name in {"mean", "max"} else {"hidden": 16}
    return MilModel(make_aggregator(name, WIDTH, task, **options), task)
