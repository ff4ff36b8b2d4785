"""VICReg over two or more branches: views are drawn together without a teacher or negatives.

A privileged branch (a stain, nuclei, genes that only training has) is one more branch; each branch
is kept from collapsing on its own, so that none has to be detached.

Shape letters: B samples, D width of the projections.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import check_batch, full_precision

EPSILON = 1e-4


def vicreg_loss(
    branches: Sequence[Tensor],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> Tensor:
    """Compute VICReg of every pair of branches [B, D], mean over pairs, [B].

    The loss of a pair a, b is the sum of the mean squared difference of each sample, the mean of
    both branches' variance terms, and the sum of their covariance terms. The latter two are
    computed over the whole batch, and equal for all samples. The loss is symmetric, so the mean
    over the ordered pairs (a, b) and (b, a) is the mean over pairs.

    Source: Bardes, Ponce and LeCun 2022 (arXiv 2105.04906), with its weights 25, 25, 1; three
    branches as in TriDeNT (Farndale et al. 2023), which adds up the pairs.

    Raises:
        DistillError: fewer than two branches, fewer than two samples, or shapes differ.
    """
    _check_branches(branches)
    variances = [variance_loss(branch) for branch in branches]
    covariances = [covariance_loss(branch) for branch in branches]
    pairs = []
    for a, b in itertools.combinations(range(len(branches)), 2):
        gap_BD = branches[a].float() - branches[b].float()
        spread = variance_weight * (variances[a] + variances[b]) / 2
        mixed = covariance_weight * (covariances[a] + covariances[b])
        pairs.append(invariance_weight * gap_BD.square().mean(dim=1) + spread + mixed)
    return torch.stack(pairs).mean(dim=0)


def variance_loss(x_BD: Tensor) -> Tensor:
    """Return the mean of max(0, 1 - sqrt(variance + 1e-4)) over channels, one number."""
    deviation_D = (x_BD.float().var(dim=0) + EPSILON).sqrt()
    return (1 - deviation_D).clamp_min(0).mean()


def covariance_loss(x_BD: Tensor) -> Tensor:
    """Return the sum of squared covariances between different channels, over D; one number."""
    with full_precision(x_BD) as (x,):
        centred_BD = x - x.mean(dim=0)
        covariance_DD = centred_BD.T @ centred_BD / (len(x) - 1)
        squared_DD = covariance_DD.square()
        return (squared_DD.sum() - squared_DD.diagonal().sum()) / x.shape[1]


def _check_branches(branches: Sequence[Tensor]) -> None:
    if len(branches) < 2:
        msg = f"VICReg holds branches together: {len(branches)} given, at least 2 needed"
        raise DistillError(msg)
    shapes = {tuple(branch.shape) for branch in branches}
    if len(shapes) > 1:
        msg = f"branches of VICReg must have one shape, {sorted(shapes)} given; project them first"
        raise DistillError(msg)
    check_batch(len(branches[0]), "VICReg")
