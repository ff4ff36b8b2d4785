"""The patients of a cell: bags, pooled features and outcomes, each read once.

Shape letters: P patients, K outcomes, D feature width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from downstream.cells.held_lake import held_bags
from downstream.cells.member import Member
from downstream.cohorts.covariates import CovariateEncoder
from downstream.run.feature_bags import feature_width, teachers_of
from downstream.run.study import outcomes

if TYPE_CHECKING:
    from downstream.mil.bag_moments import TileMoments
    from downstream.mil.train import Examples
    from downstream.run.feature_bags import PatientBag
    from downstream.run.fit_settings import MilSettings
    from downstream.run.study import Cell, Patient
    from downstream.splits.folds import Split
    from featurestore import Lake

Floats = NDArray[np.float64]


class CellPatients:
    """The patients of a cell: bags, pooled features and outcomes, each read once.

    Args:
        lake: the lake that holds the features.
        cell: the cell whose patients are read.
        settings: settings that MIL models are trained with.
    """

    def __init__(self, lake: "Lake", cell: "Cell", *, settings: "MilSettings") -> None:
        study = cell.study
        self.settings = settings
        self.cell = cell
        self.patients: tuple[Patient, ...] = study.patients
        self._row = {patient.patient_id: at for at, patient in enumerate(study.patients)}
        slides = [patient.slide_ids for patient in study.patients]
        self._bags = held_bags(lake, slides, cell.arm.features, mpps=study.mpps)
        self._soft: dict[str, Floats] = {}
        names, mpp = teachers_of(cell.arm.features), study.mpps[0]
        self.widths = tuple(feature_width(lake, name, mpp=mpp) for name in names)

    def patient(self, patient_id: str) -> "Patient":
        """Return the patient with an id."""
        return self.patients[self._row[patient_id]]

    def bag(self, patient_id: str) -> "PatientBag":
        """Return the bag of a patient: all tiles of all slides."""
        return self._bags[self._row[patient_id]]

    def target(self, ids: Sequence[str]) -> Floats:
        """Return outcomes: [P] where each patient has a single one, else [P, K]."""
        outcome_PK = outcomes(self.patient(one) for one in ids)
        return outcome_PK[:, 0] if outcome_PK.shape[1] == 1 else outcome_PK

    def encoder(self, split: "Split") -> CovariateEncoder | None:
        """Return the covariates, fitted on the split's training patients; None without any."""
        names = self.cell.study.covariates
        if not names:
            return None
        rows = [self.patient(one).covariates for one in split.train]
        encoder = CovariateEncoder.fit(
            names, rows, patients=split.train, categories=self.cell.study.categories
        )
        split.check_fitted_on(encoder.patients, "covariates")
        return encoder

    def encoded(self, encoder: CovariateEncoder, ids: Sequence[str]) -> Floats:
        """Return the encoded covariates of patients [P, K]."""
        return encoder.encode([self.patient(one).covariates for one in ids])

    def inputs(self, encoder: CovariateEncoder | None, ids: Sequence[str]) -> Floats:
        """Return pooled features with encoded covariates behind them [P, D + K]."""
        if encoder is None:
            return self.pooled(ids)
        return np.hstack([self.pooled(ids), self.encoded(encoder, ids)])

    def examples(
        self, ids: Sequence[str], *, soft: bool = False, encoder: CovariateEncoder | None = None
    ) -> "Examples":
        """Return bags and targets for a MIL model.

        Args:
            ids: ids of the patients.
            soft: whether softened labels are used, if `soften` made any.
            encoder: encoder of the covariates that the model takes; None for no covariates.
        """
        from downstream.mil.train import Examples

        target = self.target(ids)
        if soft and self._soft:
            target = np.stack([self._soft[one] for one in ids])
        beside = None if encoder is None else self.encoded(encoder, ids)
        return Examples(bags=_BagView(self, ids), target=target, covariates=beside)

    def soften(self, members: Sequence[Member], share: float) -> None:
        """Mix the predictions of models that have not trained on a patient into its label.

        Source: ensemble distillation of De Angeli et al. (JAMIA Open 2022): an ensemble's mean
        probabilities estimate how sure a label is.

        Args:
            members: the model of each inner split; each patient is in one validation part.
            share: share of the models' probabilities in a label, in 0..1.
        """
        for member in members:
            hard = np.eye(member.validation.shape[1])
            labels = self.target(member.split.validation).astype(np.int64)
            for one, label, probabilities in zip(
                member.split.validation, labels, member.validation, strict=True
            ):
                self._soft[one] = share * probabilities + (1 - share) * hard[label]

    def pooled(self, ids: Sequence[str]) -> Floats:
        """Return one vector per patient, see `risks.pool`: [P, D], one bag in memory at a time."""
        return np.stack([self._bags.pooled(self._row[one]) for one in ids])

    def moments(self, patient_id: str) -> "TileMoments":
        """Return the number, mean and squares of a patient's tiles."""
        return self._bags.moments(self._row[patient_id])


class _BagView:
    """A sequence of the bags of some of a cell's patients."""

    def __init__(self, patients: CellPatients, ids: Sequence[str]) -> None:
        self._patients, self._ids = patients, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int, /) -> "PatientBag":
        return self._patients.bag(self._ids[index])

    def moments(self, index: int, /) -> "TileMoments":
        """Return the number, mean and squares of a patient's tiles, without a second read."""
        return self._patients.moments(self._ids[index])
