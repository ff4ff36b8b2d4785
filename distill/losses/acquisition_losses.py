"""Contrast between acquisitions of the same tiles: scanners, stains, or variants of a stain.

Shape letters: B samples, V variants, D embedding.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import check_batch, check_positive, full_precision


def acquisition_nce_loss(
    x_BVD: Tensor,
    site_B: Tensor,
    slide_B: Tensor,
    *,
    temperature: float = 0.1,
    own_slide: bool = False,
) -> Tensor:
    """Compute InfoNCE whose negatives are of the anchor's own acquisition, [B].

    For each ordered pair of variants a, b the anchor is tile i in variant a, its positive the same
    tile in variant b, its negatives tiles j in variant a of the same site. What tells acquisitions
    apart so never tells a negative from the anchor, and the loss does not reward to keep it. Tiles
    of the anchor's slide are no negatives, as they may show the same. The loss is the mean over
    pairs of -log(e^p / (e^p + sum_j e^n_j)) with cosines / temperature; 0 without a negative.

    Source: the acquisition-aware InfoNCE of SPECTRA (RyanKim17920/SPECTRA), which masks negatives
    of the anchor's core; here the slide stands for the core. Its temperature was not seen.

    Args:
        x_BVD: embeddings of each tile's variants; gradients flow to all.
        site_B: number of each tile's site or scanner.
        slide_B: number of each tile's slide.
        temperature: divisor of the cosines.
        own_slide: whether tiles of the anchor's own slide are negatives too.

    Raises:
        DistillError: fewer than two variants or samples, or the temperature is not above 0.
    """
    check_positive(temperature, "temperature")
    check_batch(len(x_BVD), "contrast between acquisitions")
    if x_BVD.shape[1] < 2:
        msg = f"acquisitions of a tile are contrasted: {x_BVD.shape[1]} given, at least 2 needed"
        raise DistillError(msg)
    is_negative_BB = site_B[:, None] == site_B[None]
    if own_slide:
        is_negative_BB = is_negative_BB & ~torch.eye(len(x_BVD), dtype=torch.bool).to(site_B.device)
    else:
        is_negative_BB = is_negative_BB & (slide_B[:, None] != slide_B[None])
    with full_precision(x_BVD) as (x,):
        unit_VBD = F.normalize(x, dim=-1).transpose(0, 1) / temperature**0.5
        losses = []
        for a, b in itertools.permutations(range(len(unit_VBD)), 2):
            positive_B1 = (unit_VBD[a] * unit_VBD[b]).sum(dim=-1, keepdim=True)
            negative_BB = unit_VBD[a] @ unit_VBD[a].T
            negative_BB = negative_BB.masked_fill(~is_negative_BB, -torch.inf)
            logits = torch.cat([positive_B1, negative_BB], dim=1)
            losses.append(torch.logsumexp(logits, dim=1) - positive_B1[:, 0])
        return torch.stack(losses).mean(dim=0)
