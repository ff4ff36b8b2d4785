"""Which students are evaluated, on whose slides, and what they are compared with.

Read from the students' folders alone: `card.json` and `report.json`.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from distill.errors import DistillError
from featurestore import Lake, LakeError, patient_of
from ingest import find_card, student_folder
from ingest.cards import Card

NOT_TILES = ("patches", "places")  # columns with many vectors for each tile


@dataclass(frozen=True, kw_only=True)
class Found:
    """A finished student of a lake.

    Attributes:
        name: of the student.
        card: how it is run.
        report: what its training wrote.
    """

    name: str
    card: Card
    report: Mapping[str, Any]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Its recipe's fields."""
        recipe: Mapping[str, Any] = self.report["recipe"]
        return recipe

    @property
    def teachers(self) -> tuple[str, ...]:
        """Its teachers' columns of one vector for each tile."""
        whats = ((name, name.partition(":")[2]) for name in self.recipe["teachers"])
        return tuple(name for name, what in whats if not what.startswith(NOT_TILES))

    @property
    def held_out(self) -> frozenset[str]:
        """Slides that nothing of it was fitted on."""
        return frozenset(self.report["held_out_slides"])

    @property
    def network(self) -> str:
        """What it is built from, as text that is equal for equal networks."""
        card = self.card
        return json.dumps([card.architecture, dict(card.arguments), card.input_px], sort_keys=True)

    @property
    def alike(self) -> str:
        """What is equal for students that differ in name and seed alone."""
        recipe = {key: value for key, value in self.recipe.items() if key != "seed"}
        return self.network + json.dumps(recipe, sort_keys=True)

    @property
    def gain(self) -> float:
        """Mean over its teachers of (cosine - baseline) / (1 - baseline), of its own report.

        That is the share of what the mean feature leaves open, so teachers whose features all
        resemble each other count no more than others.
        """
        told = self.report["fidelity"].values()
        gains = [(t["cosine"] - t["baseline"]) / max(1 - t["baseline"], 1e-6) for t in told]
        return float(sum(gains) / max(len(gains), 1))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Students that hold out the same slides, and whom they are compared with.

    Attributes:
        held_out: slides that are evaluated on.
        train: slides that read-outs are fitted on.
        students: those that were asked for.
        single: the best student of one teacher, if there is one.
        patient: of each slide.
    """

    held_out: tuple[str, ...]
    train: tuple[str, ...]
    students: tuple[Found, ...]
    single: Found | None
    patient: Mapping[str, str]

    @property
    def teachers(self) -> tuple[str, ...]:
        """All students' teachers, each once."""
        return tuple(dict.fromkeys(t for student in self.students for t in student.teachers))

    @property
    def runnable(self) -> tuple[Found, ...]:
        """The students, and the one of one teacher."""
        return (*self.students, *((self.single,) if self.single else ()))


def find_student(lake: Lake, name: str) -> Found:
    """A student by its name.

    Raises:
        DistillError: there is none of this name that is finished and sees pixels.
    """
    folder = student_folder(name)
    finished = [n for n in lake.store.names("students") if lake.exists(_report_path(n))]
    if name not in finished:
        msg = (
            f"no finished student '{name}' in {lake.uri}; there are: "
            f"{', '.join(finished) or 'none'}; slidelake distill makes one"
        )
        raise DistillError(msg)
    if not lake.exists(f"{folder}/card.json"):
        msg = f"student '{name}' has no card.json: it sees no pixels, and can't be run on tiles"
        raise DistillError(msg)
    report = lake.read_json(_report_path(name))
    lacking = [key for key in ("recipe", "held_out_slides", "fidelity") if key not in report]
    if lacking or "teachers" not in report["recipe"]:
        msg = f"{_report_path(name)} lacks {', '.join(lacking) or 'recipe.teachers'}"
        raise DistillError(msg)
    return Found(name=name, card=find_card(lake.store, name), report=report)


def _report_path(name: str) -> str:
    return f"{student_folder(name)}/report.json"


