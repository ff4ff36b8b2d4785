"""DSMIL: tiles attend to the critical tile of each class, which a tile classifier picks.

Shape letters: B bags, N tiles, D feature width, H hidden width, Q query width, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem


class Dsmil(Aggregator):
    """Dual-stream MIL (Li et al. 2021, arXiv 2011.08939).

    The whole loss is half the bag's and half that of the highest tile logit of each class; the
    paper's other output, the mean of both logits, can be had from the extra `max_logits`.
    Differences from the released code: it picks the critical tile of class c >= 1 from features
    that it has sorted for class c - 1 already, here each class has its own; and a layer comes
    before, as in the other models here. torchmil's has one class and by default no value layer.

    Args:
        width: feature width D.
        classes: classes C; 1 for a binary task with one logit.
        hidden: width H of the first layer.
        query: width Q of the queries.
        dropout: dropout after the first layer and before the values.
    """

    auxiliary_share = 0.5

    def __init__(
        self,
        width: int,
        *,
        classes: int,
        hidden: int = 512,
        query: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if classes < 1:
            msg = f"classes={classes}; DSMIL needs at least one"
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.tile_classifier = nn.Linear(hidden, classes)
        self.query = nn.Linear(hidden, query)
        self.value = nn.Sequential(Dropout(dropout), nn.Linear(hidden, hidden))
        self.classes = classes
        self.width = classes * hidden

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the embeddings of all classes side by side [B, C H].

        One linear layer on them is the paper's convolution over classes. The extras hold `branches`
        [B, C, N] attention, `tile_logits` [B, N, C], `max_logits` [B, C].
        """
        del coords_BNK
        h_BNH = self.stem(x_BND)
        logits_BNC = self.tile_classifier(h_BNH)
        critical_BC = logits_BNC.masked_fill(~mask_BN[..., None], -torch.inf).argmax(dim=1)
        batch = torch.arange(len(h_BNH), device=h_BNH.device)[:, None]
        q_BNQ = self.query(h_BNH)
        match_BCN = torch.einsum("bcq,bnq->bcn", q_BNQ[batch, critical_BC], q_BNQ)
        a_BCN = masked_softmax(match_BCN / q_BNQ.shape[-1] ** 0.5, mask_BN[:, None])
        embedding_BCH = torch.bmm(a_BCN.to(h_BNH.dtype), self.value(h_BNH))
        highest_BC = logits_BNC.gather(1, critical_BC[:, None])[:, 0]
        return Pooled(
            embedding=embedding_BCH.flatten(1),
            attention=a_BCN.mean(dim=1),
            extras={"branches": a_BCN, "tile_logits": logits_BNC, "max_logits": highest_BC},
        )

    def auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the loss of the highest tile logits [B].

        Cross-entropy for class indices [B]; the mean binary cross-entropy for one logit, or for
        labels [B, C] of which several may hold. The paper always has the binary one.
        """
        logits_BC = pooled.extras["max_logits"].float()
        if self.classes > 1 and target.ndim == 1:
            return F.cross_entropy(logits_BC, target.long(), reduction="none")
        wanted_BC = target.to(logits_BC.dtype).view_as(logits_BC)
        return F.binary_cross_entropy_with_logits(logits_BC, wanted_BC, reduction="none").mean(1)
