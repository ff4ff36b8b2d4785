"""A moving average of a module: the teacher of self-distillation, or the student that is kept.

Running statistics of batch norms are made equal on all workers, so that all have one average.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from distill.errors import DistillError
from distill.losses.over_workers import mean_over_workers, worker_count

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Ema(nn.Module):
    """A copy of a module that follows its parameters, in evaluation mode and without gradients.

    An update sets each parameter to momentum x old + (1 - momentum) x the module's. Buffers, as
    those of batch norms, are copied: an average of running variances or counters has no meaning.

    Args:
        source: the module to follow; it is copied now.
        momentum: function that returns the momentum of a step, counted from 0.
    """

    def __init__(self, source: nn.Module, momentum: Callable[[int], float]) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(requires_grad=False)
        self.momentum = momentum
        self.eval()

    def train(self, mode: bool = True) -> "Ema":  # noqa: FBT001, FBT002
        """Stay in evaluation mode, also if the containing module is put in training mode."""
        return super().train(mode=False)

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the copy without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module, step: int) -> None:
        """Update the averages from the module after optimiser step `step`.

        Raises:
            DistillError: the module's parameters or buffers have other names than the copy's, as
                in a wrapped or compiled module.
        """
        own_parameters, source_parameters = (
            dict(self.module.named_parameters()),
            dict(source.named_parameters()),
        )
        own_buffers, source_buffers = (
            dict(self.module.named_buffers()),
            dict(source.named_buffers()),
        )
        wrong = sorted(
            (own_parameters.keys() ^ source_parameters.keys())
            | (own_buffers.keys() ^ source_buffers.keys())
        )
        if wrong:
            msg = (
                f"the module to follow differs from the copy in {', '.join(wrong[:3])} "
                f"({len(wrong)} names); give it without the wrapper, as when it was copied"
            )
            raise DistillError(msg)
        follow = 1 - self.momentum(step)
        for name, parameter in own_parameters.items():
            parameter.lerp_(source_parameters[name].to(parameter.dtype), follow)
        for name, buffer in own_buffers.items():
            buffer.copy_(source_buffers[name])


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Set the running statistics of the batch norms in training to their mean over all workers.

    Each worker has seen its own tiles. A moving average copies these buffers, and a checkpoint
    holds those of the first worker: workers with other ones would have other teachers, and a run
    that continues from a checkpoint would differ from an undisturbed run.
    """
    if worker_count() == 1:
        return
    statistics = [
        buffer
        for norm in module.modules()
        if isinstance(norm, BATCH_NORMS) and norm.training
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    if not statistics:
        return
    means = mean_over_workers(torch.cat([buffer.flatten() for buffer in statistics]))
    sizes = [buffer.numel() for buffer in statistics]
    for buffer, mean in zip(statistics, torch.split(means, sizes), strict=True):
        buffer.copy_(mean.view(buffer.shape))
