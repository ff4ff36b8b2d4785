"""The students that are evaluated, their held-out slides, and the students beside them.

Read from the students' folders alone: `card.json` and `report.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from distill.errors import DistillError
from distill.recipes.recipe import TileChoice
from featurestore import Lake, patient_of
from featurestore.storage import read_sealed
from ingest import find_card, sees_features, student_folder
from ingest.teachers.cards import Card

NOT_TILES = ("patches", "places")  # columns with many vectors for each tile


@dataclass(frozen=True, kw_only=True)
class StudentRecord:
    """A finished student of a lake.

    Attributes:
        name: the student's name.
        card: the student's card; None for a student of features, whose column `extract` writes.
        report: the report of its training.
        mpps: the mpps at which it was trained.
        under: a finer mpp, if its targets are its teachers' mean features of the tiles under it.
    """

    name: str
    card: Card | None
    report: Mapping[str, Any]
    mpps: tuple[float, ...]
    under: float | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Return the fields of the student's recipe."""
        recipe: Mapping[str, Any] = self.report["recipe"]
        return recipe

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the teachers' columns that hold one vector for each tile."""
        parts = ((name, name.partition(":")[2]) for name in self.recipe["teachers"])
        return tuple(name for name, part in parts if not part.startswith(NOT_TILES))

    @property
    def held_out(self) -> frozenset[str]:
        """Return the slides that no part of the student was fitted on."""
        return frozenset(self.report["held_out_slides"])

    @property
    def network(self) -> str:
        """Return the network's settings as text that is equal for equal networks."""
        card = self.card
        if card is None:
            return json.dumps(self.recipe.get("student"), sort_keys=True)
        return json.dumps([card.architecture, dict(card.arguments), card.input_px], sort_keys=True)

    @property
    def setting(self) -> tuple[frozenset[str], tuple[float, ...], float | None]:
        """Return the slides, mpps and levels that students of one split share."""
        return self.held_out, self.mpps, self.under

    @property
    def alike(self) -> str:
        """Text that is equal for students that differ in name and seed alone."""
        recipe = {key: setting for key, setting in self.recipe.items() if key != "seed"}
        # Reports of earlier versions lack later fields, which then have their defaults.
        recipe["student"] = {"init": "", "decode": "full"} | dict(recipe.get("student") or {})
        recipe["tiles"] = recipe.get("tiles") or asdict(TileChoice())
        return self.network + json.dumps(recipe, sort_keys=True)

    @property
    def gain(self) -> float:
        """Return the mean over the teachers of (cosine - baseline) / (1 - baseline).

        This is the share that is explained of what the mean feature leaves open, so teachers with
        features that all resemble each other count no more than others.
        """
        reports = self.report["fidelity"].values()
        gains = [(t["cosine"] - t["baseline"]) / max(1 - t["baseline"], 1e-6) for t in reports]
        return float(sum(gains) / max(len(gains), 1))


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """Students that hold out the same slides, and the student that they are compared with.

    Attributes:
        held_out: slides that the evaluation uses.
        train: slides that read-outs are fitted on.
        students: the students that were named.
        single: the best student of one teacher, if there is one.
        patient: the patient of each slide.
        mpps: mpps of the tiles.
        teachers: all students' teachers that have features at these mpps.
    """

    held_out: tuple[str, ...]
    train: tuple[str, ...]
    students: tuple[StudentRecord, ...]
    single: StudentRecord | None
    patient: Mapping[str, str]
    mpps: tuple[float, ...]
    teachers: tuple[str, ...]

    @property
    def under(self) -> float | None:
        """Return the finer mpp of which the teachers' mean features are the targets, or None."""
        return self.students[0].under

    @property
    def runnable(self) -> tuple[StudentRecord, ...]:
        """Return the students, and the single-teacher student."""
        return (*self.students, *((self.single,) if self.single else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that are read with each tile: teachers and students of features."""
        cached = () if self.under else self.teachers
        return (*cached, *(student.name for student in self.runnable if student.card is None))


def find_student(lake: Lake, name: str) -> StudentRecord:
    """Find a finished student by its name.

    Raises:
        DistillError: no finished student has this name, or its report lacks a key.
    """
    finished = [n for n in lake.store.names("students") if lake.exists(_report_path(n))]
    if name not in finished:
        msg = (
            f"no finished student '{name}' in {lake.uri}; there are: "
            f"{', '.join(finished) or 'none'}; slidelake distill makes one"
        )
        raise DistillError(msg)
    report = read_sealed(lake.store, _report_path(name))
    lacking = [key for key in ("recipe", "held_out_slides", "fidelity") if key not in report]
    if lacking or "teachers" not in report["recipe"]:
        msg = f"{_report_path(name)} lacks {', '.join(lacking) or 'recipe.teachers'}"
        raise DistillError(msg)
    card = None if sees_features(lake.store, name) else find_card(lake.store, name)
    levels = int(report["recipe"].get("levels", 1))
    mpps = sorted(report["recipe"].get("mpps") or lake.config.mpps, reverse=True)
    return StudentRecord(
        name=name,
        card=card,
        report=report,
        mpps=tuple(sorted(mpps if levels == 1 else mpps[:1])),
        under=mpps[1] if levels > 1 and card is not None else None,
    )


def _report_path(name: str) -> str:
    return f"{student_folder(name)}/report.json"


def evaluation_splits(
    lake: Lake,
    names: Sequence[str],
    *,
    single: str | None = None,
    mpps: Sequence[float] | None = None,
) -> tuple[list[EvaluationSplit], list[str]]:
    """Group students by the slides that they hold out, and note what is left out.

    Seeds may hold out other patients each: every student is evaluated on its own.

    Args:
        lake: the lake that holds the students.
        names: names of the students.
        single: the name of the student of one teacher to compare with; the best if None.
        mpps: mpps of the tiles; the students' own if None.

    Raises:
        DistillError: a student is unknown, its held-out slides are not in the lake any more, or
            features are lacking.
        LakeError: the lake has no such mpp.
    """
    students = [find_student(lake, name) for name in dict.fromkeys(names)]
    others = _other_students(lake, {student.name for student in students}) if single is None else []
    notes: list[str] = []
    all_splits = []
    for setting in dict.fromkeys(student.setting for student in students):
        students_of_split = tuple(student for student in students if student.setting == setting)
        best = (
            best_single(students_of_split, others) if single is None else find_student(lake, single)
        )
        _refuse_leak(best, students_of_split[0].held_out)
        if best is None:
            names_text = ", ".join(student.name for student in students_of_split)
            notes.append(
                f"{names_text}: no student of one teacher with this network and these slides"
            )
        split_mpps = (
            students_of_split[0].mpps
            if mpps is None
            else tuple(lake.known_mpp(mpp) for mpp in mpps)
        )
        all_splits.append(_evaluation_split(lake, students_of_split, best, split_mpps))
        teachers = {teacher for student in students_of_split for teacher in student.teachers}
        if lacking := sorted(teachers - set(all_splits[-1].teachers)):
            notes.append(
                f"no features of {', '.join(lacking)} at {list(split_mpps)} mpp: not compared"
            )
    return all_splits, notes


def _refuse_leak(single: StudentRecord | None, held_out: frozenset[str]) -> None:
    if single is not None and not held_out <= single.held_out:
        leaked = sorted(held_out - single.held_out)
        msg = (
            f"student '{single.name}' was trained on {len(leaked)} of the held-out slides, "
            f"{leaked[0]} among them; choose one that holds out the same patients"
        )
        raise DistillError(msg)


def _other_students(lake: Lake, names: set[str]) -> list[StudentRecord]:
    """Return all other finished students of the lake."""
    others = [name for name in lake.store.names("students") if name not in names]
    return [find_student(lake, name) for name in others if lake.exists(_report_path(name))]


def best_single(
    students: Sequence[StudentRecord], others: Sequence[StudentRecord]
) -> StudentRecord | None:
    """Choose the single-teacher student to compare with: the same network, the highest `gain`.

    It was trained on none of the held-out slides, and its teacher is a teacher of the students.
    """
    networks = {student.network for student in students}
    teachers = {teacher for student in students for teacher in student.teachers}
    candidates = [
        other
        for other in others
        if len(other.recipe["teachers"]) == 1
        and set(other.teachers) <= teachers
        and other.card is not None
        and other.network in networks
        and other.under == students[0].under
        and students[0].held_out <= other.held_out
    ]
    return max(candidates, key=lambda other: (other.gain, other.name), default=None)


def _evaluation_split(
    lake: Lake,
    students: tuple[StudentRecord, ...],
    single: StudentRecord | None,
    mpps: tuple[float, ...],
) -> EvaluationSplit:
    slides = patient_of(lake.slides().filter(pl.col("state") == "ready").collect())
    slides = slides.sort("slide_id")
    patient = dict(slides.select("slide_id", "patient").iter_rows())
    held_out_slides = tuple(slide for slide in patient if slide in students[0].held_out)
    if not held_out_slides:
        msg = (
            f"none of the {len(students[0].held_out)} held-out slides of {students[0].name} is in "
            f"{lake.uri} at this version; evaluate at the version that it was trained on (--at)"
        )
        raise DistillError(msg)
    # Slides that came later may be of a held-out patient: no read-out is fitted on them.
    patients = {patient[slide] for slide in held_out_slides}
    train = tuple(slide for slide, owner in patient.items() if owner not in patients)
    if not train:
        msg = f"no slide of another patient than the held-out ones is in {lake.uri}"
        raise DistillError(msg)
    return EvaluationSplit(
        held_out=held_out_slides,
        train=train,
        students=students,
        single=single,
        patient=patient,
        mpps=mpps,
        teachers=_teachers_at(lake, students, mpps),
    )


def _teachers_at(
    lake: Lake, students: Sequence[StudentRecord], mpps: Sequence[float]
) -> tuple[str, ...]:
    """Return the students' teachers that have a column at every mpp where it is needed.

    Raises:
        DistillError: no teacher has such columns, or a student of features has no column itself.
    """
    under = students[0].under
    columns = [lake.teachers(mpp=mpp) for mpp in ((under,) if under else mpps)]
    teachers = dict.fromkeys(teacher for student in students for teacher in student.teachers)
    present = tuple(name for name in teachers if all(name in names for names in columns))
    feature_students = [student.name for student in students if student.card is None]
    lacking = [
        name for name in feature_students for mpp in mpps if name not in lake.teachers(mpp=mpp)
    ]
    if lacking or not present:
        names = dict.fromkeys(lacking or teachers)
        msg = (
            f"no features of {', '.join(names)} at {list(mpps)} mpp in {lake.uri}: run slidelake "
            f"extract {lake.uri} {' '.join(f'--teacher {name}' for name in names)}"
        )
        raise DistillError(msg)
    return present
