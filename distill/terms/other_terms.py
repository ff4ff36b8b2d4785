"""Terms that any recipe may add: relations, logits of a classifier, a privileged branch.

Letters in names: B samples, C classes.
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from distill.losses.logit_losses import decoupled_loss, kl_loss, multi_level_loss
from distill.losses.relation_losses import batch_relation_loss, token_relation_loss
from distill.losses.vicreg import vicreg_loss
from distill.targets.target_sources import CLS, GRID, PATCH
from distill.terms.term import About, Key, Losses, Scene, TermLoss


class RelationLoss(TermLoss):
    """How samples of the batch are like each other, embedding against target; no head."""

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self._keys = about.of(CLS)

    def forward(self, scene: Scene) -> Losses:
        """One entry."""
        losses = [
            batch_relation_loss(scene.seen.embedding, scene.goals[key].target) for key in self._keys
        ]
        return {"relation": torch.stack(losses).mean(dim=0)}


class TokenRelationLoss(TermLoss):
    """How tokens of a tile, or tiles under it, are like each other; through the heads."""

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.heads = about.of(PATCH, GRID)

    def forward(self, scene: Scene) -> Losses:
        """One entry."""
        losses = [self._one(key, scene) for key in self.heads]
        return {"token-relation": torch.stack(losses).mean(dim=0)}

    def _one(self, key: Key, scene: Scene) -> Tensor:
        goal = scene.goals[key]
        mask = None if goal.weight is None else goal.weight > 0
        return token_relation_loss(scene.predictions[key], goal.target, mask)


class LogitLoss(TermLoss):
    """A classifier on the embedding that learns a teacher's logits, from a column of the lake.

    The true class of decoupled distillation is the teacher's, since tiles have no labels.
    """

    raw = True

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self._columns = [column.name for column in about.columns]
        self.classifiers = nn.ModuleList(
            nn.Linear(about.student.dim, column.dim) for column in about.columns
        )

    def forward(self, scene: Scene) -> Losses:
        """One entry a column."""
        found: Losses = {}
        for name, classifier in zip(self._columns, self.classifiers, strict=True):
            logits_BC = scene.batch.features[name].float()
            found[f"{self.kind} {name}"] = self.loss(classifier(scene.seen.embedding), logits_BC)
        return found

    kind = "kl"

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Per sample."""
        return kl_loss(student_BC, teacher_BC, temperature=self.settings["temperature"])


class KlLoss(LogitLoss):
    """KL at a temperature."""

    allowed = MappingProxyType({"temperature": 4.0})


class DecoupledLoss(LogitLoss):
    """DKD."""

    kind = "decoupled"
    allowed = MappingProxyType({"temperature": 4.0, "target": 1.0, "other": 8.0})

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Per sample."""
        return decoupled_loss(
            student_BC,
            teacher_BC,
            teacher_BC.argmax(dim=1),
            temperature=self.settings["temperature"],
            target_weight=self.settings["target"],
            other_weight=self.settings["other"],
        )


class MultiLevelLoss(LogitLoss):
    """Instance, batch and class levels at temperatures 2 to 6."""

    kind = "multi-level"

    def loss(self, student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        """Per sample."""
        return multi_level_loss(student_BC, teacher_BC)


class PrivilegedLoss(TermLoss):
    """VICReg of two views and a column that only training has, as TriDeNT; weights 25, 25, 1.

    Settings: `width` of the projections.
    """

    raw = True
    allowed = MappingProxyType({"width": 256})

    def __init__(self, about: About) -> None:
        super().__init__(about)
        width = int(self.settings["width"])
        self._columns = [column.name for column in about.columns]
        self.own = _projector(about.student.dim, width)
        self.privileged = nn.ModuleList(_projector(c.dim, width) for c in about.columns)

    def forward(self, scene: Scene) -> Losses:
        """One entry."""
        branches = [self.own(seen.embedding) for seen in (scene.seen, scene.another())]
        for name, projector in zip(self._columns, self.privileged, strict=True):
            branches.append(projector(scene.batch.features[name].float()))
        return {"privileged": vicreg_loss(branches)}


def _projector(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width)
    )
