"""The embeddings that are compared on one split: students and their comparators."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.evaluate.compared_students import EvaluationSplit, StudentRecord
from distill.evaluate.embeddings import (
    Runner,
    fit_pca,
    joined_features,
    run_student,
    run_teacher,
    run_undistilled,
)
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.sampled_tiles import SampledTiles
from featurestore import Lake

if TYPE_CHECKING:
    from ingest.teachers.cards import Card

Kind = Literal["student", "single_teacher", "undistilled", "pca", "teacher"]
Array = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One embedding that is measured.

    Attributes:
        kind: of embedding.
        name: of the student, teacher, network or PCA.
        alike: text that is equal for subjects that are merged: seeds of one student.
        seed: of it, if it has one.
        embed: embeddings [N, D] of tiles.
        runner: its network, if it can be run on pixels here.
        record: of the student, if it is one.
    """

    kind: Kind
    name: str
    alike: str
    seed: int | None
    embed: Callable[[SampledTiles], Array]
    runner: Runner | None = None
    record: StudentRecord | None = None


def subjects(
    lake: Lake, split: EvaluationSplit, train: Mapping[float, SampledTiles], spec: EvaluationSpec
) -> tuple[list[Subject], list[str]]:
    """Gather all subjects of a split, and notes of those that could not be run on pixels.

    Args:
        lake: where they are.
        split: the students.
        train: training tiles per mpp, on which PCA and batch norms are fitted.
        spec: device and seeds.
    """
    students = [_student(lake, student, split, spec) for student in split.runnable]
    some = train[min(train)].first(1)
    widths = {subject.embed(some).shape[1] for subject in students if subject.kind == "student"}
    fitted = [_pca(split, train, width) for width in sorted(widths)]
    teachers, notes = _teachers(lake, split, min(train), spec)
    notes += [
        f"{student.name} sees features: no untrained network beside it, no pixels to perturb"
        for student in split.students
        if student.card is None
    ]
    return [*students, *_undistilled(split, train, spec), *fitted, *teachers], notes


def _student(
    lake: Lake, student: StudentRecord, split: EvaluationSplit, spec: EvaluationSpec
) -> Subject:
    runner = None if student.card is None else run_student(lake, student.name, **spec.runs_on)
    seed = student.recipe.get("seed")
    return Subject(
        kind="student" if student in split.students else "single_teacher",
        name=student.name,
        alike=student.alike,
        seed=None if seed is None else int(seed),
        embed=_Cached(student.name) if runner is None else runner.embed,
        runner=runner,
        record=student,
    )


def _undistilled(
    split: EvaluationSplit, train: Mapping[float, SampledTiles], spec: EvaluationSpec
) -> list[Subject]:
    """Build each network untrained, with as many seeds as it has students."""
    networks: dict[str, list[Card]] = {}
    for student in split.students:
        if student.card is not None:
            networks.setdefault(student.network, []).append(student.card)
    # Of the finest mpp: an untrained network has no reason to see one rather than another.
    tiles = train[min(train)]
    subjects = []
    for network, (card, *more) in networks.items():
        for seed in range(spec.seed, spec.seed + 1 + len(more)):
            runner = run_undistilled(card, tiles, seed=seed, **spec.runs_on)
            subjects.append(
                Subject(
                    kind="undistilled",
                    name=f"undistilled {card.architecture}",
                    alike=network,
                    seed=seed,
                    embed=runner.embed,
                    runner=runner,
                )
            )
    return subjects


def _pca(split: EvaluationSplit, train: Mapping[float, SampledTiles], width: int) -> Subject:
    pca = fit_pca(joined_features(list(train.values()), split.teachers), width)
    name = f"PCA {width} of {len(split.teachers)} teachers"

    def embed(tiles: SampledTiles) -> Array:
        return pca({teacher: _Cached(teacher)(tiles) for teacher in split.teachers})

    return Subject(kind="pca", name=name, alike=name, seed=None, embed=embed)


def _teachers(
    lake: Lake, split: EvaluationSplit, mpp: float, spec: EvaluationSpec
) -> tuple[list[Subject], list[str]]:
    """Gather the teachers' cached features, with their networks if the weights are here."""
    subjects, notes = [], []
    for name in split.teachers:
        runner = None
        try:
            _refuse_under(split, name)
            runner = run_teacher(lake, name, mpp=mpp, **spec.runs_on)
        except DistillError as error:
            notes.append(f"{error}; its robustness and speed were not measured")
        shown = f"{name} under" if split.under else name
        subjects.append(
            Subject(
                kind="teacher",
                name=shown,
                alike=shown,
                seed=None,
                embed=_Cached(name),
                runner=runner,
            )
        )
    return subjects, notes


def _refuse_under(split: EvaluationSplit, name: str) -> None:
    if split.under:
        msg = f"{name}: taken as its mean over the tiles of {split.under} mpp under each tile"
        raise DistillError(msg)


@dataclass(frozen=True)
class _Cached:
    """The features of a column, as the lake has them."""

    name: str

    def __call__(self, tiles: SampledTiles) -> Array:
        if self.name not in tiles.features:
            msg = f"labelled tiles have no features of {self.name}"
            raise DistillError(msg)
        return tiles.features[self.name]
