"""Losses and means over the samples of all workers that train together.

A loss that compares the samples of a batch would depend on the number of workers if each compared
its own samples alone. So the samples are gathered, with their gradients, as DINOv2 and OpenCLIP do.
Workers' gradients are averaged: with a loss that is the mean over a worker's own samples, each
compared with all samples, the common gradient is that of one worker with all of them.

Shape letters: B samples of this worker, N of all workers, D channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor


def worker_count() -> int:
    """Return the number of workers that train together; 1 outside of such a training."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def mean_over_workers(mean: Tensor, samples: int | Tensor = 1) -> Tensor:
    """Return the mean over all workers of a detached tensor.

    Args:
        mean: this worker's mean.
        samples: number of samples of this worker's mean, its weight; 0 leaves the worker out.
    """
    if worker_count() == 1:
        return mean
    weight = torch.as_tensor(samples, dtype=torch.float32, device=mean.device).reshape(1)
    # With a weight of 0 the mean may be NaN, as that of no samples is.
    weighted = torch.where(weight > 0, mean.detach().float().flatten(), 0) * weight
    total = torch.cat([weighted, weight])
    torch.distributed.all_reduce(total)
    return (total[:-1] / total[-1]).view(mean.shape).to(mean.dtype)


def loss_over_workers(loss: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Compute a loss of a batch over the samples of all workers; return this worker's part [B].

    All workers must call it, in the same order. Each computes the loss of all N samples: for a loss
    of N x N similarities that is little beside the network up to some thousand samples.

    Args:
        loss: function of tensors [N, ...] that returns one loss for each sample [N].
        tensors: this worker's tensors [B, ...]; workers may have different numbers of samples.
    """
    if worker_count() == 1:
        return loss(*tensors)
    own = len(tensors[0])
    sizes = _sizes(own, tensors[0].device)
    start = sum(sizes[: torch.distributed.get_rank()])
    return loss(*(gathered(tensor.float(), sizes) for tensor in tensors))[start : start + own]


def gathered(x_BD: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the samples of all workers [N, D], in the order of ranks; gradients flow to all.

    Args:
        x_BD: samples of this worker.
        sizes: number of samples of each worker.
    """
    all_ND: Tensor = _Gathered.apply(x_BD, tuple(sizes))
    return all_ND


def sum_over_workers(x_D: Tensor) -> Tensor:
    """Return the sum of a tensor over all workers; gradients flow to all."""
    if worker_count() == 1:
        return x_D
    total_D: Tensor = _Summed.apply(x_D)
    return total_D


def _sizes(own: int, device: torch.device) -> list[int]:
    """Return the number of samples of each worker."""
    own_size = torch.tensor([own], device=device)
    sizes = [torch.empty_like(own_size) for _ in range(worker_count())]
    torch.distributed.all_gather(sizes, own_size)
    return [int(size) for size in sizes]


class _Gathered(torch.autograd.Function):
    """A gathering of all workers' samples; each worker gets the sum of the gradients of its own."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, sizes: tuple[int, ...]) -> Tensor:  # noqa: ANN401
        rank = torch.distributed.get_rank()
        ctx.start, ctx.own = sum(sizes[:rank]), sizes[rank]
        # Workers exchange tensors of one shape.
        padded = x_BD.new_zeros(max(sizes), *x_BD.shape[1:])
        padded[: len(x_BD)] = x_BD
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        total_ND = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total_ND)
        return total_ND[ctx.start : ctx.start + ctx.own], None


class _Summed(torch.autograd.Function):
    """A sum over workers; each worker gets the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, x_D: Tensor) -> Tensor:  # noqa: ANN401
        total_D = x_D.contiguous().clone()
        torch.distributed.all_reduce(total_D)
        return total_D

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401
        total_D = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total_D)
        return total_D
