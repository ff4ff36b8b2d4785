"""Fusion of K teachers' features of a tile into one vector; no pixels.

Source: Shazam's code (Tuner12/Shazam): a linear map a teacher, a softmax gate, 4 to 5 blocks of
cross-attention over the K tokens, their mean; distillation at a weight of 0.01. Each class below
lists its changes and their reasons.

Shape letters: B samples, K teachers, D width of the tokens, E embedding of a teacher.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.feature_losses import FeatureMatch, cosine_loss, smooth_l1_loss
from distill.losses.weighting import make_weighting
from distill.recipes.recipe import Recipe, Term
from distill.recipes.student_settings import FusionStudent
from distill.students.heads import make_head
from distill.students.student_kind import FeatureStudent, StudentKind, TaskInputs, feature_card
from distill.students.task import Batch, FeaturePrediction, TrainingTask
from distill.targets.kept_norms import KeptNorms, blank_norms
from distill.targets.target import Norms
from distill.terms.feature_terms import check_term
from downstream.mil.layers import TeacherGate, TokenBlock

SETTINGS: dict[str, dict[str, float]] = {"reconstruct": {"cosine": 0.9}, "fuse": {}}
# Norms that divide a token by its own size, if they are over the last axis alone. A batch norm
# divides by the size over the batch instead.
ERASING = (nn.LayerNorm, nn.RMSNorm)
PASSING = (nn.Identity, nn.Dropout)


@dataclass(frozen=True, kw_only=True)
class FusedTiles:
    """Outputs of a fuser for a batch of tiles.

    Attributes:
        vector: the fused vectors [B, D].
        tokens: the teachers' features, each mapped to the width, before the gate [B, K, D].
    """

    vector: Tensor
    tokens: Tensor


class Fuser(nn.Module):
    """A network that fuses the features of K teachers into one vector.

    Changed from Shazam: features are normalised by statistics that are kept with the weights, per
    teacher and mpp; the gate comes after its norm, since in front of one it has no effect; several
    heads of attention; the last layer's features alone, no cascade of three levels; no dropout.

    Args:
        settings: width, blocks and heads.
        dims: width E of each teacher's features, in the order of the tokens.
        norms: normalisation of every teacher at every mpp.

    Raises:
        DistillError: the width is no multiple of the heads, or statistics are missing.
    """

    def __init__(self, settings: FusionStudent, dims: Mapping[str, int], norms: Norms) -> None:
        super().__init__()
        if settings.width % settings.heads:
            msg = (
                f"width {settings.width} given; it must be a multiple of the {settings.heads} heads"
            )
            raise DistillError(msg)
        self.teachers, self.width = tuple(dims), settings.width
        self.norms = KeptNorms(self.teachers, norms)
        self.maps = nn.ModuleList(nn.Linear(dim, settings.width) for dim in dims.values())
        blocks = [TokenBlock(settings.width, settings.heads) for _ in range(settings.blocks)]
        self.blocks = nn.Sequential(*blocks)
        check_after_gate(self.blocks)
        self.gate = TeacherGate(len(dims), settings.width)

    @classmethod
    def restored(
        cls,
        settings: FusionStudent,
        teachers: Sequence[str],
        mpps: Sequence[float],
        targets: str,
        weights: Mapping[str, Tensor],
    ) -> Self:
        """Restore a fuser from its weights, in evaluation mode.

        Args:
            settings: the settings at training.
            teachers: the teachers in their order at training.
            mpps: mpps of the statistics among the weights.
            targets: kind of normalisation, one of `target.NORMS`.
            weights: state of the fuser.
        """
        dims = {name: weights[f"maps.{i}.weight"].shape[1] for i, name in enumerate(teachers)}
        fuser = cls(settings, dims, blank_norms(targets, dims, mpps))
        fuser.load_state_dict(dict(weights))
        return fuser.eval()

    def forward(self, features: Mapping[str, Tensor], mpp: float) -> FusedTiles:
        """Fuse raw features; return vectors and tokens.

        Args:
            features: raw features [B, E], by teacher.
            mpp: mpp of the tiles.

        Raises:
            DistillError: there are no statistics at this mpp.
        """
        tokens = [
            linear(self.norms.norm(name, mpp)(features[name]))
            for name, linear in zip(self.teachers, self.maps, strict=True)
        ]
        tokens_BKD = torch.stack(tokens, dim=1)
        fused_BKD: Tensor = self.blocks(self.gate(tokens_BKD))
        return FusedTiles(vector=fused_BKD.mean(dim=1), tokens=tokens_BKD)

    @torch.no_grad()
    def embed(self, features: Mapping[str, Tensor], *, mpp: float) -> Tensor:
        """Fuse raw features [B, E] by teacher to vectors [B, D], float32."""
        vector_BD: Tensor = self(features, mpp).vector
        return vector_BD.float()


def check_after_gate(following: nn.Module) -> None:
    """Refuse a module after a gate that starts with a norm, in the order of its registered parts.

    LayerNorm(w x) = LayerNorm(x) for any w > 0 (up to its epsilon), so a gate in front of a norm
    learns nothing and does nothing.

    Raises:
        DistillError: the module starts with such a norm.
    """
    leaves = (part for part in following.modules() if not list(part.children()))
    first = next((leaf for leaf in leaves if not isinstance(leaf, PASSING)), None)
    if isinstance(first, ERASING) and len(first.normalized_shape) == 1:
        msg = (
            f"a gate before {type(first).__name__} is erased, as it gives the same whatever the "
            "scale of a token; put the gate after the norm"
        )
        raise DistillError(msg)


class FusionTask(TrainingTask):
    """Trains a `Fuser` to hold the features of all its teachers.

    Terms: "reconstruct", a head per teacher from the vector to its target (setting `cosine`, the
    share of the cosine, the rest is smooth L1), teachers weighted by the recipe; and "fuse",
    Shazam's own: mean over teachers of 1 - cos + Huber of the vector and their mapped features.

    Changed from Shazam: its targets are the mapped features with their gradient, so that all maps
    to one constant is a minimum; here they are detached, and "reconstruct", which the paper does
    not have, is what ties the vector to the teachers. No task loss: nothing here has labels.

    Args:
        recipe: recipe of a `FusionStudent`.
        dims: width E of each teacher's features.
        norms: normalisation of every teacher at every mpp.

    Raises:
        DistillError: a term or a setting is not known, nothing is reconstructed, or smooth L1 would
            be redundant.
    """

    def __init__(self, recipe: Recipe, dims: Mapping[str, int], norms: Norms) -> None:
        super().__init__()
        settings = recipe.student_as(FusionStudent)
        self.terms = [_checked_term(recipe, term) for term in recipe.terms]
        self.fuser = Fuser(settings, {name: dims[name] for name in recipe.teachers}, norms)
        matched = {n for t in self.terms if t.kind == "reconstruct" for n in _teachers(recipe, t)}
        self._reconstructed = [name for name in recipe.teachers if name in matched]
        if not self._reconstructed:
            msg = (
                f"recipe '{recipe.name}' has no term 'reconstruct': nothing would tie the fused "
                "vector to the teachers' features"
            )
            raise DistillError(msg)
        self.heads = nn.ModuleList(
            make_head(recipe.head, settings.width, width=recipe.head_width, dim_out=dims[name])
            for name in self._reconstructed
        )
        self.weightings = nn.ModuleList(
            make_weighting(recipe.weighting, len(_teachers(recipe, term)), keep=recipe.keep)
            for term in self.terms
        )
        self._term_teachers = [_teachers(recipe, term) for term in self.terms]
        self._match = [
            FeatureMatch(targets=recipe.targets, cosine_weight=term.settings.get("cosine", 0.9))
            for term in self.terms
        ]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B]: "reconstruct TEACHER" and "fuse"."""
        fused = self.fuser(batch.features, batch.mpp)
        losses: dict[str, Tensor] = {}
        for number, term in enumerate(self.terms):
            if term.kind == "fuse":
                term_losses = {"fuse": self._fuse(fused, self._term_teachers[number])}
            else:
                term_losses = self._reconstruct(number, fused.vector, batch, generator)
            for name, loss_B in term_losses.items():
                losses[name] = losses.get(name, 0) + term.weight * loss_B
        return losses

    def _reconstruct(
        self, number: int, vector_BD: Tensor, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        names = self._term_teachers[number]
        losses = []
        for name in names:
            predicted_BE = self.heads[self._reconstructed.index(name)](vector_BD)
            losses.append(self._match[number](predicted_BE, self._target(name, batch)))
        losses_KB = torch.stack(losses)
        shares_KB = self.weightings[number](losses_KB, generator)
        return {f"reconstruct {n}": shares_KB[i] * losses_KB[i] for i, n in enumerate(names)}

    def _fuse(self, fused: FusedTiles, names: Sequence[str]) -> Tensor:
        losses = []
        for name in names:
            token_BD = fused.tokens[:, self.fuser.teachers.index(name)].detach()
            losses.append(
                cosine_loss(fused.vector, token_BD) + smooth_l1_loss(fused.vector, token_BD)
            )
        return torch.stack(losses).mean(dim=0)

    def _target(self, name: str, batch: Batch) -> Tensor:
        return self.fuser.norms.norm(name, batch.mpp)(batch.features[name])

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict each teacher's features from the fused vector."""
        vector_BD = self.fuser(batch.features, batch.mpp).vector
        return {
            name: FeaturePrediction(
                predicted=head(vector_BD).float(),
                features=batch.features[name],
                norm=self.fuser.norms.norm(name, batch.mpp),
                mpp=batch.mpp,
            )
            for name, head in zip(self._reconstructed, self.heads, strict=True)
        }

    @property
    def student(self) -> nn.Module:
        """Return the fuser; heads are not needed to use it."""
        return self.fuser

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the student and its heads."""
        return {**super().kept_parts, "heads": self.heads}

    @property
    def dim(self) -> int:
        """Return the width of the fused vector."""
        return self.fuser.width


def _teachers(recipe: Recipe, term: Term) -> tuple[str, ...]:
    return term.teachers or recipe.teachers


def _checked_term(recipe: Recipe, term: Term) -> Term:
    """Check a term's kind, settings and teachers; return the term.

    Raises:
        DistillError: the kind, a setting or a teacher is not known.
    """
    if term.kind not in SETTINGS:
        msg = f"no term '{term.kind}' of a fusion; known are {', '.join(SETTINGS)}"
        raise DistillError(msg)
    check_term(recipe, term, SETTINGS[term.kind])
    return term


def _fusion_task(inputs: TaskInputs) -> FusionTask:
    """Build a fuser with its heads and terms."""
    dims = {column.name: column.dim for column in inputs.columns}
    return FusionTask(inputs.recipe, dims, inputs.norms)


def _restored_fuser(card: Mapping[str, Any], weights: Mapping[str, Tensor]) -> FeatureStudent:
    """Restore a fuser from its card and weights."""
    teachers, recipe = card["teachers"], card["recipe"]
    settings = FusionStudent(**recipe["student"])
    fuser = Fuser.restored(settings, teachers, card["levels"], recipe["targets"], weights)
    return FeatureStudent(
        embed=lambda batch: fuser.embed(batch.features, mpp=batch.mpp), teachers=teachers
    )


FUSION = StudentKind(
    task=_fusion_task,
    keep=feature_card,
    restore=_restored_fuser,
    term_settings=lambda kind: SETTINGS.get(kind, {}),
)
