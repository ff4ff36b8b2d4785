"""Bags and pooled features of a lake's patients, for models that are applied.

Shape letters: P patients, D feature width.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from downstream.kept.kept_model import KeptModelError
from downstream.run.feature_bags import pooled_bag, read_patient

if TYPE_CHECKING:
    from downstream.cohorts.covariates import CovariateRow
    from downstream.run.feature_bags import PatientBag
    from featurestore import Lake

Floats = NDArray[np.float64]


class LakePatients:
    """Bags and pooled features of a lake's patients, one in memory at a time.

    Args:
        lake: the lake that holds the features.
        slides_of: slides of each patient.
        features: name of the feature set.
        mpps: microns per pixel of the tiles.
        covariates: covariates of each patient by name; None where there is no table of them.
    """

    def __init__(
        self,
        lake: "Lake",
        slides_of: Mapping[str, Sequence[str]],
        features: str,
        mpps: Sequence[float],
        covariates: "Mapping[str, CovariateRow] | None" = None,
    ) -> None:
        self._covariates = covariates
        self._lake, self.slides_of = lake, dict(slides_of)
        self.features, self._mpps = features, mpps
        self._last: tuple[str, PatientBag] | None = None
        self._vector: tuple[str, Floats] | None = None

    def bag(self, patient_id: str) -> "PatientBag":
        """Return the bag of a patient: all tiles of all slides."""
        if self._last is None or self._last[0] != patient_id:
            slides = self.slides_of[patient_id]
            self._last = (
                patient_id,
                read_patient(self._lake, slides, self.features, self._mpps),
            )
        return self._last[1]

    def pooled(self, ids: Sequence[str]) -> Floats:
        """Return one vector per patient [P, D]."""
        return np.stack([self._vector_of(one) for one in ids])

    def covariates(self, names: Sequence[str], ids: Sequence[str]) -> "list[CovariateRow]":
        """Return the covariates of patients.

        Raises:
            KeptModelError: There is no table of covariates.
        """
        if self._covariates is None:
            msg = f"the model takes covariates ({', '.join(names)}); give a table of them"
            raise KeptModelError(msg)
        return [self._covariates[one] for one in ids]

    def _vector_of(self, patient_id: str) -> Floats:
        if self._vector is None or self._vector[0] != patient_id:
            self._vector = (patient_id, pooled_bag(self.bag(patient_id)))
        return self._vector[1]
