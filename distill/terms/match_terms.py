"""Terms that compare predictions of heads with a teacher's features.

Shape letters: B samples, T teachers, K prototypes, D embedding.
"""

from collections.abc import Sequence
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.angle_losses import Dispersion, angle_loss
from distill.losses.feature_losses import FeatureMatch, cosine_loss, info_nce_loss, log_sum_loss
from distill.losses.numeric import weighted_mean
from distill.losses.over_workers import loss_over_workers
from distill.losses.self_losses import dino_loss
from distill.losses.weighting import make_weighting
from distill.targets.target_sources import CLS, GRID, PATCH, Goal
from distill.terms.term import Key, Losses, TermContext, TermInputs, TermLoss


class MatchLoss(TermLoss):
    """Computes cosine and smooth L1 of embeddings and tokens, teachers weighted by the recipe.

    Settings: `cosine` and `token_cosine`, shares of the cosine (the rest is smooth L1); `cls`,
    `patch` and `grid`, weights of the outputs; `angle`, the share of the cosine of embeddings that
    is angle^2 / the teacher's dispersion in its place (C-RADIOv4).
    """

    allowed = MappingProxyType(
        {"cosine": 0.9, "token_cosine": 0.9, CLS: 1.0, PATCH: 1.0, GRID: 1.0, "angle": 0.0}
    )

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.heads = [key for key in context.keys_of(CLS, PATCH, GRID) if self.settings[key[1]] > 0]
        names = {column.name: column.teacher for column in context.columns}
        self._teacher = {key: names[key[0]] for key in self.heads}
        self.teachers = list(dict.fromkeys(self._teacher.values()))
        kind = context.recipe.weighting
        self.weighting = make_weighting(kind, len(self.teachers), keep=context.recipe.keep)
        self._cls, self._token = (
            FeatureMatch(targets=context.recipe.targets, cosine_weight=self.settings[name])
            for name in ("cosine", "token_cosine")
        )
        self._angle = check_share(self.settings["angle"], "angle")
        dims = {column.name: column.dim for column in context.columns}
        with_angle = [key for key in self.heads if key[1] == CLS and self._angle]
        self._dispersion_places = {key: place for place, key in enumerate(with_angle)}
        self.dispersions = nn.ModuleList(Dispersion(dims[name]) for name, _ in with_angle)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] per teacher."""
        losses_TB = torch.stack([self._teacher_loss(teacher, inputs) for teacher in self.teachers])
        weighted_TB = self.weighting(losses_TB, inputs.generator) * losses_TB
        return {f"match {name}": weighted_TB[i] for i, name in enumerate(self.teachers)}

    def _teacher_loss(self, teacher: str, inputs: TermInputs) -> Tensor:
        parts = [
            self.settings[key[1]] * self._output_loss(key, inputs)
            for key, name in self._teacher.items()
            if name == teacher
        ]
        return torch.stack(parts).sum(dim=0)

    def _output_loss(self, key: Key, inputs: TermInputs) -> Tensor:
        goal = inputs.goals[key]
        if key[1] != CLS:
            return weighted_mean(self._token(inputs.predictions[key], goal.target), goal.weight)
        all_predictions = [part[key] for part in (inputs.predictions, *inputs.nested)]
        losses = torch.stack([self._cls(p, goal.target) for p in all_predictions]).mean(dim=0)
        if self._angle:
            losses = losses + self._angle_in_place(key, all_predictions, goal)
        return losses if goal.weight is None else losses * goal.weight

    def _angle_in_place(self, key: Key, predictions: Sequence[Tensor], goal: Goal) -> Tensor:
        """Return what the angle adds to the loss of embeddings, and the cosine no more does [B]."""
        if goal.norm is None:
            msg = f"no normalisation of {key[0]} for its angles"
            raise TypeError(msg)
        dispersion = self.dispersions[self._dispersion_places[key]](goal.features, goal.weight)
        features_BD = goal.features.float()
        changes = [
            angle_loss(goal.norm.inverse(p), features_BD, dispersion) - cosine_loss(p, goal.target)
            for p in predictions
        ]
        return self.settings["cosine"] * self._angle * torch.stack(changes).mean(dim=0)


def check_share(number: float, name: str) -> float:
    """Return a setting that is a share, from 0 to 1.

    Raises:
        DistillError: it is another number.
    """
    if not 0 <= number <= 1:
        msg = f"setting '{name}' is a share from 0 to 1, {number:g} given"
        raise DistillError(msg)
    return number


class ContrastLoss(TermLoss):
    """Contrasts predictions with targets of embeddings, mean over teachers.

    The batch is that of all workers.
    """

    allowed = MappingProxyType({"temperature": 0.1})

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.heads = context.keys_of(CLS)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] over all teachers."""
        loss = partial(info_nce_loss, temperature=self.settings["temperature"])
        losses = [
            loss_over_workers(loss, inputs.predictions[key], inputs.goals[key].target)
            for key in self.heads
        ]
        return {"contrast": torch.stack(losses).mean(dim=0)}


