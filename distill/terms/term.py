"""The base of all terms of a tile student's loss: their inputs, and what they are built from.

A term gives losses per sample, weighted by teacher; its own weight comes on top. The columns of the
lake decide which outputs of the student are compared with which targets.

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
from distill.students.task import Batch
from distill.targets.target_sources import Goal, TeacherColumn

Key = tuple[str, str]  # column, output
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TermInputs:
    """Inputs of a term for one batch.

    Attributes:
        batch: raw features.
        outputs: what the student makes of its view.
        goals: by column and output.
        predictions: of the heads, by column and output.
        nested: predictions of the embedding's first channels alone, by column; one entry a width.
        another: runs the student on another view.
        generator: of random numbers.
    """

    batch: Batch
    outputs: StudentOutputs
    goals: Mapping[Key, Goal]
    predictions: Mapping[Key, Tensor]
    generator: torch.Generator
    another: Callable[[], StudentOutputs]
    nested: Sequence[Mapping[Key, Tensor]] = ()


@dataclass(frozen=True, kw_only=True)
class TermContext:
    """Recipe, student and columns that a term is built from.

    Attributes:
        recipe: that has the term.
        term: its own entry.
        student: for widths.
        columns: of its teachers.
        keys: columns and outputs of its teachers that have goals.
    """

    recipe: Recipe
    term: Term
    student: TileNetwork
    columns: Sequence[TeacherColumn]
    keys: Sequence[Key] = field(default_factory=list)

    def of(self, *outputs: str) -> list[Key]:
        """Return the term's columns with one of these outputs.

        Raises:
            DistillError: there is none.
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
    """One term of the loss.

    Attributes:
        heads: columns and outputs that it needs predictions of.
    """

    allowed: ClassVar[Mapping[str, float]] = MappingProxyType({})
    # Whether its columns are taken as they are, without normalised goals.
    raw: ClassVar[bool] = False

    def __init__(self, context: TermContext) -> None:
        super().__init__()
        wrong = sorted(set(context.term.settings) - set(self.allowed))
        if wrong:
            msg = (
                f"term '{context.term.kind}' has no setting {', '.join(wrong)}; it has "
                f"{', '.join(self.allowed) or 'none'}"
            )
            raise DistillError(msg)
        self.settings = {**self.allowed, **context.term.settings}
        self.heads: list[Key] = []

    @abstractmethod
    def forward(self, inputs: TermInputs) -> Losses:
        """Return the losses [B] by name."""

    def after_step(self, step: int, student: nn.Module) -> None:
        """Move what follows the student, after each optimiser step."""
