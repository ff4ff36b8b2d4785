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
    """An embedding that is measured.

    Attributes:
        kind: kind of embedding.
        name: name of the student, teacher, network or PCA.
        alike: text that is equal for subjects that are merged: seeds of one student.
        seed: seed of the subject, if it has one.
        embed: function that returns the embeddings [N, D] of tiles.
        runner: the subject's network, if it can be run on pixels here.
        record: record of the student, if the subject is one.
    """

    kind: Kind
    name: str
    alike: str
    seed: int | None
    embed: Callable[[SampledTiles], Array]
    runner: Runner | None = None
    record: StudentRecord | None = None


def gather_subjects(
    lake: Lake, split: EvaluationSplit, train: Mapping[float, SampledTiles], spec: EvaluationSpec
) -> tuple[list[Subject], list[str]]:
    """Return all subjects of a split, and a note for each that could not be run on pixels.

    Args:
        lake: the lake that holds the students and features.
        split: the students and slides.
        train: training tiles per mpp, on which PCA and batch norms are fitted.
        spec: settings of device and seeds.
    """
    students = [_student_subject(lake, student, split, spec) for student in split.runnable]
    one_tile = train[min(train)].first(1)
    widths = {subject.embed(one_tile).shape[1] for subject in students if subject.kind == "student"}
    pcas = [_pca_subject(split, train, width) for width in sorted(widths)]
    teachers, notes = _teacher_subjects(lake, split, min(train), spec)
    notes += [
        f"{student.name} sees features: no untrained network beside it, no pixels to perturb"
        for student in split.students
        if student.card is None
    ]
    return [*students, *_undistilled_subjects(split, train, spec), *pcas, *teachers], notes


def _student_subject(
    lake: Lake, student: StudentRecord, split: EvaluationSplit, spec: EvaluationSpec
) -> Subject:
    runner = None if student.card is None else run_student(lake, student.name, **spec.runs_on)
    seed = student.recipe.get("seed")
    return Subject(
        kind="student" if student in split.students else "single_teacher",
        name=student.name,
        alike=student.alike,
        seed=None if seed is None else int(seed),
        embed=_CachedFeatures(student.name) if runner is None else runner.embed,
        runner=runner,
        record=student,
    )


def _undistilled_subjects(
    split: EvaluationSplit, train: Mapping[float, SampledTiles], spec: EvaluationSpec
) -> list[Subject]:
    """Build each network untrained, with as many seeds as it has students."""
    networks: dict[str, list[Card]] = {}
    for student in split.students:
        if student.card is not None:
            networks.setdefault(student.network, []).append(student.card)
    # The finest mpp: for an untrained network no mpp is better than another.
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


def _pca_subject(
    split: EvaluationSplit, train: Mapping[float, SampledTiles], width: int
) -> Subject:
    pca = fit_pca(joined_features(list(train.values()), split.teachers), width)
    name = f"PCA {width} of {len(split.teachers)} teachers"

    def embed(tiles: SampledTiles) -> Array:
        return pca({teacher: _CachedFeatures(teacher)(tiles) for teacher in split.teachers})

    return Subject(kind="pca", name=name, alike=name, seed=None, embed=embed)


def _teacher_subjects(
    lake: Lake, split: EvaluationSplit, mpp: float, spec: EvaluationSpec
) -> tuple[list[Subject], list[str]]:
    """Return the teachers' cached features as subjects, and notes.

    A subject has its network if the teacher's weights are on this machine.
    """
    subjects, notes = [], []
    for name in split.teachers:
        runner = None
        try:
            _refuse_under(split, name)
            runner = run_teacher(lake, name, mpp=mpp, **spec.runs_on)
        except DistillError as error:
            notes.append(f"{error}; its robustness and speed were not measured")
        shown_name = f"{name} under" if split.under else name
        subjects.append(
            Subject(
                kind="teacher",
                name=shown_name,
                alike=shown_name,
                seed=None,
                embed=_CachedFeatures(name),
                runner=runner,
            )
        )
    return subjects, notes


def _refuse_under(split: EvaluationSplit, name: str) -> None:
    if split.under:
        msg = f"{name}: taken as its mean over the tiles of {split.under} mpp under each tile"
        raise DistillError(msg)


@dataclass(frozen=True)
class _CachedFeatures:
    """Reads the features of a column from sampled tiles."""

    name: str

    def __call__(self, tiles: SampledTiles) -> Array:
        if self.name not in tiles.features:
            msg = f"labelled tiles have no features of {self.name}"
            raise DistillError(msg)
        return tiles.features[self.name]
