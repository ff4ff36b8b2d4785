"""Tasks of bags, their losses and scores, class weights, and soft labels.

Losses are one float32 value per bag, whatever the precision of the logits; the caller weights and
averages them.

Shape letters: B bags, N tiles, C outputs (classes), P patients, M members of an ensemble.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.padded_bags import MilError

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]


@dataclass(frozen=True, kw_only=True)
class BagTask:
    """The outputs of a bag, and their loss and scores.

    Attributes:
        kind: `binary` is one logit; `multiclass` a softmax over C classes that exclude each other;
            `multilabel` C labels that do not; `regression` C numbers.
        outputs: c; 1 for `binary`.
        is_ordered: whether the classes of `multiclass` are in an order: a bag has one score, which
            `OrdinalLink` turns into log probabilities of the C classes.

    Raises:
        MilError: Outputs that do not fit the kind.
    """

    kind: TaskKind
    outputs: int = 1
    is_ordered: bool = False

    @property
    def scores_of_head(self) -> int:
        """Return how many numbers the head of a model has: one for ordered classes."""
        return 1 if self.is_ordered else self.outputs

    def __post_init__(self) -> None:
        """Check the number of outputs."""
        fits = {"binary": self.outputs == 1, "multiclass": self.outputs >= 2}
        if not fits.get(self.kind, self.outputs >= 1):
            msg = f"{self.kind} with outputs={self.outputs}; binary has 1, multiclass 2 or more"
            raise MilError(msg)
        if self.is_ordered and self.kind != "multiclass":
            msg = f"a {self.kind} task in an order; an order is of classes (multiclass)"
            raise MilError(msg)

    def loss(self, logits_BC: Tensor, target: Tensor, weight_C: Tensor | None = None) -> Tensor:
        """Return the loss of each bag [B].

        Args:
            logits_BC: outputs of the head.
            target: binary: [B] in 0..1; multiclass: class indices [B], or probabilities [B, C]
                (soft labels); multilabel: [B, C] in 0..1; regression: [B, C], or [B] for one.
            weight_C: weights from `class_weights` (two for binary, of classes 0 and 1; for
                multilabel the weight of a present label). It multiplies a bag's loss and is not
                divided by the batch's sum, which would cancel it for a batch of one.

        Raises:
            MilError: Weights for regression.
        """
        logits = logits_BC.float()
        if self.kind == "multiclass":
            return _class_loss(logits, target, weight_C)
        if self.kind == "regression" and weight_C is not None:
            msg = "class weights for a regression; give none"
            raise MilError(msg)
        labels = target.to(logits.dtype).view_as(logits)
        if self.kind == "regression":
            return F.mse_loss(logits, labels, reduction="none").mean(dim=1)
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        if weight_C is not None and self.kind == "binary":
            loss = loss * (weight_C[1] * labels + weight_C[0] * (1 - labels))
        elif weight_C is not None:
            loss = loss * (weight_C * labels + 1 - labels)
        return loss.mean(dim=1)

    def scores(self, logits_BC: Tensor) -> Tensor:
        """Return probabilities or numbers, float64: [B] of class 1 for binary, else [B, C]."""
        logits = logits_BC.double()
        if self.kind == "binary":
            return torch.sigmoid(logits[:, 0])
        if self.kind == "multiclass":
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits) if self.kind == "multilabel" else logits


def class_weights(label_P: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return weights float64[C] so that all classes have the same total, mean 1 over patients.

    Args:
        label_P: class indices of TRAINING patients.
        classes: number C of classes.

    Raises:
        MilError: A class without patients.

    >>> class_weights(np.array([0, 0, 0, 1]), 2).round(2)
    array([0.67, 2.  ])
    """
    counts_C = np.bincount(label_P, minlength=classes)
    if counts_C.min() == 0:
        msg = (
            f"training patients per class are {counts_C.tolist()}; every class needs at least one, "
            "use fewer folds"
        )
        raise MilError(msg)
    weights_C: NDArray[np.float64] = len(label_P) / (classes * counts_C)
    return weights_C


