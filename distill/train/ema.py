"""A moving average of a module: the teacher of self-distillation, or the student that is kept."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from distill.errors import DistillError


@dataclass(frozen=True, kw_only=True)
class CosineMomentum:
    """A momentum that rises from `start` to `end` along half a cosine over `steps`, then stays.

    Source: DINO (from 0.996 to 1; 0.992 in DINOv2).

    Attributes:
        start: at step 0.
        end: from step `steps` on.
        steps: at least 1.

    >>> [CosineMomentum(start=0.5, end=1, steps=2)(step) for step in (0, 1, 2, 9)]
    [0.5, 0.75, 1.0, 1.0]
    """

    start: float = 0.992
    end: float = 1.0
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1 or self.steps < 1:
            msg = (
                f"start={self.start}, end={self.end}, steps={self.steps} given; "
                "0 <= start <= end <= 1 and at least one step needed"
            )
            raise DistillError(msg)

    def __call__(self, step: int) -> float:
        """The momentum of a step counted from 0."""
        done = min(step, self.steps) / self.steps
        return self.end - (self.end - self.start) * (1 + math.cos(math.pi * done)) / 2


class Ema(nn.Module):
    """A copy of a module whose parameters follow it, in evaluation mode and without gradients.

    Parameters become momentum x own + (1 - momentum) x the module's. Buffers (of batch norms, for
    instance) are copied as they are: a mean of running variances and of counters is neither.

    Args:
        source: what to follow; it is copied now.
        momentum: of each step, counted from 0.
    """

    def __init__(self, source: nn.Module, momentum: Callable[[int], float]) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(requires_grad=False)
        self.momentum = momentum
        self.eval()

    def train(self, mode: bool = True) -> "Ema":  # noqa: FBT001, FBT002
        """Stay in evaluation mode, also where the model that holds this is put in training mode."""
        return super().train(mode=False)

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the copy gives."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Follow the module after optimiser step `step`.

        Raises:
            DistillError: its parameters or buffers have other names, as those of a wrapped or
                compiled module do.
        """
        mine, theirs = dict(self.module.named_parameters()), dict(source.named_parameters())
        own, given = dict(self.module.named_buffers()), dict(source.named_buffers())
        wrong = sorted((mine.keys() ^ theirs.keys()) | (own.keys() ^ given.keys()))
        if wrong:
            msg = (
                f"the module to follow differs from the copy in {', '.join(wrong[:3])} "
                f"({len(wrong)} names); give it without the wrapper, as when it was copied"
            )
            raise DistillError(msg)
        follow = 1 - self.momentum(step)
        for name, parameter in mine.items():
            parameter.lerp_(theirs[name].to(parameter.dtype), follow)
        for name, buffer in own.items():
            buffer.copy_(given[name])
