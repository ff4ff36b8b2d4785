"""What the parts of a tile student's loss have in common: what they see, what they are built from.

A term gives losses per sample, weighted by teacher; its own weight comes on top. Which outputs of
the student it holds against which targets is decided by what the lake has.

Letters in names: B samples, D embedding.
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
from distill.students.student import Seen, Student
from distill.students.task import Batch
from distill.targets.target_sources import Column, Goal

Key = tuple[str, str]  # column, output
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a term may look at.

    Attributes:
        batch: raw features.
        seen: what the student makes of its view.
        goals: by column and output.
        predictions: of the heads, by column and output.
        nested: predictions of the embedding's first channels alone, by column; one entry a width.
        another: runs the student on another view.
        generator: of what is drawn.
    """

    batch: Batch
    seen: Seen
    goals: Mapping[Key, Goal]
    predictions: Mapping[Key, Tensor]
    generator: torch.Generator
    another: Callable[[], Seen]
    nested: Sequence[Mapping[Key, Tensor]] = ()


@dataclass(frozen=True, kw_only=True)
class About:
    """What a term is built from.

    Attributes:
        recipe: whose it is.
        term: its own entry.
        student: for widths.
        columns: of its teachers.
        keys: columns and outputs that have goals, of its teachers.
    """

    recipe: Recipe
    term: Term
    student: Student
    columns: Sequence[Column]
    keys: Sequence[Key] = field(default_factory=list)

    def of(self, *outputs: str) -> list[Key]:
        """Its columns with one of these outputs.

        Raises:
            DistillError: there is none.
        """
        found = [key for key in self.keys if key[1] in outputs]
        if not found:
            msg = (
                f"term '{self.term.kind}' matches {' or '.join(outputs)}; none of "
                f"{', '.join(c.name for c in self.columns)} has it: extract patch tokens as "
                "TEACHER:patches, or take a recipe of two mpps"
            )
            raise DistillError(msg)
        return found


class TermLoss(nn.Module, ABC):
    """One term.

    Attributes:
        heads: columns and outputs that it wants predictions of.
    """

    allowed: ClassVar[Mapping[str, float]] = MappingProxyType({})
    # Whether its columns are taken as they are, without normalised goals.
    raw: ClassVar[bool] = False

    def __init__(self, about: About) -> None:
        super().__init__()
        wrong = sorted(set(about.term.settings) - set(self.allowed))
        if wrong:
            msg = (
                f"term '{about.term.kind}' has no setting {', '.join(wrong)}; it has "
                f"{', '.join(self.allowed) or 'none'}"
            )
            raise DistillError(msg)
        self.settings = {**self.allowed, **about.term.settings}
        self.heads: list[Key] = []

    @abstractmethod
    def forward(self, scene: Scene) -> Losses:
        """Losses [B] by name."""

    def after_step(self, step: int, student: nn.Module) -> None:
        """Called after each optimiser step."""
