"""Angles between predictions and features, in units of a teacher's own spread of angles.

Shape letters: B samples, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.numeric import check_detached, full_precision
from distill.losses.over_workers import mean_over_workers


def angle_between(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Return the angle between vectors in radians, [B], 0 to pi; gradients are finite everywhere.

    It is 2 atan2(|u - v|, |u + v|) of unit vectors, which is exact for small angles, where the arc
    cosine has no finite gradient. Source: Kahan 2006, "How futile are mindless assessments of
    roundoff in floating-point computation?".

    >>> angle_between(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).tolist()
    [1.5707963705062866]
    """
    with full_precision(a_BD, b_BD) as (a, b):
        u_BD, v_BD = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        apart_B, together_B = (_length(x) for x in (u_BD - v_BD, u_BD + v_BD))
        return 2 * torch.atan2(apart_B, together_B)


def _length(x_BD: Tensor) -> Tensor:
    """Return the length of vectors, with a gradient of 0 at 0."""
    squared_B = x_BD.square().sum(dim=-1)
    is_zero_B = squared_B == 0
    return torch.where(is_zero_B, 0, torch.where(is_zero_B, 1, squared_B).sqrt())


class Dispersion(nn.Module):
    """The mean squared angle of a teacher's features to their mean direction, over training.

    Both means run over samples and workers, so that all workers have one; they are in checkpoints.
    Source: the angular loss of C-RADIOv4 (arXiv 2601.17237), which divides by it, so that a teacher
    whose vectors are all alike weighs as much as one whose vectors differ.

    Args:
        dim: width D of the features.
        momentum: share of the old means that a step keeps.
    """

    direction: Tensor
    squared: Tensor
    weight: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.99) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            msg = f"the momentum of a dispersion is from 0 to below 1, {momentum} given"
            raise DistillError(msg)
        self.momentum = momentum
        self.register_buffer("direction", torch.zeros(dim))
        self.register_buffer("squared", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def forward(self, x_BD: Tensor, weight_B: Tensor | None = None) -> Tensor:
        """Return the dispersion in squared radians; in training the samples are taken in before.

        Args:
            x_BD: raw features.
            weight_B: 0 for samples that do not count.
        """
        if self.training:
            kept_BD = x_BD if weight_B is None else x_BD[weight_B > 0]
            unit_BD, follow = F.normalize(kept_BD.float(), dim=-1), 1 - self.momentum
            self.direction.lerp_(_mean(unit_BD, self.direction), follow)
            angle_B = angle_between(unit_BD, self.direction.expand_as(unit_BD))
            self.squared.lerp_(_mean(angle_B.square(), self.squared), follow)
            self.weight.lerp_(torch.ones_like(self.weight), follow)
        # The means start at 0; their share of real samples is in `weight`.
        return (self.squared / self.weight.clamp_min(1e-12)).clamp_min(1e-6)


def _mean(values: Tensor, old: Tensor) -> Tensor:
    """Return the mean over the samples of all workers; the old one if no worker has any."""
    mean = mean_over_workers(values.mean(dim=0), len(values))
    return torch.where(mean.isnan(), old, mean)


def angle_loss(prediction_BD: Tensor, target_BD: Tensor, dispersion: Tensor) -> Tensor:
    """Compute angle^2 / dispersion, [B].

    Source: C-RADIOv4 (arXiv 2601.17237).

    Args:
        prediction_BD: predictions in the space of raw features; in that of targets with mean 0
            there is no mean direction.
        target_BD: raw features.
        dispersion: the teacher's, from `Dispersion`.

    Raises:
        DistillError: the target requires gradients.
    """
    check_detached(target_BD, "an angle loss")
    return angle_between(prediction_BD, target_BD).square() / dispersion
