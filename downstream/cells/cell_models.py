"""The models of a cell's classes, labels or numbers, and which function trains which model.

Shape letters: P patients.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.cells.cell_patients import CellPatients
from downstream.cells.member import Member
from downstream.cells.mil_training import train_mil_on_split
from downstream.kept.kept_covariates import with_covariates
from downstream.run.model_tables import trainer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downstream.cohorts.covariates import CovariateEncoder
    from downstream.run.study import Cell
    from downstream.splits.folds import Split

Floats = NDArray[np.float64]


def fit_member(patients: CellPatients, split: "Split") -> Member:
    """Train a model on one split and predict the split's validation and test patients."""
    cell = patients.cell
    member: Member = trainer_of(cell.study.kind, cell.arm.model)(patients, split)
    return member


def fit_mil_member(patients: CellPatients, split: "Split") -> Member:
    """Train a MIL model of classes, labels or a number, and apply it."""
    from downstream.mil.objective import LabelObjective

    study = patients.cell.study
    objective = LabelObjective.fit(
        task_of(patients.cell), patients.target(split.train), weighted=study.settings.weighted
    )
    fitted = train_mil_on_split(patients, split, objective)
    return Member(
        split=split,
        validation=objective.outcome(fitted.validation),
        test=objective.outcome(fitted.test),
        attention=fitted.attention,
        kept=fitted.kept,
        training_record=fitted.training_record,
    )


def fit_probe_member(patients: CellPatients, split: "Split") -> Member:
    """Fit a linear model or nearest neighbours on pooled features, and apply it.

    Covariates are further features, see `fit_probe`.
    """
    encoder = patients.encoder(split)
    return _probe_member(
        patients,
        split,
        patients.cell.arm.model,
        partial(patients.inputs, encoder),
        encoder=encoder,
        beside=0 if encoder is None else encoder.width,
    )


def fit_covariate_member(patients: CellPatients, split: "Split") -> Member:
    """Fit a linear model on the covariates alone, and apply it."""
    encoder = patients.encoder(split)
    assert encoder is not None  # `check_covariates` has refused the model without covariates
    inputs = partial(patients.encoded, encoder)
    return _probe_member(patients, split, "linear", inputs, encoder=encoder, has_features=False)


def _probe_member(
    patients: CellPatients,
    split: "Split",
    model: str,
    inputs: "Callable[[Sequence[str]], Floats]",
    *,
    encoder: "CovariateEncoder | None",
    beside: int = 0,
    has_features: bool = True,
) -> Member:
    """Fit a probe on inputs of patients, of which the last `beside` are covariates."""
    from downstream.kept.probe_models import kept_probe
    from downstream.probes.fit import fit_probe

    study = patients.cell.study
    task = task_of(patients.cell)
    validation = None
    if split.validation:
        validation = (inputs(split.validation), patients.target(split.validation))
    probe = fit_probe(
        model,
        inputs(split.train),
        patients.target(split.train),
        validation=validation,
        task=task.kind,
        classes=max(len(study.classes), 1),
        seed=patients.cell.random_seed(split.inner),
        inverse_penalty=study.settings.inverse_penalty,
        covariates=beside,
        is_ordered=study.is_ordered,
    )
    test = probe.scores(inputs(split.test))
    return Member(
        split=split,
        validation=test[:0] if validation is None else probe.scores(validation[0]),
        test=test,
        kept=with_covariates(kept_probe(probe), encoder, has_features=has_features),
        training_record={"inner": split.inner},
    )


def task_of(cell: "Cell") -> Any:  # noqa: ANN401 - a Task; torch is imported by workers only
    """Return the task of a MIL model; two classes are a softmax over two outputs."""
    from downstream.mil.losses import BagTask

    study = cell.study
    if study.task == "regression":
        return BagTask(kind="regression")
    return BagTask(
        kind="multilabel" if study.task == "multilabel" else "multiclass",
        outputs=len(study.classes),
        is_ordered=study.is_ordered,
    )
