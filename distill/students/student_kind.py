"""One kind of student: the functions that train, keep and restore it.

Shape letters: B samples, D embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from distill.recipes.recipe import Recipe
from distill.students.task import Batch, KeptStudent, TrainingTask
from distill.targets.target import Norms
from distill.targets.target_sources import TeacherColumn
from distill.targets.tile_classes import TileClasses
from featurestore import Licence, forbidden_by_any
from featurestore.storage import json_bytes
from ingest import FEATURE_CARD


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """Inputs from which a training task is built.

    Attributes:
        recipe: recipe with this kind of student.
        columns: columns of the recipe's teachers.
        norms: norms of the targets, on the device that trains.
        under: finer mpps of the tiles under the tiles that are read, coarse to fine.
        initial: file of the tensors from which the student starts; None for random weights.
        classes: classes of tiles, by the column of the annotation.
    """

    recipe: Recipe
    columns: Sequence[TeacherColumn]
    norms: Norms
    under: tuple[float, ...]
    initial: bytes | None = None
    classes: Mapping[str, TileClasses] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A trained student that is to be written to the lake.

    Attributes:
        name: name of the student.
        recipe: recipe of the training.
        task: the trained task, with its weights.
        identities: identity of each column of the training, by `TEACHER@MPP`.
        mpps: mpps of the tiles that the student embeds.
        under: finer mpps of the tiles under these tiles.
        licences: licence of each teacher, and of the weights that the training started from.
        initial: facts of the weights that the training started from; empty for random ones.
    """

    name: str
    recipe: Recipe
    task: KeptStudent
    identities: Mapping[str, Any]
    mpps: tuple[float, ...]
    under: tuple[float, ...]
    licences: Mapping[str, Licence]
    initial: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FeatureStudent:
    """A student of features with its weights, ready to embed tiles.

    Attributes:
        embed: function that returns the embeddings [B, D] of a batch.
        teachers: columns that the student reads.
        levels: mpps of the columns under each tile; empty if only the tile's own features are read.
        batch_tiles: number of tiles in a batch that fits into memory.
    """

    embed: Callable[[Batch], Tensor]
    teachers: Sequence[str]
    levels: tuple[float, ...] = ()
    batch_tiles: int = 256


@dataclass(frozen=True, kw_only=True)
class StudentKind:
    """The functions of one kind of student.

    Attributes:
        task: function that builds the training task, with random weights.
        keep: function that returns the files beside the weights, with which the student is run, by
            name.
        restore: function that restores a student of features from its card and weights; None for a
            student of pixels, which `extract` runs by its `card.json`.
        term_settings: function that returns the settings of a term of such a student by its kind,
            with their defaults.
    """

    task: Callable[[TaskInputs], TrainingTask]
    keep: Callable[[TrainedStudent], dict[str, bytes]]
    restore: Callable[[Mapping[str, Any], Mapping[str, Tensor]], FeatureStudent] | None = None
    term_settings: Callable[[str], Mapping[str, float]] = lambda _: {}


def feature_card(student: TrainedStudent) -> dict[str, bytes]:
    """Return the card of a student of features, with the columns and mpps that it reads."""
    card = {
        "name": student.name,
        "kind": type(student.recipe.student).__name__,
        "dim": student.task.dim,
        "recipe": asdict(student.recipe),
        "teachers": list(student.recipe.teachers),
        "identities": student.identities,
        "mpps": list(student.mpps),
        "levels": [*student.mpps, *student.under],
        "licences": {name: licence.text for name, licence in student.licences.items()},
        "forbids": list(forbidden_by_any(list(student.licences.values()))),
    }
    return {FEATURE_CARD: json_bytes(card)}
