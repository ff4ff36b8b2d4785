"""Terms that any recipe may add: relations between tiles or tokens, a privileged branch.

Shape letters: B samples, D width.
"""

from types import MappingProxyType

import torch
from torch import Tensor, nn

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