def splits(
    lake: Lake, names: Sequence[str], *, single: str | None = None
) -> tuple[list[Split], list[str]]:
    """Students by the slides that they hold out, and what is to be said of those left out.

    Seeds may hold out other patients each: every student is evaluated on its own.

    Args:
        lake: where they are.
        names: of the students.
        single: the name of the student of one teacher to compare with; the best if None.

    Raises:
        DistillError: a student is unknown, or its held-out slides are not in the lake any more.
    """
    students = [find_student(lake, name) for name in dict.fromkeys(names)]
    others = _others(lake, {student.name for student in students}) if single is None else []
    notes: list[str] = []
    found = []
    for held_out in dict.fromkeys(student.held_out for student in students):
        mine = tuple(student for student in students if student.held_out == held_out)
        if single is not None:
            best: Found | None = find_student(lake, single)
            _refuse_leak(best, held_out)
        else:
            best = best_single(mine, others)
        if best is None:
            who = ", ".join(student.name for student in mine)
            notes.append(f"{who}: no student of one teacher with this network and these slides")
        found.append(_split(lake, held_out, mine, best))
    return found, notes


def _refuse_leak(single: Found | None, held_out: frozenset[str]) -> None:
    if single is not None and not held_out <= single.held_out:
        seen = sorted(held_out - single.held_out)
        msg = (
            f"student '{single.name}' was trained on {len(seen)} of the held-out slides, "
            f"{seen[0]} among them; choose one that holds out the same patients"
        )
        raise DistillError(msg)


def _others(lake: Lake, names: set[str]) -> list[Found]:
    """All other finished students that see pixels."""
    folders = [name for name in lake.store.names("students") if name not in names]
    paths = {name: student_folder(name) for name in folders}
    whole = [
        name
        for name, folder in paths.items()
        if lake.exists(f"{folder}/report.json") and lake.exists(f"{folder}/card.json")
    ]
    return [find_student(lake, name) for name in whole]


def best_single(students: Sequence[Found], others: Sequence[Found]) -> Found | None:
    """The student of one teacher to compare with: of the same network, by `Found.gain`.

    It may have seen none of the held-out slides, and its teacher is one of the students'.
    """
    networks = {student.network for student in students}
    teachers = {teacher for student in students for teacher in student.teachers}
    fit = [
        other
        for other in others
        if len(other.recipe["teachers"]) == 1
        and set(other.teachers) <= teachers
        and other.network in networks
        and students[0].held_out <= other.held_out
    ]
    return max(fit, key=lambda other: (other.gain, other.name), default=None)


def _split(
    lake: Lake, held_out: frozenset[str], students: tuple[Found, ...], single: Found | None
) -> Split:
    slides = patient_of(lake.slides().filter(pl.col("state") == "ready").collect())
    slides = slides.sort("slide_id")
    patient = dict(slides.select("slide_id", "patient").iter_rows())
    there = tuple(slide for slide in patient if slide in held_out)
    if not there:
        msg = (
            f"none of the {len(held_out)} held-out slides of {students[0].name} is in {lake.uri} "
            "at this version; evaluate at the version that it was trained on (--at)"
        )
        raise DistillError(msg)
    # Slides that came later may be of a held-out patient: no read-out sees them.
    patients = {patient[slide] for slide in there}
    train = tuple(slide for slide, who in patient.items() if who not in patients)
    if not train:
        msg = f"no slide of another patient than the held-out ones is in {lake.uri}"
        raise LakeError(msg)
    return Split(held_out=there, train=train, students=students, single=single, patient=patient)


def group_name(names: Sequence[str]) -> str:
    """One name for students that differ in their seed.

    >>> group_name(["tiny-s0", "tiny-s1"]), group_name(["a", "b"]), group_name(["a"])
    ('tiny', 'a and 1 more', 'a')
    """
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("0123456789")
    for ending in ("seed", "s"):
        if common.endswith(("-" + ending, "_" + ending, "." + ending)):
            common = common.removesuffix(ending)
    return common.rstrip("-_.") or f"{names[0]} and {len(names) - 1} more"
