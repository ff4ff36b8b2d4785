"""Models of survival in a cell: on pooled features, and MIL models with a survival head.

Risks point one way everywhere: HIGHER = WORSE. The cut between high and low risk is the median risk
of the TRAINING patients.

Shape letters: P patients, T times.
"""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from downstream.cells.cell_patients import CellPatients
from downstream.cells.member import Member
from downstream.cells.mil_training import train_mil_on_split
from downstream.measures.arm_scores import study_times
from downstream.splits.folds import PARTS
from downstream.survival.curves import breslow_curve, hazard_curve
from downstream.survival.risks import is_high_risk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from downstream.cohorts.covariates import CovariateEncoder
    from downstream.splits.folds import Split

Floats = NDArray[np.float64]


def fit_pooled_member(patients: CellPatients, split: "Split") -> Member:
    """Train a scikit-survival model on pooled features; return its predictions.

    Covariates are further inputs, see `fit_pooled`.
    """
    encoder = patients.encoder(split)
    return _pooled_member(
        patients,
        split,
        patients.cell.arm.model,
        partial(patients.inputs, encoder),
        encoder=encoder,
        beside=0 if encoder is None else encoder.width,
    )


def fit_covariate_member(patients: CellPatients, split: "Split") -> Member:
    """Fit a ridge Cox regression on the covariates alone; return its predictions."""
    encoder = patients.encoder(split)
    assert encoder is not None  # `check_covariates` has refused the model without covariates
    inputs = partial(patients.encoded, encoder)
    return _pooled_member(patients, split, "cox", inputs, encoder=encoder, has_features=False)


def _pooled_member(
    patients: CellPatients,
    split: "Split",
    name: str,
    inputs: "Callable[[Sequence[str]], Floats]",
    *,
    encoder: "CovariateEncoder | None",
    beside: int = 0,
    has_features: bool = True,
) -> Member:
    """Train a model on inputs of patients, of which the last `beside` are covariates."""
    from downstream.kept.cox_models import kept_cox
    from downstream.kept.kept_covariates import with_covariates
    from downstream.survival.pooled_models import fit_pooled

    cell = patients.cell
    assert cell.study.pooled is not None
    x = {part: inputs(split.patients(part)) for part in PARTS if split.patients(part)}
    target = patients.target(split.train)
    validation = None
    if split.validation:
        validation_target = patients.target(split.validation)
        validation = (x["validation"], validation_target[:, 0], validation_target[:, 1] == 1)
    model = fit_pooled(
        name,
        x["train"],
        target[:, 0],
        target[:, 1] == 1,
        validation=validation,
        settings=cell.study.pooled,
        seed=cell.random_seed(split.inner),
        covariates=beside,
    )
    kept = kept_cox(model)
    train_risk, times = model.risk(x["train"]), study_times(cell.study)
    test_risk = model.risk(x["test"])
    seen_risk = model.risk(x["validation"]) if split.validation else np.empty(0)
    return Member(
        split=split,
        validation=seen_risk,
        test=test_risk,
        high=is_high_risk(test_risk, train_risk),
        validation_high=is_high_risk(seen_risk, train_risk),
        curve=model.survival(x["test"], times),
        validation_curve=model.survival(x["validation"], times) if split.validation else None,
        kept=None if kept is None else with_covariates(kept, encoder, has_features=has_features),
        training_record={"inner": split.inner},
    )


def fit_survival_member(patients: CellPatients, split: "Split") -> Member:
    """Train a MIL model with a hazards or Cox head; return its predictions."""
    from downstream.mil.objective import Cox, Hazards

    cell, target = patients.cell, patients.target(split.train)
    times = study_times(cell.study)
    hazards = None
    if cell.study.head == "hazards":
        hazards = Hazards.fit(target, split.train, bins=cell.study.settings.bins)
        split.check_fitted_on(hazards.bins.patients, "time bins")
    objective = hazards or Cox()
    fitted = train_mil_on_split(patients, split, objective, with_train=True)
    risks = [objective.outcome(part) for part in (fitted.train, fitted.validation, fitted.test)]

    def curve(logits: Floats, risk_P: Floats) -> Floats:
        if hazards is not None:
            return hazard_curve(logits, hazards.bins, times, between="linear")
        return breslow_curve(risks[0], target[:, 0], target[:, 1] == 1, risk_P, times)

    return Member(
        split=split,
        validation=risks[1],
        test=risks[2],
        high=is_high_risk(risks[2], risks[0]),
        validation_high=is_high_risk(risks[1], risks[0]),
        curve=curve(fitted.test, risks[2]),
        validation_curve=curve(fitted.validation, risks[1]) if split.validation else None,
        attention=fitted.attention,
        kept=fitted.kept,
        training_record=fitted.training_record,
    )
