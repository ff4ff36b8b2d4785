"""What one run is: its patients, folds and settings, the cells it consists of, and its name.

A cell is one feature set on one fold. The name of a run is a hash of everything that decides its
result, so the same question finds its answer again, and a killed run its finished cells.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from downstream.bags import teachers_of
from downstream.splits import assert_disjoint

if TYPE_CHECKING:
    from downstream.settings import AbmilSettings, CoxSettings

FORMAT = 1
"""Version of what a run's folder holds and of how results come about; part of the hash, raised when
either changes."""

Kind = Literal["mil", "survival"]


class StudyError(ValueError):
    """Options of a run that do not make sense."""


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One row of the cohort.

    Attributes:
        patient_id: Who.
        slide_ids: The patient's slides, sorted.
        fold: The one fold in which the patient is tested.
        outcome: (class index,) for a classification, (time, event as 0 or 1) for survival.
    """

    patient_id: str
    slide_ids: tuple[str, ...]
    fold: int
    outcome: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole run.

    Attributes:
        kind: Which sort of run.
        lake_uri: The lake it reads and writes.
        lake_version: The version that it reads; the result does not depend on later ones.
        features: Feature sets, each one teacher or several joined by `+`.
        mpp: Microns per pixel of the tiles.
        folds: How many folds.
        seed: Of folds, training and bootstrap.
        columns: The label columns: (target,) or (time, event).
        classes: Names of the classes by index; empty for survival.
        labels_sha256: Hash of the label file.
        identities: Feature set -> what identifies its content in this lake.
        settings: Of the model.
        patients: The cohort, sorted by patient.
    """

    kind: Kind
    lake_uri: str
    lake_version: int
    features: tuple[str, ...]
    mpp: float
    folds: int
    seed: int
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    labels_sha256: str
    identities: dict[str, str]
    settings: AbmilSettings | CoxSettings
    patients: tuple[Patient, ...]

    @property
    def config(self) -> dict[str, Any]:
        """What decides the result apart from the patients, as JSON; not where the lake lies."""
        return {
            "format": FORMAT,
            "features": list(self.features),
            "mpp": self.mpp,
            "folds": self.folds,
            "seed": self.seed,
            "columns": list(self.columns),
            "classes": list(self.classes),
            "labels_sha256": self.labels_sha256,
            "identities": self.identities,
            "settings": asdict(self.settings),
        }

    @property
    def run(self) -> str:
        """Name of the run's folder: kind and hash of configuration and patients."""
        content = {
            "kind": self.kind,
            "config": self.config,
            "patients": [asdict(p) for p in self.patients],
        }
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def cells(self) -> list[Cell]:
        """Every feature set on every fold, feature set by feature set.

        Raises:
            LeakageError: A patient or a slide is in more than one fold.
        """
        for ids in (lambda p: (p.patient_id,)), (lambda p: p.slide_ids):
            groups = {
                f"fold {k}": [i for p in self.patients if p.fold == k for i in ids(p)]
                for k in range(self.folds)
            }
            assert_disjoint(groups)
        return [
            Cell(study=self, features=name, fold=k)
            for name in self.features
            for k in range(self.folds)
        ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One feature set on one fold: all that a worker needs.

    Attributes:
        study: The run it is part of.
        features: The feature set.
        fold: The test fold; all others train.
    """

    study: Study
    features: str
    fold: int

    @property
    def train(self) -> list[Patient]:
        """Patients of the other folds."""
        return [patient for patient in self.study.patients if patient.fold != self.fold]

    @property
    def test(self) -> list[Patient]:
        """Patients of this fold."""
        return [patient for patient in self.study.patients if patient.fold == self.fold]

    @property
    def stem(self) -> str:
        """Path of the cell's files within the lake, without the ending."""
        return f"runs/{self.study.run}/cells/{safe_name(self.features)}-{self.fold}"


def check_features(features: list[str]) -> tuple[str, ...]:
    """The feature sets of a run, as given.

    Raises:
        StudyError: None at all, one named twice, or one with an empty teacher ("a+" or "").
    """
    if not features:
        msg = "no feature sets; name at least one teacher of the lake, or several joined by '+'"
        raise StudyError(msg)
    for name in features:
        if features.count(name) > 1 or "" in teachers_of(name):
            msg = f"feature set {name!r}; name each once, as one teacher or several joined by '+'"
            raise StudyError(msg)
    return tuple(features)


def safe_name(name: str) -> str:
    """A file name for a feature set; a changed name gets a hash, so that no two become one.

    >>> safe_name("uni2"), safe_name("uni2+virchow2")
    ('uni2', 'uni2_virchow2-650d70d4')
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
