"""The kinds of students, by the name of their settings' class; modules are imported on use."""

import importlib

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import columns_of
from distill.students.student_kind import StudentKind, TaskInputs
from distill.students.task import TrainingTask
from distill.targets.target import Norms
from distill.targets.tile_classes import read_classes
from featurestore import Lake

STUDENT_KINDS: dict[str, str] = {
    "ContextStudent": "distill.students.of_features.context_task:CONTEXT",
    "FusionStudent": "distill.students.fusion:FUSION",
    "RegionStudent": "distill.terms.region_task:REGION",
    "RobustStudent": "distill.students.of_features.robust_head:ROBUST",
    "TileStudent": "distill.students.tile_task:TILE",
}


def student_kind(name: str) -> StudentKind:
    """Return a kind of student by the name of its settings' class.

    Raises:
        DistillError: no kind of student has this name.
    """
    if name not in STUDENT_KINDS:
        msg = f"no kind of student '{name}'; there are {', '.join(STUDENT_KINDS)}"
        raise DistillError(msg)
    module, _, attribute = STUDENT_KINDS[name].partition(":")
    kind: StudentKind = getattr(importlib.import_module(module), attribute)
    return kind


def kind_of(recipe: Recipe) -> StudentKind:
    """Return the kind of student that a recipe trains."""
    return student_kind(type(recipe.student).__name__)


def make_task(
    lake: Lake, recipe: Recipe, norms: Norms, initial: bytes | None = None
) -> TrainingTask:
    """Build the training task of a recipe, with random weights.

    Args:
        lake: the lake that has the columns of the recipe's teachers.
        recipe: recipe with any kind of student.
        norms: norms of the targets, on the device that trains.
        initial: file of the tensors from which the student starts, in place of random ones.
    """
    _, under = recipe.levels_of(lake.config.mpps)
    inputs = TaskInputs(
        recipe=recipe,
        columns=columns_of(lake, recipe),
        norms=norms,
        under=under,
        initial=initial,
        classes={name: read_classes(lake, name) for name in recipe.class_columns},
    )
    return kind_of(recipe).task(inputs)
