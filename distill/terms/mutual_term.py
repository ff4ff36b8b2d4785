"""Mutual distillation: a second student learns beside the first, each from the other.

Shape letters: B samples, C classes, D embedding.
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

from distill.losses.feature_losses import FeatureMatch
from distill.losses.logit_losses import kl_loss, label_loss
from distill.recipes.student_settings import TileStudent
from distill.students.heads import Heads
from distill.students.student import StudentOutputs, TileNetwork
from distill.students.task import SecondStudent
from distill.targets.target_sources import CLS
from distill.terms.term import Key, Losses, TermContext, TermInputs, TermLoss


class MutualLoss(TermLoss):
    """Trains a second student on the same views; each matches the other's predictions.

    Source: deep mutual learning (Zhang et al. 2018, arXiv 1706.00384), by KL of class
    probabilities. Kept: both are trained at once, each towards the other without gradient, beside
    their own targets. Changed: predictions of the teachers' features are matched, by cosine and
    smooth L1; with labels also classes, by cross-entropy and KL at a temperature, as there.

    Settings: `cosine`, the share of the cosine; `teachers`, weight of the second student's own
    match of the teachers; `temperature` of classes.
    """

    allowed = MappingProxyType({"cosine": 0.9, "teachers": 1.0, "temperature": 1.0})
    takes_labels = True

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        recipe = context.recipe
        settings = recipe.student_as(TileStudent).of_peer()
        self.heads = context.keys_of(CLS)
        dims = {column.name: column.dim for column in context.columns}
        self.network = TileNetwork(settings, ladder=recipe.head == "ladder")
        channels = self.network.level_dims if recipe.head == "ladder" else self.network.dim
        self.peer_heads = Heads(
            recipe.head,
            {CLS: channels},
            {key: dims[key[0]] for key in self.heads},
            width=recipe.head_width,
        )
        self._settings_of_peer = settings
        cosine = self.settings["cosine"]
        self._match = FeatureMatch(targets=recipe.targets, cosine_weight=cosine)
        self.classifiers = nn.ModuleList()
        if self.classes is not None:
            widths = (context.student.dim, self.network.dim)
            count = len(self.classes.names)
            self.classifiers = nn.ModuleList(nn.Linear(width, count) for width in widths)

    @property
    def second_student(self) -> SecondStudent:
        """Return the second student."""
        return SecondStudent(
            settings=self._settings_of_peer,
            network=self.network,
            heads=self.peer_heads,
            trunk=self.network.trunk,
            dim=int(self.network.dim),
        )

    def forward(self, inputs: TermInputs) -> Losses:
        """Return the losses [B] "mutual" and "peer"."""
        if inputs.view is None:
            msg = "a second student sees the pixels of the first one's view"
            raise TypeError(msg)
        outputs: StudentOutputs = self.network(inputs.view)
        predictions = peer_predictions(self.peer_heads, outputs, self.heads)
        mutual, peer = [], []
        for key in self.heads:
            goal, own, other = inputs.goals[key], inputs.predictions[key], predictions[key]
            both = self._match(own, other.detach()) + self._match(other, own.detach())
            alone = self._match(other, goal.target)
            weight_B = torch.ones_like(alone) if goal.weight is None else goal.weight
            mutual.append(weight_B * both)
            peer.append(weight_B * alone)
        losses = {
            "mutual": torch.stack(mutual).mean(dim=0),
            "peer": self.settings["teachers"] * torch.stack(peer).mean(dim=0),
        }
        if self.classes is not None:
            losses["mutual classes"] = self._class_loss(inputs, outputs)
        return losses

    def _class_loss(self, inputs: TermInputs, outputs: StudentOutputs) -> Tensor:
        """Return cross-entropy of both students and KL both ways [B]."""
        label_B = self.labels(inputs)
        embeddings = (inputs.outputs.embedding, outputs.embedding)
        logits = [c(x) for c, x in zip(self.classifiers, embeddings, strict=True)]
        temperature = self.settings["temperature"]
        return sum(
            (
                label_loss(own, label_B) + kl_loss(own, other.detach(), temperature=temperature)
                for own, other in (logits, reversed(logits))
            ),
            start=torch.zeros_like(label_B, dtype=torch.float32),
        )


def peer_predictions(
    heads: nn.Module, outputs: StudentOutputs, keys: list[Key]
) -> dict[Key, Tensor]:
    """Return the second student's predictions of embeddings by column and output."""
    levels = outputs.levels or outputs.embedding
    predictions: dict[Key, Tensor] = heads(dict.fromkeys(keys, levels))
    return predictions
