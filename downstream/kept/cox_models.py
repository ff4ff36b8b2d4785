"""Cox regressions on pooled features as kept models.

Forests and boosted trees are not kept: their libraries store them by pickle alone.

Shape letters: P patients, D feature width, C components.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from downstream.kept.kept_covariates import pooled_inputs
from downstream.kept.kept_model import Apply, KeptModel, PatientReader, Predicted

if TYPE_CHECKING:
    from downstream.survival.pooled_models import PooledModel

#: Models whose risk is linear in the features.
LINEAR = ("cox", "coxnet", "coxnet_fixed")


def kept_cox(model: "PooledModel") -> KeptModel | None:
    """Return a fitted Cox regression in the form in which it is kept; None for other models.

    Scaling, components and coefficients become one weight per feature and a constant.
    """
    if model.name not in LINEAR:
        return None
    (step,) = (part for _, part in model.pipeline.steps)
    width = int(step.n_features_in_)
    # a linear function is known from its values at 0 and at each unit vector
    at_zero = model.risk(np.zeros((1, width + model.covariates)))[0]
    if model.name == "cox":
        coefficients = model.estimator.coef_
        features = len(coefficients) - model.covariates
        weight_D = np.asarray(step.components_.T @ coefficients[:features])
    elif model.name == "coxnet_fixed":  # on features as they are
        coefficients = model.estimator.coef_[:, 0]
        features = len(coefficients) - model.covariates
        weight_D = coefficients[:features]
    else:
        column = int(np.argmin(np.abs(model.estimator.alphas_ - model.options["alpha"])))
        coefficients = model.estimator.coef_[:, column]
        features = len(coefficients) - model.covariates
        weight_D = coefficients[:features] / step.scale_
    weight_D = np.append(weight_D, coefficients[features:] * model.covariate_scale)
    return KeptModel(
        kind="cox",
        fields={"name": model.name, "constant": float(at_zero)},
        arrays={"weight": weight_D.astype(np.float64)},
    )


def restored_cox(model: KeptModel) -> Apply:
    """Return a kept Cox regression, ready for patients."""

    def apply(reader: PatientReader, ids: Sequence[str]) -> Predicted:
        """Return the risks of patients; HIGHER = WORSE."""
        inputs = pooled_inputs(model, reader, ids)
        risk_P = inputs @ model.arrays["weight"] + model.fields["constant"]
        return Predicted(outcome=risk_P)

    return apply