class LogSumLoss(TermLoss):
    """Computes G2L's log of a sum of powers of differences between predictions and targets."""

    allowed = MappingProxyType({"power": 4.0})

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.heads = context.keys_of(CLS)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return one loss [B] per teacher."""
        return {
            f"log-sum {key[0]}": log_sum_loss(
                inputs.predictions[key], inputs.goals[key].target, power=self.settings["power"]
            )
            / len(self.heads)
            for key in self.heads
        }


class PrototypeLoss(TermLoss):
    """Computes the cross-entropy of assignments to prototypes, of embeddings and patch tokens.

    Source: H0-mini (arXiv 2501.16239) matches the teacher's DINO and iBOT heads. Public
    checkpoints have no such heads, so the prototypes here are fixed directions of the teacher's
    normalised features, the same for teacher and student; the normalisation centres targets, so
    that no running centre is needed.

    Settings: `prototypes`, their number; `teacher_temperature` and `temperature`, for cosines at
    unit variance.
    """

    allowed = MappingProxyType({"prototypes": 1024, "teacher_temperature": 0.4, "temperature": 1.0})

    def __init__(self, context: TermContext) -> None:
        super().__init__(context)
        self.heads = context.keys_of(CLS, PATCH)
        context.keys_of(PATCH)
        dims = {column.name: column.dim for column in context.columns}
        generator = torch.Generator().manual_seed(context.recipe.seed)
        for number, (name, _) in enumerate(self.heads):
            shape = (int(self.settings["prototypes"]), dims[name])
            directions = F.normalize(torch.randn(shape, generator=generator), dim=-1)
            self.register_buffer(f"prototypes{number}", directions)

    def forward(self, inputs: TermInputs) -> Losses:
        """Return DINO losses of embeddings and iBOT losses of tokens, [B] each."""
        losses: Losses = {}
        for number, key in enumerate(self.heads):
            name = f"{'dino' if key[1] == CLS else 'ibot'} {key[0]}"
            loss = self._output_loss(inputs.predictions[key], inputs.goals[key], number)
            losses[name] = loss if loss.ndim == 1 else loss.mean(dim=1)
        return losses

    def _output_loss(self, predicted: Tensor, goal: Goal, number: int) -> Tensor:
        directions_KD = self.get_buffer(f"prototypes{number}")
        with torch.autocast(predicted.device.type, enabled=False):
            # The variance of cosines with random directions is 1 / D; they are scaled to 1.
            scale = directions_KD.shape[1] ** 0.5
            logits, target = (
                F.normalize(x.float(), dim=-1) @ directions_KD.T * scale
                for x in (predicted, goal.target)
            )
            probabilities = (target / self.settings["teacher_temperature"]).softmax(dim=-1)
            return dino_loss(logits, probabilities, temperature=self.settings["temperature"])
