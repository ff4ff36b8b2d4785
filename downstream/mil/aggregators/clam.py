"""CLAM: gated attention with one branch (SB) or one a class (MB), and a loss on tiles.

The tiles that a class attends to most and least are pseudo labels of a small classifier of that
class. Written from the paper (Lu et al. 2021, arXiv 2004.09666); what differs from its released
code is listed at `Clam`.

Shape letters: B bags, N tiles, D feature width, H hidden width, C classes, A attention branches
(1 or C), K tiles picked at either end.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.aggregators.pooling import GatedAttention
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax, stem

TileLoss = Literal["cross_entropy", "smooth_svm"]


class Clam(Aggregator):
    """CLAM with one attention branch (CLAM-SB) or one per class (CLAM-MB).

    The whole loss is 0.7 x the bag's + 0.3 x `auxiliary`. Differences from the released code:

    - Bags come in padded batches, and each may have a label of its own.
    - A bag with fewer than 2 K tiles has N // 2 at either end, where the code has K twice, so
      that a tile may be positive and negative at once, or stops with an error below K.
    - Where classes exclude each other (`subtyping`) the sum over classes is divided by C, as there.

    Args:
        width: feature width D.
        classes: classes C, at least 2.
        multi_branch: one attention and one embedding for each class.
        hidden: width H of the first layer.
        attention: width of the gated attention.
        dropout: dropout after the first layer and in the attention.
        tiles: number K of tiles picked at either end.
        tile_loss: loss of the tile classifiers.
        subtyping: whether classes exclude each other, so that the most attended tiles of a bag are
            negatives of every other class.
    """

    auxiliary_share = 0.3

    def __init__(
        self,
        width: int,
        *,
        classes: int,
        multi_branch: bool = False,
        hidden: int = 512,
        attention: int = 256,
        dropout: float = 0.25,
        tiles: int = 8,
        tile_loss: TileLoss = "smooth_svm",
        subtyping: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2 or tiles < 1:
            msg = f"classes={classes}, tiles={tiles}; CLAM needs 2 classes and 1 tile at least"
            raise MilError(msg)
        self.stem = stem(width, hidden, dropout)
        self.branches = classes if multi_branch else 1
        self.attention = GatedAttention(hidden, attention, branches=self.branches, dropout=dropout)
        self.tile_classifiers = nn.Linear(hidden, 2 * classes)
        self.width, self.classes, self.tiles = hidden, classes, tiles
        self.tile_loss, self.subtyping = tile_loss, subtyping

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the attention-weighted mean of tiles, one per branch.

        The extras hold the inputs of `auxiliary`: `branches` [B, A, N] attention, and `picked`
        [B, A, 2, K, C, 2] tile logits of the most and the least attended tiles, with `counted`
        [B, K], whether each of the K exists.
        """
        del coords_BNK
        h_BNH = self.stem(x_BND)
        score_BAN = self.attention(h_BNH)
        a_BAN = masked_softmax(score_BAN, mask_BN[:, None])
        embedding = torch.bmm(a_BAN.to(h_BNH.dtype), h_BNH)
        extras = {"branches": a_BAN}
        if self.training:
            extras |= self._tile_logits(h_BNH, score_BAN.detach(), mask_BN)
        return Pooled(
            embedding=embedding if self.branches > 1 else embedding[:, 0],
            attention=a_BAN.mean(dim=1),
            extras=extras,
        )

    def auxiliary(self, pooled: Pooled, target: Tensor) -> Tensor:
        """Return the loss of the picked tiles [B], of all classes if `subtyping`, else the label's.

        Raises:
            MilError: The labels are no class indices [B], or the model was in evaluation mode, in
                which no tiles are picked.
        """
        if target.ndim != 1:
            msg = f"targets {tuple(target.shape)}; CLAM takes one class index a bag, [B]"
            raise MilError(msg)
        if "picked" not in pooled.extras:
            msg = "CLAM picks tiles in training mode only; call .train() before the forward pass"
            raise MilError(msg)
        most, least = self._by_class(pooled.extras["picked"]).unbind(dim=2)
        counted_BK = pooled.extras["counted"]
        k_B = counted_BK.sum(dim=1).clamp(min=1)[:, None]
        negative_BC = (self._loss(most, 0) * counted_BK[:, None]).sum(-1) / k_B
        inside_BCK = self._loss(most, 1) + self._loss(least, 0)
        inside_BC = (inside_BCK * counted_BK[:, None]).sum(-1) / (2 * k_B)
        is_label_BC = F.one_hot(target.long(), self.classes).bool()
        if not self.subtyping:
            return torch.where(is_label_BC, inside_BC, 0).sum(dim=1)
        return torch.where(is_label_BC, inside_BC, negative_BC).mean(dim=1)

    def _tile_logits(self, h_BNH: Tensor, score_BAN: Tensor, mask_BN: Tensor) -> dict[str, Tensor]:
        picks = min(self.tiles, h_BNH.shape[1])
        outside = ~mask_BN[:, None]
        most = score_BAN.masked_fill(outside, -torch.inf).topk(picks, dim=-1).indices
        least = (-score_BAN).masked_fill(outside, -torch.inf).topk(picks, dim=-1).indices
        at = torch.stack([most, least], dim=2)
        batch = torch.arange(len(h_BNH), device=at.device)[:, None, None, None]
        logits = self.tile_classifiers(h_BNH[batch, at])
        half_B = mask_BN.sum(dim=1) // 2
        return {
            "picked": logits.unflatten(-1, (self.classes, 2)),
            "counted": torch.arange(picks, device=at.device) < half_B[:, None],
        }

    def _by_class(self, picked: Tensor) -> Tensor:
        """Return the logits [B, C, 2, K, 2] of each class' own classifier on its picked tiles."""
        if self.branches == 1:
            return picked[:, 0].permute(0, 3, 1, 2, 4)
        return picked.diagonal(dim1=1, dim2=4).movedim(-1, 1)

    def _loss(self, logits: Tensor, label: int) -> Tensor:
        """Return the loss of tiles [...] from logits [..., 2], all with one pseudo label."""
        flat = logits.float().reshape(-1, 2)
        target = torch.full((len(flat),), label, device=flat.device)
        if self.tile_loss == "smooth_svm":
            return smooth_svm(flat, target).view(logits.shape[:-1])
        return F.cross_entropy(flat, target, reduction="none").view(logits.shape[:-1])


def smooth_svm(
    logits_BC: Tensor, label_B: Tensor, *, margin: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Return the smooth top-1 SVM loss, one value per sample [B].

    temperature * log sum_c exp((s_c + margin [c != y] - s_y) / temperature), which tends to the
    multi-class hinge as the temperature goes to 0. Source: Berrada et al. 2018 (arXiv 1802.07595);
    their code goes over to the hard loss where logits are very far apart, which is the same number.
    """
    wrong_BC = 1 - F.one_hot(label_B, logits_BC.shape[1]).to(logits_BC.dtype)
    raised_BC = (logits_BC + margin * wrong_BC) / temperature
    return temperature * F.cross_entropy(raised_BC, label_B, reduction="none")
