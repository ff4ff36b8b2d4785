"""Helpers of all losses: float32 even under autocast, detached targets, means over masks.

Shape letters: B samples, N tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from distill.errors import DistillError


@contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors in float32, with autocast off: it would round products of matrices to bf16.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16):
    ...     with full_precision(torch.ones(2, 2, dtype=torch.float16)) as (x,):
    ...         (x @ x).dtype
    torch.float32
    """
    with torch.autocast(device_type=tensors[0].device.type, enabled=False):
        yield tuple(tensor.float() for tensor in tensors)


def check_detached(target: Tensor, loss_name: str) -> None:
    """Refuse a target that training could move.

    Raises:
        DistillError: the target requires gradients.
    """
    if target.requires_grad:
        msg = (
            f"the target of {loss_name} requires gradients, so teacher and student could meet in a "
            "constant; detach it (target.detach()) or compute it under no_grad"
        )
        raise DistillError(msg)


def check_batch(samples: int, loss_name: str) -> None:
    """Refuse a batch in which no sample has another one to be compared with.

    Raises:
        DistillError: fewer than two samples.
    """
    if samples < 2:
        msg = f"{loss_name} compares samples of a batch: {samples} given, at least 2 needed"
        raise DistillError(msg)


def check_positive(number: float, name: str) -> None:
    """Refuse a temperature, power or similar number that is not above 0.

    Raises:
        DistillError: the number is not above 0.
    """
    if not number > 0:
        msg = f"{name} must be above 0, {number} given"
        raise DistillError(msg)


def weighted_mean(values_BN: Tensor, weights_BN: Tensor | None = None) -> Tensor:
    """Average over all but the first axis, [B]; 0 for a sample with weights of 0 alone.

    Args:
        values_BN: one number per token; a grid [B, H, W] is accepted as well.
        weights_BN: weights of the same shape, at least 0: a mask, or the share that counts.

    >>> weighted_mean(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[1, 0], [0, 0]]))
    tensor([1., 0.])
    """
    numbers_BN = values_BN.float().flatten(1)
    if weights_BN is None:
        return numbers_BN.mean(dim=1)
    weights = weights_BN.flatten(1).float()
    # `where`, not a product: the number at a masked token may not be finite.
    kept = torch.where(weights > 0, numbers_BN, 0) * weights
    total_B = weights.sum(dim=1)
    return kept.sum(dim=1) / torch.where(total_B > 0, total_B, 1)
