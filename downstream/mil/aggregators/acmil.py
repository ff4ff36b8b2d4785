"""ACMIL: several attention branches that are kept apart, and the surest tiles hidden at random.

A model that finds one telling tile stops looking. Branches with different attention, and tiles of
the highest attention that are masked now and then, make it look at more.

Shape letters: B bags, N tiles, D feature width, H hidden width, A branches, C outputs, K tiles.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.pooling import GatedAttention
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem


class Acmil(Aggregator):
    """Attention-challenging MIL with gated attention (Zhang et al. 2024, arXiv 2311.07125).

    Written from the paper and from `ACMIL_GA` of dazhangyu123/ACMIL with the settings of its
    README: 5 branches, and in training 6 of the 10 most attended tiles of each are masked. The loss
    is the bag's, plus the mean of the branches' (semantic loss), plus the mean cosine similarity of
    two branches' attention (diversity loss). The bag is the mean of the branches' attention. The
    first layer is that of the other models here; there it has no bias and no dropout.

    Args:
        width: feature width D.
        classes: outputs C of the task.
        hidden: width H of the first layer.
        attention: width of the gated attention.
        dropout: dropout after the first layer.
        branches: number A of attention branches.
        tiles: number K of most attended tiles that may be masked.
        masked: share of the K tiles that is masked in a training step.
    """

    def __init__(
        self,
        width: int,
        *,
        classes: int,
        hidden: int = 512,
        attention: int = 128,
        dropout: float = 0.0,
        branches: int = 5,
        tiles: int = 10,
        masked: float = 0.6,
    ) -> None:
        super().__init__()
        if branches < 1 or tiles < 0 or not 0 <= masked < 1:
            msg = (
                f"branches={branches}, tiles={tiles}, masked={masked}; ACMIL needs a branch, a "
                "number of tiles from 0 on, and a share from 0 to below 1"
            )
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.attention = GatedAttention(hidden, attention, branches=branches)
        self.classifiers = nn.ModuleList(nn.Linear(hidden, classes) for _ in range(branches))
        self.width, self.tiles, self.masked = hidden, tiles, masked

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the mean of tiles, weighted by the mean attention of the branches.

        The extras hold `branches` [B, A, N], the attention of each.
        """
        del coords_BNK
        h_BNH = self.stem(x_BND)
        score_BAN = self.attention(h_BNH)
        kept_BAN = mask_BN[:, None].expand_as(score_BAN)
        if self.training:
            kept_BAN = kept_BAN & ~self._masked_tiles(score_BAN.detach(), mask_BN)
        a_BAN = masked_softmax(score_BAN, kept_BAN)
        attention_BN = a_BAN.mean(dim=1)
        branch_BAH = torch.bmm(a_BAN.to(h_BNH.dtype), h_BNH)
        logits = [part(branch_BAH[:, at]) for at, part in enumerate(self.classifiers)]
        return Pooled(
            embedding=torch.einsum("bn,bnh->bh", attention_BN.to(h_BNH.dtype), h_BNH),
            attention=attention_BN,
            branch_logits=torch.stack(logits, dim=1) if self.training else None,
            penalty=mean_similarity(a_BAN) if self.training else None,
            extras={"branches": a_BAN},
        )

    def _masked_tiles(self, score_BAN: Tensor, mask_BN: Tensor) -> Tensor:
        """Return whether each tile is hidden from each branch [B, A, N], drawn at random."""
        picks = min(self.tiles, score_BAN.shape[-1])
        top_BAK = score_BAN.masked_fill(~mask_BN[:, None], -torch.inf).topk(picks).indices
        count_B = mask_BN.sum(dim=1).clamp(max=picks)
        is_pick_BK = torch.arange(picks, device=mask_BN.device) < count_B[:, None]
        draw_BAK = torch.rand_like(score_BAN[..., :picks])
        draw_BAK = draw_BAK.masked_fill(~is_pick_BK[:, None], torch.inf)
        hidden_B = (count_B.double() * self.masked).floor()
        is_hidden_BAK = draw_BAK.argsort(dim=-1).argsort(dim=-1) < hidden_B[:, None, None]
        nothing = torch.zeros_like(score_BAN, dtype=torch.bool)
        return nothing.scatter(-1, top_BAK, is_hidden_BAK)


def mean_similarity(a_BAN: Tensor) -> Tensor:
    """Return the mean cosine similarity of two branches' attention [B]; 0 for one branch.

    Args:
        a_BAN: attention of each branch, 0 in masked rows.
    """
    pairs = list(itertools.combinations(range(a_BAN.shape[1]), 2))
    if not pairs:
        return a_BAN.new_zeros(len(a_BAN))
    similarity = [F.cosine_similarity(a_BAN[:, i], a_BAN[:, j], dim=-1) for i, j in pairs]
    return torch.stack(similarity).mean(dim=0)
