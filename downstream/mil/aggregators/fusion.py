"""Fusion of several teachers' features of a tile into one vector, before any aggregator.

Features come side by side, as a feature set `a+b` of a lake is read. A teacher with a large scale
or width does not drown the others: each is normalised before anything is mixed.

Shape letters: B bags, N tiles, D width of all teachers together, K teachers, E fused width.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.layers.teacher_fusion import TeacherGate, TokenBlock
from downstream.mil.padded_bags import Aggregator, MilError, Pooled


class Concat(nn.Module):
    """Fusion by a norm and a linear layer for each teacher, side by side, then one layer.

    Args:
        widths: feature width of each teacher, in the order of the feature set.
        hidden: fused width E.
    """

    def __init__(self, widths: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.maps = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.join = nn.Sequential(nn.GELU(), nn.Linear(len(widths) * hidden, hidden))
        self.widths = list(widths)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return fused features [B, N, E]."""
        return self.join(torch.cat(_mapped_features(self, x_BND), dim=-1))  # type: ignore[no-any-return]


class ShazamGate(nn.Module):
    """Fusion of teachers as tokens of a tile: a gate weighs them, then attention mixes them.

    After Shazam (last layer's features only). Differences: the gate comes after the norm, because
    LayerNorm(w x) = LayerNorm(x) leaves a gate before it without effect; no norm follows the gate
    before the first product. `reconstruct` uses each teacher's own (fixed) features as targets
    where Shazam aligns trainable projections, which can meet in a constant.

    Args:
        widths: feature width of each teacher, in the order of the feature set.
        hidden: fused width E.
        blocks: attention blocks between the teachers of a tile, single-headed as in Shazam.
    """

    def __init__(self, widths: Sequence[int], hidden: int, *, blocks: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.maps = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.gate = TeacherGate(len(widths), hidden)
        self.blocks = nn.ModuleList(TokenBlock(hidden) for _ in range(blocks))
        self.back = nn.ModuleList(nn.Linear(hidden, width) for width in widths)
        self.widths = list(widths)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return fused features [B, N, E]: the mean of a tile's teachers."""
        mixed_BNKE = self.gate(self._tokens(x_BND))
        for block in self.blocks:
            mixed_BNKE = block(mixed_BNKE)
        fused_BNE: Tensor = mixed_BNKE.mean(dim=-2)
        return fused_BNE

    def shares(self, x_BND: Tensor) -> Tensor:
        """Return the gate's weights [B, N, K], which add up to 1 over teachers."""
        return self.gate.shares(self._tokens(x_BND))

    def reconstruct(self, fused_BNE: Tensor, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the loss of rebuilding teachers from the fused features [B], mean over teachers.

        1 - cosine + Huber (delta 1), as Shazam's distillation term, against each teacher's
        normalised features, which no parameter can move.
        """
        count_B = mask_BN.sum(dim=1)
        total_B = fused_BNE.new_zeros(len(fused_BNE), dtype=torch.float32)
        for back, part in zip(self.back, _teacher_columns(self, x_BND), strict=True):
            target = F.layer_norm(part.detach().float(), part.shape[-1:])
            rebuilt = back(fused_BNE).float()
            loss_BN = 1 - F.cosine_similarity(rebuilt, target, dim=-1)
            loss_BN = loss_BN + F.huber_loss(rebuilt, target, reduction="none").mean(dim=-1)
            total_B = total_B + torch.where(mask_BN, loss_BN, 0).sum(dim=1) / count_B
        return total_B / len(self.widths)

    def _tokens(self, x_BND: Tensor) -> Tensor:
        """Return one token per teacher [B, N, K, E], before the gate."""
        return torch.stack(_mapped_features(self, x_BND), dim=-2)


class FusedAggregator(Aggregator):
    """An aggregator of fused teachers; a term of the fusion is added to its loss.

    Args:
        fusion: a `Concat` or a `ShazamGate`.
        aggregator: aggregator of tiles of the fused width.
        reconstruct: weight of `ShazamGate.reconstruct` (Shazam: 0.01), 0 for none; its value,
            weight included, is added to the `penalty` [B] of the bag.
    """

    def __init__(
        self, fusion: Concat | ShazamGate, aggregator: Aggregator, *, reconstruct: float = 0.0
    ) -> None:
        super().__init__()
        if reconstruct and not isinstance(fusion, ShazamGate):
            msg = f"reconstruct={reconstruct} with {type(fusion).__name__}; it is ShazamGate's"
            raise MilError(msg)
        self.fusion, self.aggregator, self.reconstruct = fusion, aggregator, reconstruct
        self.width, self.branches = aggregator.width, aggregator.branches
        self.auxiliary_share, self.coords = aggregator.auxiliary_share, aggregator.coords

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the embedding of a bag: its tiles' teachers are fused, then its tiles pooled.

        Raises:
            MilError: The features are not as wide as the teachers together.
        """
        if x_BND.shape[-1] != sum(self.fusion.widths):
            msg = f"features are {x_BND.shape[-1]} wide; teachers have {self.fusion.widths}"
            raise MilError(msg)
        fused_BNE = self.fusion(x_BND)
        pooled: Pooled = self.aggregator(fused_BNE, mask_BN, coords_BNK)
        if self.training and self.reconstruct and isinstance(self.fusion, ShazamGate):
            loss_B = self.reconstruct * self.fusion.reconstruct(fused_BNE, x_BND, mask_BN)
            penalty_B = loss_B if pooled.penalty is None else loss_B + pooled.penalty
            pooled = replace(pooled, penalty=penalty_B)
        return pooled

    def auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the aggregator's own loss."""
        return self.aggregator.auxiliary(pooled, target)


def _mapped_features(fusion: Concat | ShazamGate, x_BND: Tensor) -> list[Tensor]:
    """Return the features of each teacher, normalised and mapped to the fused width."""
    return [
        to(norm(part))
        for to, norm, part in zip(
            fusion.maps, fusion.norms, _teacher_columns(fusion, x_BND), strict=True
        )
    ]


def _teacher_columns(fusion: Concat | ShazamGate, x_BND: Tensor) -> tuple[Tensor, ...]:
    """Return the feature columns of each teacher."""
    return torch.split(x_BND, fusion.widths, dim=-1)
