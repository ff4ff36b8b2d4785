"""DTFD-MIL: a bag is dealt into pseudo-bags, whose attended features are attended to again.

Tier 1 predicts the bag's label from each pseudo-bag, so that a patient is several training
examples; tier 2 predicts it from the pseudo-bags' features.

Shape letters: B bags, N tiles, M pseudo-bags, D feature width, H hidden width, C outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.pooling import GatedAttention
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem


class Dtfd(Aggregator):
    """Double-tier feature distillation (Zhang et al. 2022, arXiv 2203.12081).

    Written from the paper and from the defaults of hrzhang1123/DTFD-MIL: four pseudo-bags and the
    attended feature of each (`AFS`). The loss is the bag's plus the mean of the pseudo-bags'. As
    there, each tier learns from its own loss: no gradient of tier 2 reaches tier 1. Differences:

    - Tiles are dealt at random in training, as there. In prediction, where the code deals at
      random too, they are dealt in order of their attention, so that pseudo-bags are alike and the
      same bag has the same prediction.
    - One AdamW trains both tiers; there are two optimisers.
    - A bag of fewer tiles than pseudo-bags has a pseudo-bag for each tile.
    - The first layer is that of the other models here.

    Args:
        width: feature width D.
        classes: outputs C of the task.
        hidden: width H of the first layer.
        attention: width of the gated attention of either tier.
        dropout: dropout after the first layer.
        groups: number M of pseudo-bags.
    """

    def __init__(
        self,
        width: int,
        *,
        classes: int,
        hidden: int = 512,
        attention: int = 128,
        dropout: float = 0.0,
        groups: int = 4,
    ) -> None:
        super().__init__()
        if groups < 1:
            msg = f"groups={groups}; DTFD-MIL needs one pseudo-bag at least"
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.attention = GatedAttention(hidden, attention)
        self.classifier = nn.Linear(hidden, classes)
        self.second = GatedAttention(hidden, attention)
        self.width, self.groups = hidden, groups

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the features of the pseudo-bags, attended to by tier 2.

        The attention of a tile is that in its pseudo-bag times that of the pseudo-bag. The extras
        hold `groups` [B, N], the pseudo-bag of each tile.
        """
        del coords_BNK
        h_BNH = self.stem(x_BND)
        score_BN = self.attention(h_BNH)[:, 0]
        group_BN = self._deal(score_BN.detach(), mask_BN)
        has_BM = torch.arange(self.groups, device=mask_BN.device) < mask_BN.sum(dim=1)[:, None]
        is_in_BMN = F.one_hot(group_BN, self.groups).bool().mT & mask_BN[:, None]
        # a pseudo-bag without tiles would be NaN: it gets all tiles, and counts for nothing
        is_in_BMN = is_in_BMN | (~has_BM[..., None] & mask_BN[:, None])
        a_BMN = masked_softmax(score_BN[:, None], is_in_BMN)
        feature_BMH = torch.bmm(a_BMN.to(h_BNH.dtype), h_BNH)
        given_BMH = feature_BMH.detach() if self.training else feature_BMH
        share_BM = masked_softmax(self.second(given_BMH)[:, 0], has_BM)
        embedding = torch.einsum("bm,bmh->bh", share_BM.to(h_BNH.dtype), given_BMH)
        return Pooled(
            embedding=embedding,
            attention=torch.einsum("bm,bmn->bn", share_BM, a_BMN).detach(),
            branch_logits=self._tier_one(feature_BMH, has_BM) if self.training else None,
            extras={"groups": group_BN},
        )

    def _tier_one(self, feature_BMH: Tensor, has_BM: Tensor) -> Tensor:
        """Return the logits of each pseudo-bag [B, M, C]; missing ones repeat those there are."""
        at_M = torch.arange(self.groups, device=has_BM.device)
        at_BM = at_M % has_BM.sum(dim=1, keepdim=True)
        bag_B1 = torch.arange(len(has_BM), device=has_BM.device)[:, None]
        logits_BMC: Tensor = self.classifier(feature_BMH[bag_B1, at_BM])
        return logits_BMC

    def _deal(self, score_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """Return the pseudo-bag of each tile [B, N], whose sizes differ by one tile at most."""
        order_BN = torch.rand_like(score_BN) if self.training else -score_BN
        rank_BN = order_BN.masked_fill(~mask_BN, torch.inf).argsort(dim=1).argsort(dim=1)
        return rank_BN % self.groups
