"""Losses of one prediction against one target, per sample, in float32 whatever comes in.

A target that requires gradients is refused. All but `info_nce_loss` and `log_sum_loss` accept
tokens [B, N, D] as well and then return [B, N]; see `numeric.weighted_mean`.

Shape letters: B samples, N tokens, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import check_batch, check_detached, check_positive, full_precision
from distill.targets.target import NORMS, UnitLength


def cosine_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Compute 1 - cosine similarity, [B]; from 0 (same direction) to 2.

    Raises:
        DistillError: the target requires gradients.

    >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])).tolist()
    [1.0]
    """
    check_detached(target_BD, "a cosine loss")
    return 1 - F.cosine_similarity(prediction_BD.float(), target_BD.float(), dim=-1)


def smooth_l1_loss(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Compute smooth L1 with beta 1, mean over channels, [B].

    Raises:
        DistillError: the target requires gradients.

    >>> smooth_l1_loss(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])).tolist()
    [1.5]
    """
    check_detached(target_BD, "smooth L1")
    loss_BD = F.smooth_l1_loss(prediction_BD.float(), target_BD.float(), reduction="none")
    return loss_BD.mean(dim=-1)


def match_loss(prediction_BD: Tensor, target_BD: Tensor, *, cosine_weight: float) -> Tensor:
    """Compute cosine_weight x cosine + (1 - cosine_weight) x smooth L1, [B].

    Source: AM-RADIO and Theia use 0.9 and 0.1.
    """
    cosine = cosine_loss(prediction_BD, target_BD)
    if cosine_weight == 1:
        return cosine
    return cosine_weight * cosine + (1 - cosine_weight) * smooth_l1_loss(prediction_BD, target_BD)


@dataclass(frozen=True, kw_only=True)
class FeatureMatch:
    """Computes `match_loss` for one normalisation of targets; settings without effect are refused.

    On vectors of length 1 smooth L1 is (1 - cos) / D: at D = 1280 a term of 0.0008 of the cosine.

    Attributes:
        targets: the normalisation, one of `target.NORMS`.
        cosine_weight: weight of the cosine, 0 to 1; smooth L1 has the rest.

    Raises:
        DistillError: the normalisation is not known, the weight is outside 0 to 1, or smooth L1
            would be redundant.
    """

    targets: str
    cosine_weight: float = 0.9

    def __post_init__(self) -> None:
        if self.targets not in NORMS:
            msg = f"no normalisation '{self.targets}' of targets; known are {', '.join(NORMS)}"
            raise DistillError(msg)
        if not 0 <= self.cosine_weight <= 1:
            msg = f"cosine_weight must be from 0 to 1, {self.cosine_weight} given"
            raise DistillError(msg)
        unit = self.targets == UnitLength.name
        if unit and self.cosine_weight < 1:
            msg = (
                f"smooth L1 (weight {1 - self.cosine_weight:g}) on L2-normalised targets is "
                "(1 - cos) / D, so it adds nothing to the cosine; take targets 'phi-s' or "
                "'z-score', or cosine_weight=1"
            )
            raise DistillError(msg)

    def __call__(self, prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
        """Compute the loss [B], or [B, N] of tokens."""
        return match_loss(prediction_BD, target_BD, cosine_weight=self.cosine_weight)


def info_nce_loss(prediction_BD: Tensor, target_BD: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compute symmetric in-batch contrast, [B]: predictions among all targets, and vice versa.

    It is the mean of two cross-entropies over cosines / temperature, -log softmax at (i, i) along
    rows and along columns; log B if all samples are equal.

    Source: van den Oord et al. 2018 (arXiv 1807.03748), both ways as in CLIP; OMNI adds it at a
    weight of 0.1 and a temperature of 0.1.

    Raises:
        DistillError: the target requires gradients, the temperature is not above 0, or B < 2.
    """
    check_detached(target_BD, "in-batch contrast")
    check_batch(len(prediction_BD), "in-batch contrast")
    check_positive(temperature, "temperature")
    with full_precision(prediction_BD, target_BD) as (p_BD, t_BD):
        logits_BB = F.normalize(p_BD, dim=-1) @ F.normalize(t_BD, dim=-1).T / temperature
        diagonal = torch.arange(len(logits_BB), device=logits_BB.device)
        rows_B = F.cross_entropy(logits_BB, diagonal, reduction="none")
        columns_B = F.cross_entropy(logits_BB.T, diagonal, reduction="none")
        return (rows_B + columns_B) / 2


def log_sum_loss(
    prediction_BD: Tensor, target_BD: Tensor, *, power: float = 4.0, floor: float = 1e-6
) -> Tensor:
    """Compute the log of the sum over channels of |prediction - target|^power, [B].

    The logarithm damps large differences: the gradient falls as 1 / distance, so that outliers and
    the scale of a teacher matter little, and near the target the floor keeps it finite.

    Source: G2L (arXiv 2510.11176) names it and takes it from Miles and Mikolajczyk 2024,
    "Understanding the role of the projector in knowledge distillation". G2L's power was not seen;
    the latter's code takes 4, normalises both sides over the batch, and has one logarithm for the
    whole batch: here each sample has its own.

    Args:
        prediction_BD: output of the projection.
        target_BD: normalised targets.
        power: power to which each difference is raised.
        floor: number that is added to the sum.

    Raises:
        DistillError: the target requires gradients, or power or floor are not above 0.
    """
    check_detached(target_BD, "a log-sum loss")
    check_positive(power, "power")
    check_positive(floor, "floor")
    gap_BD = (prediction_BD.float() - target_BD.float()).abs()
    return (gap_BD.pow(power).sum(dim=-1) + floor).log()
