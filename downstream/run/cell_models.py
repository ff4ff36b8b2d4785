"""One model of a cell: trained on one inner split, stopped by its validation, applied to its test.

Shape letters: P patients, D feature width, T times, N tiles.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.run.feature_bags import PatientBags, teachers_of
from downstream.run.fit_settings import POOLED, PROBES
from downstream.run.study import outcomes
from downstream.splits.split import PARTS

if TYPE_CHECKING:
    from downstream.mil.objective import Objective
    from downstream.mil.train import Examples
    from downstream.run.feature_bags import PatientBag
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study import Cell, Patient
    from downstream.splits.folds import Split
    from featurestore import Lake

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trained model's predictions.

    Attributes:
        split: What it was trained on.
        validation: Outcomes of the validation patients, [P, ...].
        test: Outcomes of the test patients, [P, ...]: probabilities, numbers, or risks.
        high: Survival: whether each test patient's risk is above the training median, [P].
        validation_high: Likewise of validation patients.
        curve: Survival: S(t) of the test patients [P, T].
        validation_curve: Likewise of validation patients.
        attention: Of each test patient's tiles; None for a model without.
        told: What is kept of its training.
    """

    split: "Split"
    validation: Floats
    test: Floats
    high: NDArray[np.bool_] | None = None
    validation_high: NDArray[np.bool_] | None = None
    curve: Floats | None = None
    validation_curve: Floats | None = None
    attention: list[NDArray[np.float32]] | None = None
    told: dict[str, Any] = field(default_factory=dict)


class Patients:
    """The patients of a cell: bags, pooled features and outcomes, each read once.

    Args:
        lake: Where the features are.
        cell: Whose patients.
        settings: That MIL models are trained with.
    """

    def __init__(self, lake: "Lake", cell: "Cell", *, settings: "MilSettings") -> None:
        study = cell.study
        self.settings = settings
        self.cell = cell
        self.patients: tuple[Patient, ...] = study.patients
        self._row = {patient.patient_id: at for at, patient in enumerate(study.patients)}
        self._bags = PatientBags(
            lake, [p.slide_ids for p in study.patients], cell.arm.features, mpps=study.mpps
        )
        self._pooled: dict[str, Floats] = {}
        self._soft: dict[str, Floats] = {}
        dims = lake.teachers(mpp=study.mpps[0])
        self.widths = tuple(dims[teacher] for teacher in teachers_of(cell.arm.features))

    def patient(self, patient_id: str) -> "Patient":
        """By id."""
        return self.patients[self._row[patient_id]]

    def bag(self, patient_id: str) -> "PatientBag":
        """All tiles of a patient."""
        return self._bags[self._row[patient_id]]

    def target(self, ids: Sequence[str]) -> Floats:
        """Outcomes: [P] where there is one a patient, else [P, K]."""
        found = outcomes(self.patient(one) for one in ids)
        return found[:, 0] if found.shape[1] == 1 else found

    def examples(self, ids: Sequence[str], *, soft: bool = False) -> "Examples":
        """Bags and targets for a MIL model; with what `soften` made of the labels if asked for."""
        from downstream.mil.train import Examples

        target = self.target(ids)
        if soft and self._soft:
            target = np.stack([self._soft[one] for one in ids])
        return Examples(bags=_View(self, ids), target=target)

    def soften(self, members: Sequence[Member], share: float) -> None:
        """Mix what is said of each patient by models that have not trained on it into its label.

        Source: ensemble distillation of De Angeli et al. (JAMIA Open 2022): an ensemble's mean
        probabilities tell how sure a label is.

        Args:
            members: One for each inner split; each patient is in one validation part.
            share: Of the models' probabilities in a label, in 0..1.
        """
        for member in members:
            hard = np.eye(member.validation.shape[1])
            labels = self.target(member.split.validation).astype(np.int64)
            for one, label, said in zip(
                member.split.validation, labels, member.validation, strict=True
            ):
                self._soft[one] = share * said + (1 - share) * hard[label]

    def pooled(self, ids: Sequence[str]) -> Floats:
        """One vector a patient, see `risks.pool`: [P, D], one bag in memory at a time."""
        from downstream.survival.risks import pool

        for one in ids:
            if one not in self._pooled:
                bag = self.bag(one)
                numbers = np.unique(bag.slide)
                self._pooled[one] = pool([bag.features[bag.slide == n] for n in numbers])
        return np.stack([self._pooled[one] for one in ids])


