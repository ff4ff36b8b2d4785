"""Attention from coarse tokens to the fine tokens under them; some tokens are missing.

Source: HMSA of PatHME (hvcl/PatHME, `layers/hmsa.py`): 4 layers, 4 heads. In each layer
each mid token first attends to its own children, then all coarse tokens attend to all fine ones.

Shape letters: B regions, M mid tokens, C fine tokens under each, N = M C, Q queries, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.layers import MultiHeadAttention


@dataclass(frozen=True, kw_only=True)
class HierarchyInputs:
    """Tokens that hierarchical attention works on.

    Attributes:
        mid: mid tokens [B, M, D].
        mid_there: true at the mid tokens that exist [B, M].
        others: tokens of the coarse stream without children: the region's own token and the
            prompts [B, P, D].
        fine: fine tokens under each mid token [B, M, C, D].
        fine_there: true at the fine tokens that exist [B, M, C].
    """

    mid: Tensor
    mid_there: Tensor
    others: Tensor
    fine: Tensor
    fine_there: Tensor


@dataclass(frozen=True, kw_only=True)
class HierarchyOutputs:
    """Tokens after hierarchical attention.

    Attributes:
        mid: mid tokens [B, M, D].
        region: mean over the mid tokens that exist and all other tokens of the coarse stream
            [B, D].
    """

    mid: Tensor
    region: Tensor


class HierarchyLayer(nn.Module):
    """Localised attention of mid tokens, then global attention of all coarse tokens.

    Args:
        width: width D of the tokens.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own, self.all = MultiHeadAttention(width, heads), MultiHeadAttention(width, heads)
        self.own_norm, self.all_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, mid_BMD: Tensor, others_BPD: Tensor, level: HierarchyInputs
    ) -> tuple[Tensor, Tensor]:
        """Return the mid tokens [B, M, D] and the other tokens [B, P, D] after one layer."""
        query = F.normalize(mid_BMD.float(), dim=-1).to(mid_BMD.dtype)
        attended_BM = self.own(
            query.flatten(0, 1)[:, None], level.fine.flatten(0, 1), level.fine_there.flatten(0, 1)
        )
        mid_BMD = self.own_norm(mid_BMD + attended_BM.view_as(mid_BMD))
        both_BQD = torch.cat([others_BPD, mid_BMD], dim=1)
        attended = self.all(both_BQD, level.fine.flatten(1, 2), level.fine_there.flatten(1, 2))
        both_BQD = self.all_norm(both_BQD + attended)
        others_BPD, mid_BMD = both_BQD.split([others_BPD.shape[1], mid_BMD.shape[1]], dim=1)
        return mid_BMD, others_BPD


class Hierarchy(nn.Module):
    """Layers of localised and global attention, with a mean over tokens as the region's vector.

    Kept: two steps a layer, queries of length 1 in the first, residual and norm after each.
    Changed: masks for tiles that do not exist; no dropout, since all random draws come from the
    run's own generator. Tokens have no positions here, so that outputs turn with the grids.

    Args:
        width: width D of the tokens.
        heads: number of attention heads.
        layers: number of layers.
    """

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HierarchyLayer(width, heads) for _ in range(layers))

    def forward(self, level: HierarchyInputs) -> HierarchyOutputs:
        """Return the mid tokens after attention to the fine tokens, and the region's vector."""
        mid_BMD, others_BPD = level.mid, level.others
        for layer in self.layers:
            mid_BMD, others_BPD = layer(mid_BMD, others_BPD, level)
        mask_BM1 = level.mid_there[..., None]
        total_BD = others_BPD.sum(dim=1) + torch.where(mask_BM1, mid_BMD, 0).sum(dim=1)
        count_B1 = others_BPD.shape[1] + level.mid_there.sum(dim=1, keepdim=True)
        return HierarchyOutputs(mid=mid_BMD, region=total_BD / count_B1)


def group_by_parent(grid_BRR: Tensor, side: int) -> Tensor:
    """Group fine cells [B, R, R, ...] by the mid cell above them [B, side^2, C, ...].

    >>> group_by_parent(torch.arange(16).view(1, 4, 4), 2)[0, 1].tolist()
    [2, 3, 6, 7]
    """
    (samples, cells, _), rest = grid_BRR.shape[:3], grid_BRR.shape[3:]
    ratio = cells // side
    split = grid_BRR.reshape(samples, side, ratio, side, ratio, *rest)
    return split.transpose(2, 3).reshape(samples, side**2, ratio**2, *rest)
