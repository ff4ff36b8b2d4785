"""One kind of student: the functions that train it, keep it and restore it.

Shape letters: B samples, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from distill.recipes.recipe import Recipe
from distill.students.task import Batch, Task
from distill.targets.target import Norms
from distill.targets.target_sources import Column
from featurestore.storage import json_bytes
from ingest import FEATURE_CARD


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """Inputs from which a student with all that trains it is built.

    Attributes:
        recipe: of this kind of student.
        columns: of the recipe's teachers.
        norms: of the targets, where they are to be used.
        under: finer mpps of the tiles under those that are read, coarse to fine.
    """

    recipe: Recipe
    columns: Sequence[Column]
    norms: Norms
    under: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A trained student that is about to be kept.

    Attributes:
        name: of the student.
        recipe: it was trained by.
        task: with its weights.
        identities: identity of each column that it was trained on, by `TEACHER@MPP`.
        mpps: of the tiles that it is run on.
        under: finer mpps of the tiles under these.
        licences: of its teachers.
    """

    name: str
    recipe: Recipe
    task: Task
    identities: Mapping[str, Any]
    mpps: tuple[float, ...]
    under: tuple[float, ...]
    licences: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FeatureStudent:
    """A student of features with its weights, ready to embed tiles.

    Attributes:
        embed: makes embeddings [B, D] of a batch.
        teachers: columns that it reads.
        levels: mpps at which it reads them under each tile; none if it reads the tile's own alone.
        batch_tiles: tiles of a batch that fits into memory.
    """

    embed: Callable[[Batch], Tensor]
    teachers: Sequence[str]
    levels: tuple[float, ...] = ()
    batch_tiles: int = 256


@dataclass(frozen=True, kw_only=True)
class StudentKind:
    """One kind of student.

    Attributes:
        task: builds the network, and all that trains it, with random weights.
        keep: makes the files beside the weights that say how the student is run, by name.
        restore: makes a student of features from its card and weights; None for a student of
            pixels, which `extract` runs as a teacher by its `card.json`.
    """

    task: Callable[[TaskInputs], Task]
    keep: Callable[[TrainedStudent], dict[str, bytes]]
    restore: Callable[[Mapping[str, Any], Mapping[str, Tensor]], FeatureStudent] | None = None


def feature_card(student: TrainedStudent) -> dict[str, bytes]:
    """Make the card of a student of features: the columns that it sees, and at which mpps."""
    card = {
        "name": student.name,
        "kind": type(student.recipe.student).__name__,
        "dim": student.task.dim,
        "recipe": asdict(student.recipe),
        "teachers": list(student.recipe.teachers),
        "identities": student.identities,
        "mpps": list(student.mpps),
        "levels": [*student.mpps, *student.under],
        "licences": dict(student.licences),
    }
    return {FEATURE_CARD: json_bytes(card)}
