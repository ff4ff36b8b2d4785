"""A study as it runs: its patients, splits and settings, its cells, and its name.

An arm is a feature set with a model; a cell is an arm on one fold of one repetition with one seed.
The name of a run is a hash of everything that decides its result, so the same question finds its
answer again, and a killed run its finished cells.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster import counted, extension_sha256
from downstream.cohorts.covariates import category_names
from downstream.run.feature_bags import teachers_of
from downstream.run.model_tables import AGGREGATORS, CLINICAL
from downstream.run.study_errors import StudyError
from downstream.splits.split import LeakageError

if TYPE_CHECKING:
    from downstream.run.fit_settings import MilSettings, SurvivalSettings
    from downstream.run.study_spec import CovariateFusionName, Kind
    from downstream.splits.folds import Split

FORMAT = 5
"""Version of what a run's folder holds and of how results come about; part of the hash, raised when
either changes."""

Outcome = Literal["binary", "multiclass", "multilabel", "regression", "survival"]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient of the cohort with its slides and outcome.

    Attributes:
        patient_id: id of the patient.
        slide_ids: the patient's slides, sorted.
        outcome: (class index,), labels as 0 or 1, (number,), or (time, event as 0 or 1); of
            competing events (time, whether it is the event of interest, number of the cause).
        covariates: the study's covariates, None where not known; empty without any.
    """

    patient_id: str
    slide_ids: tuple[str, ...]
    outcome: tuple[float, ...]
    covariates: tuple[float | str | None, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides a result, as JSON; without covariates where there are none."""
        content = asdict(self)
        return content if self.covariates else {k: content[k] for k in content if k != "covariates"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An arm of a study: a feature set with a model.

    Attributes:
        name: displayed name: the feature set, with the model where a run has several.
        features: name of the feature set: one teacher, or several joined by `+`.
        model: name of the model.
    """

    name: str
    features: str
    model: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its cohort and splits: all that determines a run.

    Attributes:
        kind: kind of study: `mil` or `survival`.
        task: task that the models predict.
        lake_uri: the lake it reads and writes.
        lake_version: the version that it reads; the result does not depend on later ones.
        features: feature sets, each one teacher or several joined by `+`.
        models: names of models; every one on every feature set.
        mpps: microns per pixel of the tiles.
        splits: training, validation and test patients; the inner splits of a fold share its test.
        seeds: trainings of each cell's models with different random numbers.
        seed: seed of folds, training and bootstrap.
        columns: the label columns.
        classes: names of the classes, or of the labels, by index; empty for numbers and survival.
        head: output of a MIL model of survival: `hazards` or `cox`; empty otherwise.
        reference: arm that the others are compared with.
        margin: non-inferiority margin against the reference; None for no such test.
        tune: draws of settings that are tried in each fold; 0 for none.
        accuracy: for classes, target accuracy of selective prediction.
        guarantee: for classes, coverage of conformal sets.
        sites: where the sites of patients come from; empty where none are asked for.
        protocol: name of the protocol that is followed; empty for none.
        covariates: clinical covariates that models see beside the tiles.
        covariate_fusion: how they meet the tiles of a MIL model.
        is_ordered: whether the classes are in an order, from the lowest to the highest.
        causes: names of competing events, the event of interest first; empty for events of one
            kind.
        labels_sha256: hash of the label file.
        identities: feature set -> hash of its content in this lake.
        settings: settings of MIL models.
        pooled: settings of survival models on pooled features; None for other runs.
        patients: the cohort, sorted by patient.

    Raises:
        LeakageError: A slide belongs to two patients.
    """

    kind: "Kind"
    task: Outcome
    lake_uri: str
    lake_version: int
    features: tuple[str, ...]
    models: tuple[str, ...]
    mpps: tuple[float, ...]
    splits: tuple["Split", ...]
    seeds: int
    seed: int
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    head: str
    reference: str
    margin: float | None
    tune: int
    accuracy: float
    labels_sha256: str
    identities: dict[str, str]
    settings: "MilSettings"
    pooled: "SurvivalSettings | None"
    patients: tuple[Patient, ...]
    guarantee: float = 0.9
    sites: str = ""
    protocol: str = ""
    covariates: tuple[str, ...] = ()
    covariate_fusion: "CovariateFusionName" = "late"
    is_ordered: bool = False
    causes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise LeakageError for a slide of two patients, which could be in training and test."""
        counts = Counter(slide for patient in self.patients for slide in patient.slide_ids)
        shared = [slide for slide, count in counts.items() if count > 1]
        if shared:
            msg = (
                f"{counted(len(shared), 'slide', 'belong')} to more than one patient, for example "
                f"{', '.join(shared[:5])}; correct patient_id in the labels"
            )
            raise LeakageError(msg)

    @property
    def config(self) -> dict[str, Any]:
        """Return the settings that determine the result, as JSON; without patients and lake URI."""
        return {
            "format": FORMAT,
            "task": self.task,
            "features": list(self.features),
            "models": list(self.models),
            "mpps": list(self.mpps),
            "seeds": self.seeds,
            "seed": self.seed,
            "columns": list(self.columns),
            "classes": list(self.classes),
            "head": self.head,
            "reference": self.reference,
            "margin": self.margin,
            "search": self.tune,
            "accuracy": self.accuracy,
            "guarantee": self.guarantee,
            "sites": self.sites,
            "protocol": self.protocol,
            "labels_sha256": self.labels_sha256,
            "identities": self.identities,
            "settings": asdict(self.settings),
            "pooled": asdict(self.pooled) if self.pooled else None,
            **self._covariate_config(),
            **({"is_ordered": True} if self.is_ordered else {}),
            **({"causes": list(self.causes)} if self.causes else {}),
            **self._extensions(),
        }

    def _covariate_config(self) -> dict[str, Any]:
        """Return the covariates and their fusion; empty without any."""
        if not self.covariates:
            return {}
        return {
            "covariates": list(self.covariates),
            "categories": list(self.categories),
            "covariate_fusion": self.covariate_fusion,
        }

    @property
    def categories(self) -> tuple[str, ...]:
        """Return the covariates that hold texts."""
        return category_names(self.covariates, [patient.covariates for patient in self.patients])

    def _extensions(self) -> dict[str, Any]:
        """Return the hash of the file of each model that is a user's own; empty if none is."""
        own = {
            model: sha256
            for model in self.models
            if model in AGGREGATORS and (sha256 := extension_sha256(AGGREGATORS[model].loader))
        }
        return {"extensions": own} if own else {}

    @cached_property
    def run(self) -> str:
        """Return the name of the run's folder: kind and hash of settings, patients and splits."""
        content = {
            "kind": self.kind,
            "config": self.config,
            "patients": [patient.identity for patient in self.patients],
            "splits": [[s.repeat, s.fold, s.inner, s.train, s.validation, s.test]
                       for s in self.splits],
        }  # fmt: skip
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Return the arms: every model on every feature set, feature set by feature set.

        A model of the covariates alone is a single arm, whose feature set is the first by name
        only.
        """
        return tuple(
            Arm(name=arm_name(features, model, self.models), features=features, model=model)
            for features in self.features
            for model in self.models
            if model not in CLINICAL or features == self.features[0]
        )

    @cached_property
    def folds(self) -> tuple[tuple[int, int], ...]:
        """Return (repeat, fold) of every test part, in order."""
        return tuple(dict.fromkeys((split.repeat, split.fold) for split in self.splits))

    def inner(self, repeat: int, fold: int) -> tuple["Split", ...]:
        """Return the inner splits of one (repeat, fold)."""
        return tuple(s for s in self.splits if (s.repeat, s.fold) == (repeat, fold))

    def cells(self) -> list["Cell"]:
        """Return the cells: every arm on every fold with every seed."""
        return [
            Cell(study=self, arm=arm, repeat=repeat, fold=fold, seed=seed)
            for arm in self.arms
            for repeat, fold in self.folds
            for seed in range(self.seeds)
        ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The input of a worker: one arm on one fold of one repetition with one seed.

    Attributes:
        study: the study of the cell.
        arm: the feature set and the model.
        repeat: number of the repetition.
        fold: number of the fold.
        seed: number of the training, from 0 on.
    """

    study: Study
    arm: Arm
    repeat: int
    fold: int
    seed: int

    @property
    def splits(self) -> tuple["Split", ...]:
        """Return the inner splits: one model is trained on each, predictions are averaged."""
        return self.study.inner(self.repeat, self.fold)

    @property
    def is_mil(self) -> bool:
        """Whether the cell's model is a MIL model of bags."""
        return self.arm.model in AGGREGATORS

    @property
    def softens(self) -> bool:
        """Whether the cell's models are trained again, on labels softened by the first models."""
        return self.is_mil and self.study.settings.soft_labels > 0

    @property
    def key(self) -> dict[str, Any]:
        """Return the columns that identify the cell in a row of predictions."""
        return {
            "repeat": self.repeat,
            "fold": self.fold,
            "seed": self.seed,
            "arm": self.arm.name,
            "features": self.arm.features,
            "model": self.arm.model,
        }

    @property
    def stem(self) -> str:
        """Return the name of the cell's files, without folder and ending."""
        return f"{safe_name(self.arm.name)}-{self.repeat}-{self.fold}-{self.seed}"

    @property
    def path(self) -> str:
        """Return the path of the cell's JSON within the lake."""
        return f"runs/{self.study.run}/cells/{self.stem}.json"

    @property
    def attention_path(self) -> str:
        """Return the path of the attention of its test tiles within the lake."""
        return f"runs/{self.study.run}/attention/{self.stem}.parquet"

    def model_path(self, inner: int) -> str:
        """Return the path of a fitted model of the cell within the lake."""
        return f"runs/{self.study.run}/models/{self.stem}-{inner}.safetensors"

    def random_seed(self, inner: int) -> int:
        """Return the seed of one training, which all arms share."""
        content = [self.study.seed, self.seed, self.repeat, self.fold, inner]
        return int(np.random.SeedSequence(content).generate_state(1)[0])


def outcomes(patients: Iterable[Patient]) -> NDArray[np.float64]:
    """Return the outcomes [P, K] of patients."""
    return np.array([patient.outcome for patient in patients], dtype=np.float64)


def arm_name(features: str, model: str, models: Sequence[str]) -> str:
    """Return the name of an arm.

    >>> arm_name("uni2", "abmil", ["abmil"]), arm_name("uni2", "abmil", ["abmil", "mean"])
    ('uni2', 'uni2 / abmil')
    """
    if model in CLINICAL:
        return model
    return features if len(models) == 1 else f"{features} / {model}"


def check_features(features: Sequence[str]) -> tuple[str, ...]:
    """Return the feature sets of a run, after checking their names.

    Raises:
        StudyError: No feature set, one named twice, or one with an empty teacher ("a+" or "").
    """
    if not features:
        msg = "no feature sets; name at least one teacher of the lake, or several joined by '+'"
        raise StudyError(msg)
    for name in features:
        if list(features).count(name) > 1 or "" in teachers_of(name):
            msg = f"feature set {name!r}; name each once, as one teacher or several joined by '+'"
            raise StudyError(msg)
    return tuple(features)


def safe_name(name: str) -> str:
    """Return a file name for a feature set; a changed name gets a hash, so that no two become one.

    >>> safe_name("uni2"), safe_name("uni2+virchow2")
    ('uni2', 'uni2_virchow2-650d70d4')
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
