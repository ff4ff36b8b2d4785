"""RRT-MIL: tiles are re-embedded by attention within regions, then across them, before pooling.

Attention within a region needs its whole score matrix, since a convolution runs over it. Scores are
made for some regions at a time and made again in the backward pass, so that memory is that of the
block.

Shape letters: B bags, N tiles, D feature width, E width, W regions, S places of a region, H heads,
R regions of a block, P prototypes.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.layers.tile_regions import Regions, equal_regions
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem

_BLOCK_SCORES = 2**18
_MOST_TILES = 1024


class Rrt(Aggregator):
    """Re-embedded regional transformer before ABMIL (Tang et al., CVPR 2024, arXiv 2402.17228).

    Written from the paper and from DearCaat/RRT-MIL with its defaults: one layer of regional
    attention (8 x 8 regions, 8 heads, convolution 15 wide), one of cross-region attention (3
    prototypes), no feed-forward networks, weights by Xavier's normal distribution. On a full
    square of tiles in raster order, whose side is a multiple of 8, it is the same. Differences:

    - The code folds the order of rows into a square and fills it up with zeros, which take part.
      Here regions are cut by coordinates (`equal_regions`), and nothing is filled up.
    - Above 65,536 tiles a bag has more regions, of about 1,024 tiles.
    - The convolution has no bias, which the softmax cancels.

    Args:
        width: feature width D.
        hidden: width E, a multiple of `heads`.
        dropout: dropout after the first layer.
        heads: attention heads of both layers.
        attention_dropout: dropout after either attention.
        strips: strips of a bag, and regions of a strip.
        kernel: width of the convolution over the queries of a region's scores, odd.
        prototypes: number P of vectors by which a region speaks to the others.
        attention: width of the pooling's attention.
    """

    coords = 2

    def __init__(
        self,
        width: int,
        *,
        hidden: int = 512,
        dropout: float = 0.25,
        heads: int = 8,
        attention_dropout: float = 0.1,
        strips: int = 8,
        kernel: int = 15,
        prototypes: int = 3,
        attention: int = 128,
    ) -> None:
        super().__init__()
        if hidden % heads or not kernel % 2:
            msg = (
                f"hidden={hidden}, heads={heads}, kernel={kernel}; the width is a multiple of the "
                "heads, and the kernel is odd"
            )
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.within = RegionAttention(hidden, heads, attention_dropout, kernel=kernel)
        self.prototypes = nn.Parameter(torch.empty(hidden, prototypes))
        self.across = RegionAttention(hidden, heads, attention_dropout)
        self.score = nn.Sequential(
            nn.Linear(hidden, attention, bias=False),
            nn.ReLU(),
            nn.Linear(attention, 1, bias=False),
        )
        self.width, self.strips = hidden, strips
        bound = hidden**-0.5
        nn.init.uniform_(self.prototypes, -bound, bound)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the attended tiles after both layers; attention is that of the pooling."""
        assert coords_BNK is not None  # `forward` has checked it
        regions = equal_regions(coords_BNK, mask_BN, strips=self.strips, most_tiles=_MOST_TILES)
        tiles = x_BND.shape[1]
        x_BNE = self.stem(x_BND)
        within_BWSE = self._within(regions.gather(self.norms[0](x_BNE)), regions.mask)
        x_BNE = x_BNE + regions.scatter(within_BWSE, tiles)
        across_BWSE = self._across(regions.gather(self.norms[1](x_BNE)), regions)
        x_BNE = self.norms[2](x_BNE + regions.scatter(across_BWSE, tiles))
        a_BN = masked_softmax(self.score(x_BNE)[..., 0], mask_BN)
        embedding = torch.einsum("bn,bne->be", a_BN.to(x_BNE.dtype), x_BNE)
        return Pooled(embedding=embedding, attention=a_BN)

    def _within(self, x_BWSE: Tensor, mask_BWS: Tensor) -> Tensor:
        """Return the tiles after attention within their region, a block of regions at a time."""
        x_RSE, mask_RS = x_BWSE.flatten(0, 1), mask_BWS.flatten(0, 1)
        size = max(1, _BLOCK_SCORES // (self.within.heads * mask_RS.shape[1] ** 2))
        blocks = [
            checkpoint(self.within, *part, use_reentrant=False)
            if torch.is_grad_enabled()
            else self.within(*part)
            for part in zip(torch.split(x_RSE, size), torch.split(mask_RS, size), strict=True)
        ]
        return torch.cat(blocks).view_as(x_BWSE)

    def _across(self, x_BWSE: Tensor, regions: Regions) -> Tensor:
        """Return the tiles' share of their region's prototypes, which have met all others'.

        A prototype of a region is a mean of its tiles, weighted by a softmax over them; what came
        of it is handed out by the same scores, from 0 for the least to 1 for the greatest of the
        region, times their softmax over the prototypes.
        """
        mask_BW1S = regions.mask[:, :, None]
        score_BWPS = (x_BWSE @ self.prototypes.to(x_BWSE.dtype)).transpose(2, 3)
        has_BW = regions.mask.any(dim=2)
        share_BWPS = masked_softmax(score_BWPS, mask_BW1S | ~has_BW[..., None, None])
        speaker_BPWE = (share_BWPS.to(x_BWSE.dtype) @ x_BWSE).transpose(1, 2)
        mask_RW = has_BW[:, None].expand(speaker_BPWE.shape[:3]).flatten(0, 1)
        met_BPWE = self.across(speaker_BPWE.flatten(0, 1), mask_RW).view_as(speaker_BPWE)
        least = score_BWPS.masked_fill(~mask_BW1S, torch.inf).amin(dim=3, keepdim=True)
        most = score_BWPS.masked_fill(~mask_BW1S, -torch.inf).amax(dim=3, keepdim=True)
        # an empty region has no least and no greatest score
        least = torch.where(has_BW[..., None, None], least, 0)
        most = torch.where(has_BW[..., None, None], most, 0)
        height_BWPS = (score_BWPS - least) / (most - least + 1e-8)
        handed_BWPS = height_BWPS * torch.softmax(score_BWPS, dim=2)
        told_BWSE: Tensor = handed_BWPS.transpose(2, 3).to(met_BPWE.dtype) @ met_BPWE.transpose(
            1, 2
        )
        return told_BWSE


class RegionAttention(nn.Module):
    """Multi-head self-attention of short sequences, with a convolution over the scores.

    The convolution of head h adds to the score of query i and key j those of the queries around i
    with the same j (EPEG of the paper), which tells a place in the region from another.

    Args:
        width: width E.
        heads: number H of heads.
        dropout: dropout after the output layer.
        kernel: width of the convolution; 0 for none.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, kernel: int = 0) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.heads = heads
        self.around = (
            nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
            if kernel
            else None
        )

    def forward(self, x_RSE: Tensor, mask_RS: Tensor) -> Tensor:
        """Return the attended tokens [R, S, E]; those of a region without any are of no use."""
        parts = self.qkv(x_RSE).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        score_RHSS = q * q.shape[-1] ** -0.5 @ k.mT
        if self.around is not None:
            # a query that is not there is zero to the convolution, as beyond the region's end
            there_RHSS = score_RHSS * mask_RS[:, None, :, None]
            score_RHSS = score_RHSS + self.around(there_RHSS)
        open_RS = mask_RS | ~mask_RS.any(dim=1, keepdim=True)
        share_RHSS = masked_softmax(score_RHSS, open_RS[:, None, None])
        mixed_RSE: Tensor = self.out((share_RHSS.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return mixed_RSE
