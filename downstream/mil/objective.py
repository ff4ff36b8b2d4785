"""Training objectives of MIL models: classes, labels, numbers, or survival.

An objective defines the number of outputs, the loss of a batch, and the meaning of a prediction;
the training loop and the aggregators do not depend on it.

Shape letters: B bags, C outputs, P patients, T time bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.losses import BagTask, class_weights
from downstream.survival.survival_losses import (
    TimeBins,
    cox_loss,
    discrete_loss,
    discrete_risk,
    fit_bins,
)

Floats = NDArray[np.float64]


_LABELLED = ("multiclass", "multilabel")


class Objective(Protocol):
    """A training objective: the loss of logits, and their conversion into predictions.

    Attributes:
        joint: whether a batch's loss compares its bags with each other, so that it needs many.
    """

    joint: bool

    @property
    def task(self) -> BagTask:
        """Return the task, which determines the model's head."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the losses of the bags [B], or of a joint objective one value [1] or NaN."""

    def outcome(self, logits: Floats) -> Floats:
        """Return the scores, numbers, or risks [P] (HIGHER = WORSE) of logits [P, C]."""


@dataclass(frozen=True, kw_only=True)
class LabelObjective:
    """The objective for classes, labels or numbers.

    Attributes:
        task: task: classes, labels or numbers.
        weights: weight of each class [C], from the training patients, or None.
        centre: mean of the training numbers of a regression, subtracted from targets.
        scale: standard deviation of the training numbers of a regression.
    """

    task: BagTask
    weights: tuple[float, ...] | None = None
    centre: float = 0.0
    scale: float = 1.0
    joint = False

    @classmethod
    def fit(cls, task: BagTask, target: NDArray[np.float64], *, weighted: bool) -> "LabelObjective":
        """Return the objective, with class weights or the scale of numbers from TRAINING patients.

        Args:
            task: task that the model predicts.
            target: outcomes: [P] class indices, [P, C] labels, or [P] numbers.
            weighted: whether every class counts the same.
        """
        if task.kind == "regression":
            return cls(task=task, centre=float(target.mean()), scale=float(target.std()) or 1.0)
        if not weighted or task.kind not in _LABELLED:
            return cls(task=task)
        if task.kind == "multiclass":
            weights = class_weights(target.astype(np.int64), task.outputs)
        else:
            there_C = target.reshape(len(target), -1).sum(axis=0)
            weights = (len(target) - there_C) / np.maximum(there_C, 1)
        return cls(task=task, weights=tuple(weights.tolist()))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each bag [B]."""
        weight_C = None
        if self.weights is not None:
            weight_C = torch.tensor(self.weights, device=target.device)
        if self.task.kind == "regression":
            target = (target - self.centre) / self.scale
        return self.task.loss(logits, target, weight_C)

    def outcome(self, logits: Floats) -> Floats:
        """Return probabilities [P, C], or numbers [P]."""
        scores: Floats = self.task.scores(torch.from_numpy(logits)).numpy()
        return scores[:, 0] * self.scale + self.centre if self.task.kind == "regression" else scores


@dataclass(frozen=True, kw_only=True)
class Cox:
    """The Cox partial likelihood; a batch is a risk set, so it needs many patients."""

    joint = True

    @property
    def task(self) -> BagTask:
        """Return the task of one number, the log hazard ratio."""
        return BagTask(kind="regression")

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch [1]; NaN for a batch without an event."""
        event_B = target[:, 1] == 1
        if not bool(event_B.any()):
            return torch.full((1,), torch.nan)
        return cox_loss(logits[:, 0], target[:, 0], event_B)[None]

    def outcome(self, logits: Floats) -> Floats:
        """Return log hazard ratios [P]; HIGHER = WORSE."""
        return logits[:, 0]


@dataclass(frozen=True, kw_only=True)
class Hazards:
    """The objective of discrete-time hazards.

    Attributes:
        bins: time bins, fitted on training patients.
        alpha: share by which the weight of censored patients is reduced, see `discrete_loss`.
    """

    bins: TimeBins
    alpha: float = 0.4
    joint = False

    @classmethod
    def fit(cls, target: Floats, patients: Sequence[str], *, bins: int) -> "Hazards":
        """Return the objective, with time bins from TRAINING patients' (time, event) [P, 2]."""
        time_bins = fit_bins(target[:, 0], target[:, 1] == 1, patients=list(patients), bins=bins)
        return cls(bins=time_bins)

    @property
    def task(self) -> BagTask:
        """Return a task with one output for each time bin."""
        return BagTask(kind="regression", outputs=self.bins.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each bag [B]."""
        bin_B = torch.from_numpy(self.bins.index(target[:, 0].cpu().numpy())).to(target.device)
        return discrete_loss(logits, bin_B, target[:, 1] == 1, alpha=self.alpha)

    def outcome(self, logits: Floats) -> Floats:
        """Return risks [P]; HIGHER = WORSE."""
        risk_P: Floats = discrete_risk(torch.from_numpy(logits)).numpy()
        return risk_P
