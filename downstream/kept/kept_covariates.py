"""Covariates of kept models: their encoder travels with the model, and new patients are read by it.

Shape letters: P patients, D feature width, K encoded covariates.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from downstream.cohorts.covariates import CovariateEncoder
from downstream.kept.kept_model import KeptModel, PatientReader

Floats = NDArray[np.float64]


def with_covariates(
    model: KeptModel, encoder: CovariateEncoder | None, *, has_features: bool = True
) -> KeptModel:
    """Return a kept model with the encoder of its covariates.

    Args:
        model: the kept model.
        encoder: encoder of the covariates; None for a model without.
        has_features: whether the model sees pooled features beside the covariates.
    """
    if encoder is None:
        return model
    fields = {"covariates": encoder.to_json(), "has_features": has_features}
    return replace(model, fields={**model.fields, **fields})


def encoder_of(model: KeptModel) -> CovariateEncoder | None:
    """Return the encoder of a kept model's covariates; None for a model without."""
    content = model.fields.get("covariates")
    return None if content is None else CovariateEncoder.from_json(content)


def encoded(model: KeptModel, reader: PatientReader, ids: Sequence[str]) -> Floats | None:
    """Return the encoded covariates of patients [P, K]; None for a model without covariates."""
    encoder = encoder_of(model)
    return None if encoder is None else encoder.encode(reader.covariates(encoder.names, ids))


def pooled_inputs(model: KeptModel, reader: PatientReader, ids: Sequence[str]) -> Floats:
    """Return the inputs of a kept model on pooled features [P, D], [P, D + K] or [P, K]."""
    beside = encoded(model, reader, ids)
    if beside is None:
        return reader.pooled(ids)
    if not model.fields["has_features"]:
        return beside
    return np.hstack([reader.pooled(ids), beside])
