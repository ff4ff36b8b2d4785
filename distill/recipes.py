"""Recipes: a function that returns a frozen configuration; the command line sets a few fields."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distill.errors import DistillError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training run, apart from the data.

    Attributes:
        name: of the recipe.
        architecture: timm's name of the student's network.
        input_px: side of the square that the student sees.
        teachers: whose cached features are matched.
        mpps: at which magnifications; all of the lake's if empty.
        head_width: hidden units of each teacher's head.
        cosine_weight: share of the cosine in the loss; the rest is smooth L1.
        epochs: passes over the training tiles.
        batch_tiles: tiles in a step, over all workers.
        learning_rate: peak of AdamW's, after a warm-up and before a cosine decay to zero.
        weight_decay: AdamW's.
        warmup_share: of the steps.
        holdout: share of the patients that nothing is fitted on.
        seed: of the split, the initial weights, the order of tiles and the flips.
    """

    name: str
    architecture: str
    input_px: int
    teachers: tuple[str, ...]
    mpps: tuple[float, ...] = ()
    head_width: int = 512
    cosine_weight: float = 0.9
    epochs: int = 8
    batch_tiles: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    holdout: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.teachers:
            msg = f"recipe '{self.name}' needs at least one teacher"
            raise DistillError(msg)
        if self.epochs < 1 or self.batch_tiles < 2:
            msg = (
                f"epochs={self.epochs}, batch_tiles={self.batch_tiles} given; at least 1 and 2 "
                "(batch normalisation needs two samples)"
            )
            raise DistillError(msg)

    def mpps_of(self, known: tuple[float, ...]) -> tuple[float, ...]:
        """The mpps to train at, out of the lake's.

        Raises:
            DistillError: the lake has no tiles at one of them.
        """
        missing = set(self.mpps) - set(known)
        if missing:
            msg = (
                f"recipe '{self.name}' asks for mpps {sorted(missing)}; the lake has {list(known)}"
            )
            raise DistillError(msg)
        return self.mpps or known


def agglomerate(teachers: tuple[str, ...]) -> Recipe:
    """Any number of teachers into one small convolutional student, from cached features alone."""
    return Recipe(
        name="agglomerate",
        architecture="mobilenetv4_conv_small_050",
        input_px=128,
        teachers=teachers,
    )


RECIPES: dict[str, Callable[[tuple[str, ...]], Recipe]] = {"agglomerate": agglomerate}


def make_recipe(name: str, teachers: tuple[str, ...], **changes: Any) -> Recipe:  # noqa: ANN401
    """A named recipe with some fields set; fields given as None keep the recipe's value.

    Raises:
        DistillError: the recipe is not known.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        msg = f"no recipe '{name}': {hint}known are {', '.join(RECIPES)}"
        raise DistillError(msg)
    given = {key: value for key, value in changes.items() if value is not None}
    return replace(RECIPES[name](teachers), **given)