def balanced_order(label_P: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return the order of an epoch with all classes equally often, rare patients repeated.

    It is as long as the natural order; each class is a shuffled cycle over its patients. It is the
    second expert's sampler in MDE-MIL (arXiv 2503.00915), beside the natural order.

    >>> label = np.array([0, 0, 0, 0, 0, 1])
    >>> np.bincount(label[balanced_order(label, seed=0)]).tolist()
    [3, 3]
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(label_P)
    turns = np.concatenate(
        [rng.permutation(classes) for _ in range(-(-len(label_P) // len(classes)))]
    )
    order_P = np.empty(len(label_P), dtype=np.int64)
    for label in classes:
        positions = np.flatnonzero(turns[: len(label_P)] == label)
        members = np.flatnonzero(label_P == label)
        rounds = [rng.permutation(members) for _ in range(-(-len(positions) // len(members)))]
        order_P[positions] = np.concatenate(rounds)[: len(positions)] if rounds else []
    return order_P


def expert_agreement(one_BC: Tensor, other_BC: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two experts' softmaxes [B].

    The term that joins MDE-MIL's two experts (its weight there is not known; a re-implementation
    has 0.25). Symmetric and bounded by log 2, so that neither expert can run away with the other.
    """
    p, q = (torch.log_softmax(part.float(), dim=1) for part in (one_BC, other_BC))
    middle = torch.logsumexp(torch.stack([p, q]), dim=0) - np.log(2)
    return 0.5 * sum_kl(p, middle) + 0.5 * sum_kl(q, middle)


def sum_kl(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """Return KL(p || q) of each bag [B] from log probabilities."""
    return (log_p_BC.exp() * (log_p_BC - log_q_BC)).sum(dim=1)


def soft_labels(
    logits_MPC: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean softmax of an ensemble [P, C], and the variance over its members [P, C].

    The mean of probabilities, not of logits (De Angeli et al., JAMIA Open 2022). The members must
    not have been trained on these patients.
    """
    shifted = logits_MPC - logits_MPC.max(axis=2, keepdims=True)
    probability_MPC = np.exp(shifted)
    probability_MPC /= probability_MPC.sum(axis=2, keepdims=True)
    return probability_MPC.mean(axis=0), probability_MPC.var(axis=0)


def pseudo_labels(score_BN: Tensor, mask_BN: Tensor, label_B: Tensor, *, tiles: int) -> Tensor:
    """Return tile labels from bag labels, int64 [B, N]: 1, 0, or -1 for a tile that is left out.

    In a positive bag the tiles with the highest scores are 1 and those with the lowest 0, at most
    `tiles` and at most half of the bag; in a negative bag every tile is 0. Scores are a teacher's,
    such as a moving average of the student (MILTS, Nat Commun 2024), or attention (CLAM).

    Args:
        score_BN: scores of tiles; higher = more likely positive.
        mask_BN: true where there is a tile.
        label_B: labels of the bags: 1 for a positive bag, 0 for a negative one.
        tiles: most tiles that are labelled at either end.
    """
    outside = ~mask_BN
    most = min(tiles, score_BN.shape[1])
    labels_BN = torch.full_like(mask_BN, fill_value=-1, dtype=torch.int64)
    is_counted = torch.arange(most, device=mask_BN.device) < (mask_BN.sum(dim=1) // 2)[:, None]
    for sign, tile_label in ((1, 1), (-1, 0)):
        picked = (sign * score_BN).masked_fill(outside, -torch.inf).topk(most, dim=1).indices
        kept = labels_BN.gather(1, picked)
        labels_BN.scatter_(1, picked, torch.where(is_counted, tile_label, kept))
    return torch.where(label_B[:, None] == 1, labels_BN, torch.where(mask_BN, 0, -1))


def pseudo_label_loss(logits_BN: Tensor, labels_BN: Tensor) -> Tensor:
    """Return the binary cross-entropy of labelled tiles, mean over each bag [B]; 0 without any."""
    is_labelled = labels_BN >= 0
    loss_BN = F.binary_cross_entropy_with_logits(
        logits_BN.float(), labels_BN.clamp(min=0).float(), reduction="none"
    )
    return torch.where(is_labelled, loss_BN, 0).sum(dim=1) / is_labelled.sum(dim=1).clamp(min=1)


def _class_loss(logits_BC: Tensor, target: Tensor, weight_C: Tensor | None) -> Tensor:
    """Return the cross-entropy with class indices [B] or probabilities [B, C]."""
    target_BC = target.to(logits_BC.dtype) if target.ndim == 2 else None
    if target_BC is None:
        target_BC = F.one_hot(target.long(), logits_BC.shape[1]).to(logits_BC.dtype)
    if weight_C is not None:
        target_BC = target_BC * weight_C
    return -(target_BC * torch.log_softmax(logits_BC, dim=1)).sum(dim=1)
