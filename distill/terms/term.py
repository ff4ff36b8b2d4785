"""The base class of all terms of a tile student's loss, with their inputs and contexts.

A term returns losses per sample, weighted by teacher; the task multiplies them by the term's
weight. The columns of the lake decide which outputs of the student are compared with which targets.

Shape letters: B samples, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.recipe import Recipe, Term
from distill.students.student import StudentOutputs, TileNetwork
from distill.students.task import Batch, SecondStudent
from distill.targets.target_sources import Goal, TeacherColumn
from distill.targets.tile_classes import TileClasses

Key = tuple[str, str]  # column, output
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TermInputs:
    """Inputs of a term for one batch.

    Attributes:
        batch: batch with raw features.
        outputs: the student's outputs for its view.
        goals: goals by column and output.
        predictions: predictions of the heads, by column and output.
        view: the student's input [B, C, H, W], of which `outputs` are.
        nested: predictions from the embedding's first channels alone, by column; one entry a width.
        another: function that runs the student on another view.
        generator: generator of random draws.
    """

    batch: Batch
    outputs: StudentOutputs
    goals: Mapping[Key, Goal]
    predictions: Mapping[Key, Tensor]
    generator: torch.Generator
    another: Callable[[], StudentOutputs]
    view: Tensor | None = None
    nested: Sequence[Mapping[Key, Tensor]] = ()


@dataclass(frozen=True, kw_only=True)
class TermContext:
    """Recipe, student and columns from which a term is built.

    Attributes:
        recipe: the recipe that has the term.
        term: the term's entry in the recipe.
        student: the student's network, for its widths.
        columns: columns of the term's teachers.
        keys: columns and outputs of the term's teachers that have goals.
        classes: classes of the tiles, if the term names labels.
    """

    recipe: Recipe
    term: Term
    student: TileNetwork
    columns: Sequence[TeacherColumn]
    keys: Sequence[Key] = field(default_factory=list)
    classes: TileClasses | None = None

    def keys_of(self, *outputs: str) -> list[Key]:
        """Return the (column, output) keys of the term that have one of these outputs.

        Raises:
            DistillError: there is no such key.
        """
        matching_keys = [key for key in self.keys if key[1] in outputs]
        if not matching_keys:
            msg = (
                f"term '{self.term.kind}' matches {' or '.join(outputs)}; none of "
                f"{', '.join(c.name for c in self.columns)} has it: extract patch tokens as "
                "TEACHER:patches, or take a recipe of two mpps"
            )
            raise DistillError(msg)
        return matching_keys


class TermLoss(nn.Module, ABC):
    """Base class of one term of the loss.

    Attributes:
        heads: columns and outputs for which the term needs predictions.
    """

    allowed: ClassVar[Mapping[str, float]] = MappingProxyType({})
    # Whether the term reads its columns raw, without normalised goals.
    raw: ClassVar[bool] = False
    # Whether the term has its columns for itself: terms that name no teacher leave them out.
    apart: ClassVar[bool] = False
    # Whether the term reads the maps of the student's earlier levels.
    reads_levels: ClassVar[bool] = False
    # Whether the term may, or must, name labels.
    takes_labels: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        wrong = sorted(set(context.term.settings) - set(self.allowed))
        if wrong:
            msg = (
                f"term '{context.term.kind}' has no setting {', '.join(wrong)}; it has "
                f"{', '.join(self.allowed) or 'none'}"
            )
            raise DistillError(msg)
        named = bool(context.term.labels)
        if (self.needs_labels and not named) or (named and not self.takes_labels):
            msg = (
                f"term '{context.term.kind}' with labels '{context.term.labels or 'none'}'; it "
                f"{'needs' if self.needs_labels else 'takes no'} labels"
                + (", as KIND/ANNOTATION.COLUMN" if self.needs_labels else "")
            )
            raise DistillError(msg)
        self.settings = {**self.allowed, **context.term.settings}
        self.classes = context.classes
        self.heads: list[Key] = []

    @classmethod
    def crop_share(cls, term: Term) -> float | None:
        """Return the side of the crops that the student sees, as a share of a tile's; None: none.

        Args:
            term: the term's entry in a recipe.
        """
        return None

    @property
    def second_student(self) -> SecondStudent | None:
        """Return the second student that the term trains, if it trains one."""
        return None

    def labels(self, inputs: TermInputs) -> Tensor:
        """Return the number of each tile's class [B], -1 without one, on the student's device."""
        if self.classes is None:
            msg = "the term has no labels"
            raise TypeError(msg)
        numbers = self.classes.of(inputs.batch.tile_id.cpu().numpy())
        return torch.from_numpy(numbers).to(inputs.outputs.embedding.device)

    @abstractmethod
    def forward(self, inputs: TermInputs) -> Losses:
        """Return the losses [B] by name."""

    def after_step(self, step: int, student: nn.Module) -> None:
        """Update moving averages and centres after each optimiser step."""
