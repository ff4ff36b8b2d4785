"""Relation losses: similarities between samples, or a tile's tokens, of student and teacher.

They need no head, since widths may differ: only similarities are compared.

Shape letters: B samples, N tokens, D embedding of the teacher, E of the student.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import check_batch, check_detached, full_precision


def batch_relation_loss(student_BE: Tensor, teacher_BD: Tensor) -> Tensor:
    """Compute the gap of relations between samples, [B]: sum over j of (G_t - G_s)_ij^2 / B.

    G is F F^T with rows at length 1. The mean over the batch is the squared Frobenius distance /
    B^2. From 0 to 4 / B.

    Source: Tung and Mori 2019, "Similarity-preserving knowledge distillation"; the sample level
    of HVisKD (Sci Rep 2025). The former weighs it by 3000.

    Raises:
        DistillError: the teacher's features require gradients, or B < 2.
    """
    check_detached(teacher_BD, "a relation loss")
    check_batch(len(student_BE), "a relation loss over the batch")
    with full_precision(student_BE, teacher_BD) as (s_BE, t_BD):
        gap_BB = _relations(s_BE) - _relations(t_BD)
        return gap_BB.square().sum(dim=1) / len(gap_BB)


def token_relation_loss(
    student_BNE: Tensor, teacher_BND: Tensor, mask_BN: Tensor | None = None
) -> Tensor:
    """Compute the gap of relations between tokens, [B]: mean over pairs of (R_t - R_s)^2.

    R is P P^T with rows at length 1, so the mean is the squared Frobenius distance / N^2. Masked
    tokens are left out; a sample with no token left counts 0.

    Source: the region level of HVisKD (Sci Rep 2025); its weights are not public.

    Args:
        student_BNE: the student's tokens, on the same grid as the teacher's.
        teacher_BND: the teacher's tokens, or the features of the tiles under a tile.
        mask_BN: true at the tokens that count; all count if None.

    Raises:
        DistillError: the teacher's tokens require gradients, or the numbers of tokens differ.
    """
    check_detached(teacher_BND, "a relation loss")
    if student_BNE.shape[:2] != teacher_BND.shape[:2]:
        msg = (
            f"the student has {tuple(student_BNE.shape[:2])} samples and tokens, the teacher "
            f"{tuple(teacher_BND.shape[:2])}; align the grids first"
        )
        raise DistillError(msg)
    if mask_BN is None:
        mask_BN = torch.ones_like(teacher_BND[..., 0], dtype=torch.bool)
    with full_precision(student_BNE, teacher_BND) as (s_BNE, t_BND):
        kept_BN1 = mask_BN.bool()[..., None]
        student_BNN = _relations(torch.where(kept_BN1, s_BNE, 0))
        teacher_BNN = _relations(torch.where(kept_BN1, t_BND, 0))
        pairs_B = mask_BN.bool().sum(dim=1).clamp_min(1).square()
        return (teacher_BNN - student_BNN).square().sum(dim=(1, 2)) / pairs_B


def _relations(x_BD: Tensor) -> Tensor:
    """Return the products of all rows [..., B, B], with the rows of this matrix at length 1."""
    return F.normalize(x_BD @ x_BD.mT, dim=-1)