class _View:
    """The bags of some of a cell's patients."""

    def __init__(self, patients: Patients, ids: Sequence[str]) -> None:
        self._patients, self._ids = patients, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int, /) -> "PatientBag":
        return self._patients.bag(self._ids[index])


def fit_member(patients: Patients, split: "Split") -> Member:
    """Train on one split and predict its validation and test patients."""
    model = patients.cell.arm.model
    if patients.cell.study.task == "survival":
        from downstream.survival.survival_cell_models import fit_pooled_member, fit_survival_member

        fit = fit_pooled_member if model in POOLED else fit_survival_member
        return fit(patients, split)
    return _fit_probe(patients, split) if model in PROBES else _fit_mil(patients, split)


def _fit_mil(patients: Patients, split: "Split") -> Member:
    """A MIL model of classes, labels or a number."""
    from downstream.mil.objective import Labels

    study = patients.cell.study
    objective = Labels.fit(
        task_of(patients.cell), patients.target(split.train), weighted=study.settings.weighted
    )
    fitted = train_on(patients, split, objective)
    return Member(
        split=split,
        validation=objective.outcome(fitted.validation),
        test=objective.outcome(fitted.test),
        attention=fitted.attention,
        told=fitted.told,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained MIL model's logits.

    Attributes:
        train: Of the training patients [P, C]; empty unless asked for.
        validation: Of the validation patients.
        test: Of the test patients.
        attention: Of each test patient's tiles.
        told: What is kept of its training.
    """

    train: Floats
    validation: Floats
    test: Floats
    attention: list[NDArray[np.float32]]
    told: dict[str, Any]


def train_on(
    patients: Patients, split: "Split", objective: "Objective", *, with_train: bool = False
) -> Trained:
    """Train a MIL model and apply it; with its training patients too where a cut needs them."""
    from downstream.mil.predict import predict
    from downstream.mil.train import train_mil

    study = patients.cell.study
    parts = {part: patients.examples(split.patients(part), soft=part == "train") for part in PARTS}
    fit = train_mil(
        patients.cell.arm.model,
        parts["train"],
        parts["validation"],
        objective,
        patients.settings,
        widths=patients.widths,
        ratios=ratios_of(study.mpps),
        seed=patients.cell.random_seed(split.inner),
        device=best_device(),
    )
    test, attention = predict(fit.model, parts["test"].bags)
    none = np.empty((0, test.shape[1]))
    return Trained(
        train=predict(fit.model, parts["train"].bags)[0] if with_train else none,
        validation=predict(fit.model, parts["validation"].bags)[0] if split.validation else none,
        test=test,
        attention=attention,
        told={
            "inner": split.inner,
            "epochs": fit.epochs,
            "train_loss": list(fit.train_loss),
            "validation_loss": list(fit.validation_loss),
        },
    )


def _fit_probe(patients: Patients, split: "Split") -> Member:
    """A linear model or nearest neighbours on pooled features."""
    from downstream.probes.fit import fit_probe

    study = patients.cell.study
    task = task_of(patients.cell)
    validation = None
    if split.validation:
        validation = (patients.pooled(split.validation), patients.target(split.validation))
    probe = fit_probe(
        patients.cell.arm.model,
        patients.pooled(split.train),
        patients.target(split.train),
        validation=validation,
        task=task.kind,
        classes=max(len(study.classes), 1),
        seed=patients.cell.random_seed(split.inner),
    )
    test = probe.scores(patients.pooled(split.test))
    return Member(
        split=split,
        validation=test[:0] if validation is None else probe.scores(validation[0]),
        test=test,
        told={"inner": split.inner},
    )


def task_of(cell: "Cell") -> Any:  # noqa: ANN401 - a Task; torch is imported by workers only
    """What a MIL model predicts; two classes are a softmax over two."""
    from downstream.mil.losses import Task

    study = cell.study
    if study.task == "regression":
        return Task(kind="regression")
    return Task(
        kind="multilabel" if study.task == "multilabel" else "multiclass",
        outputs=len(study.classes),
    )


def ratios_of(mpps: Sequence[float]) -> tuple[int, ...]:
    """Side of a tile in tiles of the next finer mpp, coarse to fine; empty for one mpp.

    >>> ratios_of([0.5, 8.0, 2.0])
    (4, 4)
    """
    levels = sorted(mpps, reverse=True)
    return tuple(round(coarse / fine) for coarse, fine in itertools.pairwise(levels))


def best_device() -> str:
    """A GPU if this worker has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
