"""Classes in an order: one score of a bag, cut at thresholds into classes.

Shape letters: B bags, C classes, T = C - 1 thresholds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_GAP = 1e-3


class OrdinalLink(nn.Module):
    """Cumulative link of an ordinal logistic regression: P(y <= k) = sigmoid(threshold_k - score).

    Source: proportional odds, McCullagh 1980. Its log likelihood is the cross-entropy of these
    class probabilities, so that losses, class weights and soft labels are those of classes.
    Thresholds are ordered by construction: the first, and gaps above 0. CORAL (Cao et al. 2020,
    arXiv 1901.07884) also has one score and C - 1 thresholds, and sums C - 1 binary losses, whose
    thresholds are in order only once trained.

    Args:
        classes: number of classes C, at least 2.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        share_T = torch.arange(1, classes) / classes
        start_T = torch.logit(share_T)  # at a score of 0 all classes are as likely
        self.first = nn.Parameter(start_T[:1].clone())
        gap = start_T.diff() - _LEAST_GAP
        self.gaps = nn.Parameter(gap + torch.log(-torch.expm1(-gap)))  # inverse of softplus

    def thresholds(self) -> Tensor:
        """Return the thresholds [T], in order."""
        steps = torch.cat([self.first, F.softplus(self.gaps) + _LEAST_GAP])
        return steps.cumsum(dim=0)

    def forward(self, score_B1: Tensor) -> Tensor:
        """Return the log probabilities of the classes [B, C], whose softmax is themselves."""
        above_BT = self.thresholds() - score_B1.float()
        low_BT, high_BT = above_BT[:, :-1], above_BT[:, 1:]
        # sigmoid(h) - sigmoid(l) = sigmoid(h) sigmoid(-l) (1 - exp(l - h))
        between = torch.log(-torch.expm1(low_BT - high_BT))
        middle = F.logsigmoid(high_BT) + F.logsigmoid(-low_BT) + between
        ends = F.logsigmoid(above_BT[:, :1]), F.logsigmoid(-above_BT[:, -1:])
        return torch.cat([ends[0], middle, ends[1]], dim=1)
