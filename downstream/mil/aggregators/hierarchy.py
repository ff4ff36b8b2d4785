"""Attention over several mpps: a coarse tile looks at the fine tiles under it, then at all of them.

The bag holds the tiles of all levels; a tile's parent follows from its place. Bags are computed
one by one (levels are ragged); no scores of all coarse x all fine tiles are kept.

Shape letters: N tiles of a bag, P tiles of a level, F tiles of the finer level below it, R children
of a tile, D feature width, E width, H heads, B bags.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.aggregators.pooling import GatedAttention
from downstream.mil.layers.attention import MultiHeadAttention
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax


class Hierarchical(Aggregator):
    """Hierarchical multi-scale attention, after PatHME's HMSA head, pooled by gated attention.

    From the finest level up, each level's tiles attend to their own children (local), then to all
    tiles of the level below together with learnt prompts (global), each with a residual and a norm;
    the coarsest level is pooled. Differences from PatHME: it is trained here for the bag's label
    and not by self-distillation, on whole bags and not on regions of 1 + 16 + 256 tiles; a child
    that is background is masked, and a tile without children keeps what it has; prompts are keys
    of the global stage only; any number of levels.

    The places are (level, grid_y, grid_x), level 0 the coarsest; a tile's parent is at
    (level - 1, grid_y // ratio, grid_x // ratio). All levels are of one feature set.

    Args:
        width: feature width D.
        ratios: side of a tile in tiles of the next finer level, coarse to fine; (4, 4) is three
            levels as in PatHME.
        hidden: width E, a multiple of `heads`.
        heads: number H of attention heads.
        prompts: number of learnt keys and values beside the fine tiles.
        attention: width of the gated attention.
        dropout: dropout in all parts.
    """

    coords = 3

    def __init__(
        self,
        width: int,
        *,
        ratios: Sequence[int] = (4,),
        hidden: int = 256,
        heads: int = 4,
        prompts: int = 10,
        attention: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if hidden % heads or not ratios or min(ratios) < 2:
            msg = (
                f"ratios={tuple(ratios)}, hidden={hidden}, heads={heads}; give a ratio of 2 or "
                "more for each step between levels, and a width that is a multiple of the heads"
            )
            raise MilError(msg)
        self.stem = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.local = nn.ModuleList(CrossAttention(hidden, heads, dropout) for _ in ratios)
        self.whole = nn.ModuleList(CrossAttention(hidden, heads, dropout) for _ in ratios)
        self.prompts = nn.Parameter(torch.randn(len(ratios), prompts, hidden) * hidden**-0.5)
        self.attention = GatedAttention(hidden, attention, dropout=dropout)
        self.ratios, self.width = tuple(ratios), hidden

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the embedding of the tiles of all levels; attention is over the coarsest tiles.

        The extra `levels` [B, N] carries the attention down: a child has its parent's
        attention times its own share in the parent's local attention, so that it sums to 1 over
        each level whose tiles all have children.

        Raises:
            MilError: A level has no tiles, or a tile has no parent.
        """
        assert coords_BNK is not None  # `forward` has checked it
        embeddings, levels = [], []
        for x_ND, mask_N, coords_NK in zip(x_BND, mask_BN, coords_BNK, strict=True):
            embedding_E, share_N = self._bag(x_ND[mask_N], coords_NK[mask_N])
            embeddings.append(embedding_E)
            levels.append(share_N.new_zeros(len(mask_N)).masked_scatter(mask_N, share_N))
        levels_BN = torch.stack(levels)
        coarse_BN = levels_BN * (coords_BNK[..., 0] == 0)
        return Pooled(
            embedding=torch.stack(embeddings), attention=coarse_BN, extras={"levels": levels_BN}
        )

    def _bag(self, x_ND: Tensor, coords_N3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding [E] and attention [N] of one bag."""
        rows, order = _rows_of_levels(coords_N3, len(self.ratios) + 1), []
        h_NE = self.stem(x_ND)
        fine_FE = h_NE[rows[-1]]
        for step in reversed(range(len(self.ratios))):
            children_PR = children_rows(
                coords_N3[rows[step], 1:], coords_N3[rows[step + 1], 1:], self.ratios[step]
            )
            coarse_PE, share_PR = self._local(step, h_NE[rows[step]], fine_FE, children_PR)
            keys = torch.cat([fine_FE, self.prompts[step].to(fine_FE.dtype)])
            fine_FE = self.whole[step](coarse_PE, keys)
            order.append((children_PR, share_PR))
        score_P = self.attention(fine_FE[None])[0, 0]
        a_P = masked_softmax(score_P, torch.ones_like(score_P, dtype=torch.bool))
        shares = [a_P]
        for (children_PR, share_PR), below in zip(reversed(order), rows[1:], strict=True):
            child_shares = (shares[-1][:, None] * share_PR.to(a_P.dtype)).flatten()
            target = children_PR.flatten()
            # the last place takes what goes to children that are not there: nothing
            total = child_shares.new_zeros(len(below) + 1).index_add(0, target, child_shares)
            shares.append(total[:-1])
        share_N = a_P.new_zeros(len(x_ND)).scatter(0, torch.cat(rows), torch.cat(shares))
        return a_P.to(fine_FE.dtype) @ fine_FE, share_N

    def _local(
        self, step: int, coarse_PE: Tensor, fine_FE: Tensor, children_PR: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the coarse tiles after attention to their children, and the shares [P, R]."""
        is_there_PR = children_PR < len(fine_FE)
        padded = torch.cat([fine_FE, fine_FE.new_zeros(1, fine_FE.shape[1])])
        part: CrossAttention = self.local[step]  # type: ignore[assignment]
        return part.look_down(coarse_PE, padded[children_PR], is_there_PR)


class CrossAttention(nn.Module):
    """Attention of tiles to other tiles, then dropout, residual and norm, as in PatHME.

    Args:
        width: width E.
        heads: number H of attention heads.
        dropout: dropout of the attended values.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, recompute=True)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def look_down(
        self, x_PE: Tensor, child_PRE: Tensor, is_there_PR: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the tiles after attention to their own children, and the shares of the children.

        Queries are L2-normalised, as in PatHME.

        Returns:
            Tiles [P, E], unchanged if without children, and shares [P, R], mean over heads.
        """
        query_P1E = F.normalize(x_PE, dim=-1)[:, None]
        mixed_P1E, share_P1R = self.attention.with_shares(query_P1E, child_PRE, is_there_PR)
        changed_PE = self.norm(x_PE + self.dropout(mixed_P1E[:, 0]))
        has_children_P1 = is_there_PR.any(dim=1, keepdim=True)
        return torch.where(has_children_P1, changed_PE, x_PE), share_P1R[:, 0]

    def forward(self, x_PE: Tensor, key_FE: Tensor) -> Tensor:
        """Return the tiles [P, E] after attention to all keys."""
        mixed_PE = self.attention(x_PE[None], key_FE[None])[0]
        changed_PE: Tensor = self.norm(x_PE + self.dropout(mixed_PE))
        return changed_PE


def children_rows(coarse_P2: Tensor, fine_F2: Tensor, ratio: int) -> Tensor:
    """Return the rows of the fine tiles under each coarse tile, int64 [P, ratio^2]; F for none.

    Raises:
        MilError: A fine tile has no parent, or two tiles of a level have one place.
    """
    key_F, order_F = _place_numbers(fine_F2, fine_F2).sort()
    step = torch.arange(ratio, device=fine_F2.device)
    inside_R2 = torch.cartesian_prod(step, step)
    child_place_PR2 = coarse_P2[:, None] * ratio + inside_R2
    child_key_PR = _place_numbers(child_place_PR2, fine_F2).contiguous()
    at_PR = torch.searchsorted(key_F, child_key_PR).clamp(max=len(key_F) - 1)
    within_PR2 = (child_place_PR2 <= fine_F2.amax(dim=0)) & (child_place_PR2 >= fine_F2.amin(dim=0))
    is_present_PR = within_PR2.all(dim=-1) & (key_F[at_PR] == child_key_PR)
    if int(is_present_PR.sum()) != len(fine_F2) or bool((key_F[1:] == key_F[:-1]).any()):
        msg = (
            f"{int(is_present_PR.sum())} of {len(fine_F2)} fine tiles are under one of "
            f"{len(coarse_P2)} coarse tiles at ratio {ratio}; give each fine tile once, with its "
            "parent, and the ratio of the two grids"
        )
        raise MilError(msg)
    return torch.where(is_present_PR, order_F[at_PR], len(fine_F2))


def _place_numbers(place_2: Tensor, bounds_F2: Tensor) -> Tensor:
    """Return one number for each place (y, x), ascending by y, then x, within the bounds."""
    least_2, most_2 = bounds_F2.amin(dim=0), bounds_F2.amax(dim=0)
    y, x = (place_2 - least_2).long().unbind(dim=-1)
    return y * (most_2[1] - least_2[1] + 1).long() + x


def _rows_of_levels(coords_N3: Tensor, levels: int) -> list[Tensor]:
    """Return the row numbers of the tiles of each level.

    Raises:
        MilError: A level without tiles, or tiles of no level.
    """
    rows = [torch.nonzero(coords_N3[:, 0] == level)[:, 0] for level in range(levels)]
    counts = [len(part) for part in rows]
    if min(counts) == 0 or sum(counts) != len(coords_N3):
        msg = (
            f"{counts} of {len(coords_N3)} tiles are of levels 0 to {levels - 1}; give all of these"
        )
        raise MilError(msg)
    return rows
