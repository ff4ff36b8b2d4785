"""Hints: a level inside the student learns a teacher's intermediate layer.

Shape letters: B samples, N tokens, D embedding of the teacher, C channels of a level.
"""

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.numeric import check_detached, weighted_mean
from distill.students.student import pooled
from distill.targets.target_sources import CLS, PATCH
from distill.terms.match_terms import check_share
from distill.terms.term import Key, Losses, TermContext, TermInputs, TermLoss


class HintLoss(TermLoss):
    """Computes 1/2 (regressor(level of the student) - layer of the teacher)^2, mean over channels.

    The teacher's layer is a column, as `TEACHER@L6` or `TEACHER:patches@L6`, which is left out of
    terms that name no teacher. Embeddings are compared with the mean of the level's map, patch
    tokens with the map on the student's grid of tokens.

    Source: FitNets (Romero et al. 2015, arXiv 1412.6550): half the squared distance of a guided
    layer, after a regressor, and a hint. Changed: targets are normalised; the regressor is linear
    in each place; the hint is a term beside the others and no stage of its own.

    Settings: `level`, the place of the student's level, from 0 (the first) to 1 (the last).
    """

    allowed = MappingProxyType({"level": 0.5})
    apart = True
    reads_levels = True

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.keys = context.keys_of(CLS, PATCH)
        dims = context.student.level_dims[:-1]
        share = check_share(self.settings["level"], "level")
        self.level = round(share * (len(dims) - 1))
        widths = {column.name: column.dim for column in context.columns}
        self.regressors = nn.ModuleList(
            nn.Linear(dims[self.level], widths[name]) for name, _ in self.keys
        )

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] per column."""
        losses: Losses = {}
        for key, regressor in zip(self.keys, self.regressors, strict=True):
            goal = inputs.goals[key]
            check_detached(goal.target, "a hint")
            predicted = regressor(self._level(key, inputs))
            squared = F.mse_loss(predicted.float(), goal.target, reduction="none").mean(dim=-1) / 2
            loss_B = squared if key[1] == CLS else weighted_mean(squared, goal.weight)
            if key[1] == CLS and goal.weight is not None:
                loss_B = loss_B * goal.weight
            losses[f"hint {key[0]}"] = loss_B / len(self.keys)
        return losses

    def _level(self, key: Key, inputs: TermInputs) -> Tensor:
        """Return the student's level as an embedding [B, C] or as tokens [B, N, C]."""
        map_BCHW = inputs.outputs.maps[self.level]
        if key[1] == CLS:
            return map_BCHW.mean(dim=(2, 3))
        tokens_BNC = pooled(map_BCHW.permute(0, 2, 3, 1), inputs.outputs.tokens.shape[1])
        tokens_BNC = tokens_BNC.flatten(1, 2)
        cells_BN = inputs.goals[key].cells
        if cells_BN is None:
            return tokens_BNC
        at = cells_BN.to(tokens_BNC.device)[..., None].expand(-1, -1, tokens_BNC.shape[-1])
        return torch.gather(tokens_BNC, 1, at)
