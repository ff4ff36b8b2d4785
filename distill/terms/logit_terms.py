"""Terms of a classifier on the embedding: logits of a teacher, labels of an annotation, or both.

The classifier is trained with the student and not kept.

Shape letters: B samples, C classes.
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.logit_losses import (
    decoupled_levels_loss,
    decoupled_loss,
    kl_loss,
    label_loss,
    mixed_kl_loss,
    multi_level_loss,
)
from distill.losses.over_workers import loss_over_workers
from distill.terms.term import Losses, TermContext, TermInputs, TermLoss


class LabelLoss(TermLoss):
    """Trains a classifier on the embedding to predict labels; tiles without a label count 0."""

    takes_labels = True
    needs_labels = True

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        classes = len(context.classes.names) if context.classes is not None else 0
        self.classifier = nn.Linear(context.student.dim, classes)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B]."""
        logits_BC = self.classifier(inputs.outputs.embedding)
        return {"label": label_loss(logits_BC, self.labels(inputs))}


class LogitLoss(TermLoss):
    """Trains a classifier on the embedding to predict a teacher's logits, a column of the lake.

    With labels the loss is alpha x cross-entropy + (1 - alpha) x the loss of the logits; tiles
    without a label have the second part alone. The classes' numbers are the logits' places.

    Raises:
        DistillError: there are other classes than logits.
    """

    raw = True
    takes_labels = True
    kind = "kl"

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self._columns = [column.name for column in context.columns]
        self.classifiers = nn.ModuleList(
            nn.Linear(context.student.dim, column.dim) for column in context.columns
        )
        for column in context.columns:
            if self.classes is not None and len(self.classes.names) != column.dim:
                msg = (
                    f"'{column.name}' has {column.dim} logits, and {self.classes.column} "
                    f"{len(self.classes.names)} classes ({', '.join(self.classes.names[:8])}); "
                    "each class's number must be its logit's place, from 0"
                )
                raise DistillError(msg)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] per column."""
        label_B = None if self.classes is None else self.labels(inputs)
        losses: Losses = {}
        for name, classifier in zip(self._columns, self.classifiers, strict=True):
            teacher_BC = inputs.batch.features[name].float()
            student_BC = classifier(inputs.outputs.embedding)
            known_B = teacher_BC.argmax(dim=1)
            if label_B is not None:
                known_B = torch.where(label_B >= 0, label_B, known_B)
            loss_B = self.loss(student_BC, teacher_BC, known_B, label_B)
            if label_B is not None:
                alpha = self.settings["alpha"]
                loss_B = alpha * label_loss(student_BC, label_B) + (1 - alpha) * loss_B
            losses[f"{self.kind} {name}"] = loss_B
        return losses

    def loss(
        self, student_BC: Tensor, teacher_BC: Tensor, known_B: Tensor, label_B: Tensor | None
    ) -> Tensor:
        """Return the loss of the logits, per sample [B].

        Args:
            student_BC: the student's logits.
            teacher_BC: the teacher's logits.
            known_B: the label, or the teacher's class where there is none.
            label_B: the label, -1 where there is none; None for a term without labels.
        """
        raise NotImplementedError


class KlLoss(LogitLoss):
    """Compares logits by KL divergence at a temperature.

    With labels and a `difficulty` above 0 the target leans on the label where a tile is hard.
    """

    allowed = MappingProxyType({"temperature": 4.0, "alpha": 0.5, "difficulty": 0.0})

    def loss(
        self, student_BC: Tensor, teacher_BC: Tensor, known_B: Tensor, label_B: Tensor | None
    ) -> Tensor:
        """Return the loss per sample [B]."""
        temperature, difficulty = self.settings["temperature"], self.settings["difficulty"]
        if label_B is None or not difficulty:
            return kl_loss(student_BC, teacher_BC, temperature=temperature)
        return mixed_kl_loss(
            student_BC, teacher_BC, label_B, temperature=temperature, difficulty=difficulty
        )


class DecoupledLoss(LogitLoss):
    """Compares logits by decoupled knowledge distillation (DKD).

    The true class is the label, or the teacher's class where there is none.
    """

    kind = "decoupled"
    allowed = MappingProxyType({"temperature": 4.0, "target": 1.0, "other": 8.0, "alpha": 0.5})

    def loss(
        self, student_BC: Tensor, teacher_BC: Tensor, known_B: Tensor, label_B: Tensor | None
    ) -> Tensor:
        """Return the loss per sample [B]."""
        return decoupled_loss(
            student_BC,
            teacher_BC,
            known_B,
            temperature=self.settings["temperature"],
            target_weight=self.settings["target"],
            other_weight=self.settings["other"],
        )


class MultiLevelLoss(LogitLoss):
    """Compares logits by instance, batch and class at temperatures 2 to 6 (multi-level)."""

    kind = "multi-level"
    allowed = MappingProxyType({"alpha": 0.5})

    def loss(
        self, student_BC: Tensor, teacher_BC: Tensor, known_B: Tensor, label_B: Tensor | None
    ) -> Tensor:
        """Return the loss per sample [B]."""
        return loss_over_workers(multi_level_loss, student_BC, teacher_BC)


class DecoupledLevelsLoss(LogitLoss):
    """Compares logits by instance, batch and class, each decoupled (MDKD+)."""

    kind = "decoupled-levels"
    allowed = MappingProxyType({"target": 1.0, "other": 8.0, "alpha": 0.5})

    def loss(
        self, student_BC: Tensor, teacher_BC: Tensor, known_B: Tensor, label_B: Tensor | None
    ) -> Tensor:
        """Return the loss per sample [B]."""

        def levels(student_NC: Tensor, teacher_NC: Tensor, known_N: Tensor) -> Tensor:
            return decoupled_levels_loss(
                student_NC,
                teacher_NC,
                known_N.long(),
                target_weight=self.settings["target"],
                other_weight=self.settings["other"],
            )

        return loss_over_workers(levels, student_BC, teacher_BC, known_B)
