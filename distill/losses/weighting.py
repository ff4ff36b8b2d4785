"""Weights of teachers for each sample; the weights of a sample add up to 1, without gradient.

Losses of teachers come stacked, [T, B]; `(weights * losses).sum(0)` is the loss per sample.

Shape letters: T teachers, B samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.over_workers import loss_over_workers, mean_over_workers

SMALL = 1e-12


def self_paced_weights(loss_B: Tensor, share: float) -> Tensor:
    """Return weights [B] that let the tiles of the smallest losses count, of all workers' tiles.

    With N tiles over all workers, the k = ceil(share N) smallest losses weigh N / k each, all
    others 0, so that the mean over tiles is the mean over those that count. Among equal losses the
    first tiles count.

    Source: self-paced learning (Kumar, Packer and Koller 2010) with its hard weights; samples enter
    by growing loss as in self-paced resistance learning (SPRL), without its resistance term, whose
    form was not seen.

    Args:
        loss_B: loss of each tile of this worker.
        share: share of the tiles that count.
    """

    def weights(loss_N: Tensor) -> Tensor:
        count = math.ceil(share * len(loss_N))
        order_N = loss_N.argsort(stable=True)
        return torch.zeros_like(loss_N).scatter(0, order_N[:count], len(loss_N) / count)

    return loss_over_workers(weights, loss_B.detach().float())


class Weighting(nn.Module):
    """Weights [T, B] of losses [T, B]; a module, so that its state is in checkpoints.

    Args:
        teachers: number of teachers T.
    """

    def __init__(self, teachers: int) -> None:
        super().__init__()
        if teachers < 1:
            msg = f"a weighting needs at least one teacher, {teachers} given"
            raise DistillError(msg)
        self.teachers = teachers

    @torch.no_grad()
    def forward(self, losses_TB: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the weights [T, B], float32, without gradient.

        Args:
            losses_TB: loss of each teacher and sample.
            generator: generator of random draws; on any device.

        Raises:
            DistillError: the number of rows is not the number of teachers.
        """
        if losses_TB.ndim != 2 or len(losses_TB) != self.teachers:
            msg = f"losses are {tuple(losses_TB.shape)}; ({self.teachers}, samples) needed"
            raise DistillError(msg)
        weights_TB = self.weights(losses_TB.detach().float(), generator)
        return weights_TB / weights_TB.sum(dim=0)

    def weights(self, losses_TB: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return weights [T, B] with any sum above 0 per sample."""
        raise NotImplementedError


class StaticWeighting(Weighting):
    """Weights that are the same for all samples.

    Args:
        weights: one weight per teacher, at least 0 and not all 0; only their ratios count.
    """

    share: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__(len(weights))
        if min(weights) < 0 or sum(weights) <= 0:
            msg = f"weights of teachers must be at least 0 and not all 0, {list(weights)} given"
            raise DistillError(msg)
        self.register_buffer("share", torch.tensor(weights, dtype=torch.float32))

    def weights(self, losses_TB: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the fixed weights."""
        return self.share[:, None].expand_as(losses_TB)


class KeepMaxWeighting(Weighting):
    """Weights that keep a sample's teacher of the largest loss, and others with a probability.

    The kept teachers weigh the same. Teachers that are learned already so do not slow down others.
    Source: Sariyildiz et al. 2024, "UNIC: universal classification models via multi-teacher
    distillation" (arXiv 2408.05088), which keeps with 0.5. It divides weights by their sum
    over the batch, so that samples that keep more teachers weigh more; here all weigh the same.
    Among equal losses the first teacher is kept.

    Args:
        teachers: number of teachers T.
        keep: probability of each teacher but that of the largest loss.
    """

    def __init__(self, teachers: int, *, keep: float = 0.5) -> None:
        super().__init__(teachers)
        if not 0 <= keep <= 1:
            msg = f"the probability to keep a teacher must be from 0 to 1, {keep} given"
            raise DistillError(msg)
        self.keep = keep

    def weights(self, losses_TB: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return weights of 1 for a teacher that is kept, else 0.

        Raises:
            DistillError: no generator is given, so that a run could not be repeated.
        """
        if generator is None:
            msg = "teachers are dropped at random: give a generator, so that the run is repeatable"
            raise DistillError(msg)
        drawn_TB = torch.rand(losses_TB.shape, generator=generator, device=generator.device)
        kept_TB = (drawn_TB < self.keep).to(losses_TB.device)
        return kept_TB.scatter(0, losses_TB.argmax(dim=0, keepdim=True), value=True).float()


class BalanceWeighting(Weighting):
    """Weights of 1 / running mean of each teacher's loss, so that all contribute the same share.

    The mean is over samples and workers and without gradient, so a student gains nothing from a
    large loss. Each call in training mode updates the mean before it is used.

    Args:
        teachers: number of teachers T.
        momentum: share of the old mean that a step keeps.
    """

    mean: Tensor

    def __init__(self, teachers: int, *, momentum: float = 0.99) -> None:
        super().__init__(teachers)
        if not 0 <= momentum < 1:
            msg = f"the momentum of a balance must be from 0 to below 1, {momentum} given"
            raise DistillError(msg)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(teachers))

    def weights(self, losses_TB: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return 1 / running mean, the same for all samples; equal before the first step."""
        if self.training:
            mean_T = mean_over_workers(losses_TB.mean(dim=1), losses_TB.shape[1])
            self.mean.lerp_(mean_T, 1 - self.momentum)
        # The mean starts at 0, so it is too small by a factor, the same for all: ratios are right.
        return (1 / self.mean.clamp_min(SMALL))[:, None].expand_as(losses_TB)


def make_weighting(
    name: str, teachers: int, *, weights: Sequence[float] | None = None, keep: float = 0.5
) -> Weighting:
    """Return a weighting by name: static (equal if no weights are passed), keep-max or balance.

    Raises:
        DistillError: the name is not known, or there is not one weight for each teacher.
    """
    if weights is not None and len(weights) != teachers:
        msg = f"{len(weights)} weights given for {teachers} teachers; give one each"
        raise DistillError(msg)
    if name == "static":
        return StaticWeighting(weights or [1.0] * teachers)
    if weights is not None:
        msg = f"weights {list(weights)} are for weighting 'static'; '{name}' computes its own"
        raise DistillError(msg)
    if name == "keep-max":
        return KeepMaxWeighting(teachers, keep=keep)
    if name == "balance":
        return BalanceWeighting(teachers)
    msg = f"no weighting '{name}' of teachers; known are static, keep-max, balance"
    raise DistillError(msg)
