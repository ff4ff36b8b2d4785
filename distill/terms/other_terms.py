"""Terms that any recipe may add: relations, logits of a classifier, a privileged branch.

Shape letters: B samples, C classes.
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from distill.losses.logit_losses import decoupled_loss, kl_loss, multi_level_loss
from distill.losses.over_workers import loss_over_workers
from distill.losses.relation_losses import batch_relation_loss, token_relation_loss
from distill.losses.vicreg import vicreg_loss
from distill.targets.target_sources import CLS, GRID, PATCH
from distill.terms.term import Key, Losses, TermContext, TermInputs, TermLoss


class RelationLoss(TermLoss):
    """Compares similarities between samples of the batch, of embedding and target; without head."""

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self._keys = context.keys_of(CLS)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B]."""
        losses = [
            loss_over_workers(
                batch_relation_loss, inputs.outputs.embedding, inputs.goals[key].target
            )
            for key in self._keys
        ]
        return {"relation": torch.stack(losses).mean(dim=0)}


class TokenRelationLoss(TermLoss):
    """Compares similarities between tokens of a tile, or tiles under it, after the heads."""

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.heads = context.keys_of(PATCH, GRID)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B]."""
        losses = [self._key_loss(key, inputs) for key in self.heads]
        return {"token-relation": torch.stack(losses).mean(dim=0)}

    def _key_loss(self, key: Key, inputs: TermInputs) -> Tensor:
        goal = inputs.goals[key]
        mask = None if goal.weight is None else goal.weight > 0
        return token_relation_loss(inputs.predictions[key], goal.target, mask)


class LogitLoss(TermLoss):
    """Trains a classifier on the embedding to predict a teacher's logits, a column of the lake.

    The true class of decoupled distillation is the teacher's class, since tiles have no labels.
    """

    raw = True

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self._columns = [column.name for column in context.columns]
        self.classifiers = nn.ModuleList(
            nn.Linear(context.student.dim, column.dim) for column in context.columns
        )

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] per column."""
        losses: Losses = {}
        for name, classifier in zip(self._columns, self.classifiers, strict=True):
            logits_BC = inputs.batch.features[name].float()
            losses[f"{self.kind} {name}"] = self.loss(
                classifier(inputs.outputs.embedding), logits_BC
            )
        return losses

    kind = "kl"

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Return the loss per sample [B]."""
        return kl_loss(student_BC, teacher_BC, temperature=self.settings["temperature"])


class KlLoss(LogitLoss):
    """Compares logits by KL divergence at a temperature."""

    allowed = MappingProxyType({"temperature": 4.0})


class DecoupledLoss(LogitLoss):
    """Compares logits by decoupled knowledge distillation (DKD)."""

    kind = "decoupled"
    allowed = MappingProxyType({"temperature": 4.0, "target": 1.0, "other": 8.0})

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Return the loss per sample [B]."""
        return decoupled_loss(
            student_BC,
            teacher_BC,
            teacher_BC.argmax(dim=1),
            temperature=self.settings["temperature"],
            target_weight=self.settings["target"],
            other_weight=self.settings["other"],
        )


class MultiLevelLoss(LogitLoss):
    """Compares logits by instance, batch and class at temperatures 2 to 6 (multi-level)."""

    kind = "multi-level"

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Return the loss per sample [B]."""
        return loss_over_workers(multi_level_loss, student_BC, teacher_BC)


class PrivilegedLoss(TermLoss):
    """Computes VICReg of two views and a column that only training has, as in TriDeNT.

    The weights are 25, 25 and 1. Settings: `width` of the projections.
    """

    raw = True
    allowed = MappingProxyType({"width": 256})

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        width = int(self.settings["width"])
        self._columns = [column.name for column in context.columns]
        self.own = _projector(context.student.dim, width)
        self.privileged = nn.ModuleList(_projector(c.dim, width) for c in context.columns)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B]."""
        branches = [self.own(outputs.embedding) for outputs in (inputs.outputs, inputs.another())]
        for name, projector in zip(self._columns, self.privileged, strict=True):
            branches.append(projector(inputs.batch.features[name].float()))
        return {"privileged": loss_over_workers(lambda *all_ND: vicreg_loss(all_ND), *branches)}


def _projector(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width)
    )
