"""Terms that hold predictions of heads against a teacher's features.

Letters in names: B samples, T teachers, K prototypes, D embedding.
"""

from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.feature_losses import Match, info_nce_loss, log_sum_loss
from distill.losses.numeric import weighted_mean
from distill.losses.self_losses import dino_loss
from distill.losses.weighting import make_weighting
from distill.targets.target_sources import CLS, GRID, PATCH, Goal
from distill.terms.term import About, Key, Losses, Scene, TermLoss


class MatchLoss(TermLoss):
    """Cosine and smooth L1 of embeddings and of tokens, teachers weighted as the recipe says.

    Settings: `cosine` and `token_cosine`, shares of the cosine (the rest is smooth L1); `cls`,
    `patch` and `grid`, weights of the outputs.
    """

    allowed = MappingProxyType(
        {"cosine": 0.9, "token_cosine": 0.9, CLS: 1.0, PATCH: 1.0, GRID: 1.0}
    )

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.heads = [key for key in about.of(CLS, PATCH, GRID) if self.settings[key[1]] > 0]
        names = {column.name: column.teacher for column in about.columns}
        self._teacher = {key: names[key[0]] for key in self.heads}
        self.teachers = list(dict.fromkeys(self._teacher.values()))
        kind = about.recipe.weighting
        self.weighting = make_weighting(kind, len(self.teachers), keep=about.recipe.keep)
        self._cls, self._token = (
            Match(targets=about.recipe.targets, cosine_weight=self.settings[name])
            for name in ("cosine", "token_cosine")
        )

    def forward(self, scene: Scene) -> Losses:
        """One entry a teacher."""
        losses_TB = torch.stack([self._of(teacher, scene) for teacher in self.teachers])
        weighted_TB = self.weighting(losses_TB, scene.generator) * losses_TB
        return {f"match {name}": weighted_TB[i] for i, name in enumerate(self.teachers)}

    def _of(self, teacher: str, scene: Scene) -> Tensor:
        parts = [
            self.settings[key[1]] * self._one(key, scene)
            for key, name in self._teacher.items()
            if name == teacher
        ]
        return torch.stack(parts).sum(dim=0)

    def _one(self, key: Key, scene: Scene) -> Tensor:
        goal = scene.goals[key]
        if key[1] != CLS:
            return weighted_mean(self._token(scene.predictions[key], goal.target), goal.weight)
        several = [scene.predictions, *scene.nested]
        losses = torch.stack([self._cls(some[key], goal.target) for some in several]).mean(dim=0)
        return losses if goal.weight is None else losses * goal.weight


class ContrastLoss(TermLoss):
    """In-batch contrast between predictions and targets of embeddings, mean over teachers."""

    allowed = MappingProxyType({"temperature": 0.1})

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.heads = about.of(CLS)

    def forward(self, scene: Scene) -> Losses:
        """One entry."""
        temperature = self.settings["temperature"]
        losses = [
            info_nce_loss(scene.predictions[key], scene.goals[key].target, temperature=temperature)
            for key in self.heads
        ]
        return {"contrast": torch.stack(losses).mean(dim=0)}


class LogSumLoss(TermLoss):
    """G2L's log of a sum of powers of differences, mean over teachers, over log D channels."""

    allowed = MappingProxyType({"power": 4.0})

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.heads = about.of(CLS)

    def forward(self, scene: Scene) -> Losses:
        """One entry a teacher."""
        return {
            f"log-sum {key[0]}": log_sum_loss(
                scene.predictions[key], scene.goals[key].target, power=self.settings["power"]
            )
            / len(self.heads)
            for key in self.heads
        }


class PrototypeLoss(TermLoss):
    """Cross-entropy of assignments to prototypes, of embeddings and of all patch tokens.

    Source: H0-mini (arXiv 2501.16239) matches the teacher's DINO and iBOT heads. Public
    checkpoints have no such heads, so the prototypes here are fixed directions of the teacher's
    normalised features, the same for teacher and student; targets are centred as the statistics
    are, so that no running centre is needed.

    Settings: `prototypes`; `teacher_temperature` and `temperature`, of cosines of unit variance.
    """

    allowed = MappingProxyType({"prototypes": 1024, "teacher_temperature": 0.4, "temperature": 1.0})

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self.heads = about.of(CLS, PATCH)
        about.of(PATCH)
        dims = {column.name: column.dim for column in about.columns}
        drawn = torch.Generator().manual_seed(about.recipe.seed)
        for number, (name, _) in enumerate(self.heads):
            shape = (int(self.settings["prototypes"]), dims[name])
            fixed = F.normalize(torch.randn(shape, generator=drawn), dim=-1)
            self.register_buffer(f"prototypes{number}", fixed)

    def forward(self, scene: Scene) -> Losses:
        """DINO of embeddings, iBOT of tokens."""
        found: Losses = {}
        for number, key in enumerate(self.heads):
            name = f"{'dino' if key[1] == CLS else 'ibot'} {key[0]}"
            loss = self._one(scene.predictions[key], scene.goals[key], number)
            found[name] = loss if loss.ndim == 1 else loss.mean(dim=1)
        return found

    def _one(self, predicted: Tensor, goal: Goal, number: int) -> Tensor:
        directions_KD = self.get_buffer(f"prototypes{number}")
        with torch.autocast(predicted.device.type, enabled=False):
            # Cosines with random directions vary as 1 / D: brought to unit variance.
            scale = directions_KD.shape[1] ** 0.5
            logits, target = (
                F.normalize(x.float(), dim=-1) @ directions_KD.T * scale
                for x in (predicted, goal.target)
            )
            certain = (target / self.settings["teacher_temperature"]).softmax(dim=-1)
            return dino_loss(logits, certain, temperature=self.settings["temperature"])
