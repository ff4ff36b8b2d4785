"""Clinical covariates of patients as numbers: fitted on training patients, applied to any.

Shape letters: P patients, K numbers of all covariates.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError
from downstream.cohorts.outcomes import refuse_near_numbers

Floats = NDArray[np.float64]
CovariateRow = tuple[float | str | None, ...]
"""The covariates of a patient in the order of their names; None where not known."""


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """One covariate as training patients have it.

    Attributes:
        name: column of the table.
        is_category: whether it holds texts, and not numbers.
        levels: categories: those of the training patients, sorted.
        has_missing: categories: whether a training patient lacks it, so that "not known" is a
            level of its own.
        median: numbers: median of the training patients, which stands in where it is not known.
        mean: numbers: mean of the training patients, with the median standing in.
        spread: numbers: standard deviation likewise; 1 if all are alike.
    """

    name: str
    is_category: bool = False
    levels: tuple[str, ...] = ()
    has_missing: bool = False
    median: float = 0.0
    mean: float = 0.0
    spread: float = 1.0

    @property
    def width(self) -> int:
        """Return how many numbers the covariate becomes."""
        return len(self.levels) + self.has_missing if self.is_category else 1

    def encode(self, cells: Sequence[float | str | None]) -> Floats:
        """Return the covariate of patients [P, width].

        Numbers are standardised by the training patients. A level is a column of 0 and 1; one that
        no training patient has is 0 in all columns.

        Raises:
            CohortError: A text in place of a number.
        """
        if not self.is_category:
            texts = [cell for cell in cells if isinstance(cell, str)]
            if texts:
                msg = f"covariate {self.name!r} is {texts[0]!r}; in training it was a number"
                raise CohortError(msg)
            filled = [self.median if cell is None else float(cell) for cell in cells]
            return (np.array(filled, dtype=np.float64)[:, None] - self.mean) / self.spread
        columns = [[cell == level for level in self.levels] for cell in cells]
        encoded = np.array(columns, dtype=np.float64).reshape(len(cells), len(self.levels))
        if not self.has_missing:
            return encoded
        missing = np.array([[cell is None] for cell in cells], dtype=np.float64)
        return np.hstack([encoded, missing.reshape(-1, 1)])


@dataclass(frozen=True, kw_only=True)
class CovariateEncoder:
    """The covariates of a run, fitted on the training patients of one split.

    Attributes:
        covariates: one for each column.
        patients: the training patients.
    """

    covariates: tuple[Covariate, ...]
    patients: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        rows: Sequence[CovariateRow],
        *,
        patients: Sequence[str],
        categories: Collection[str] = (),
    ) -> "CovariateEncoder":
        """Return the encoder of TRAINING patients.

        Args:
            names: names of the covariates.
            rows: covariates of each training patient.
            patients: ids of the training patients.
            categories: names of the covariates that hold texts.
        """
        columns = zip(*rows, strict=True)
        return cls(
            covariates=tuple(
                _fitted(name, list(cells), is_category=name in categories)
                for name, cells in zip(names, columns, strict=True)
            ),
            patients=tuple(patients),
        )

    @property
    def width(self) -> int:
        """Return how many numbers a patient's covariates become."""
        return sum(covariate.width for covariate in self.covariates)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the covariates."""
        return tuple(covariate.name for covariate in self.covariates)

    def encode(self, rows: Sequence[CovariateRow]) -> Floats:
        """Return the covariates of patients as numbers [P, K]."""
        if not len(rows):
            return np.zeros((0, self.width))
        columns = zip(*rows, strict=True)
        parts = [one.encode(list(v)) for one, v in zip(self.covariates, columns, strict=True)]
        return np.hstack(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the encoder as JSON, without its patients."""
        return [{**asdict(one), "levels": list(one.levels)} for one in self.covariates]

    @classmethod
    def from_json(cls, content: Sequence[dict[str, Any]]) -> "CovariateEncoder":
        """Return the encoder that JSON describes."""
        return cls(
            covariates=tuple(
                Covariate(**{**one, "levels": tuple(one["levels"])}) for one in content
            )
        )


def _fitted(name: str, cells: list[float | str | None], *, is_category: bool) -> Covariate:
    """Return a covariate of training patients."""
    present = [cell for cell in cells if cell is not None]
    if is_category:
        return Covariate(
            name=name,
            is_category=True,
            levels=tuple(sorted({str(cell) for cell in present})),
            has_missing=len(present) < len(cells),
        )
    if not present:
        return Covariate(name=name)
    numbers = np.array(present, dtype=np.float64)
    median = float(np.median(numbers))
    filled = np.append(numbers, [median] * (len(cells) - len(present)))
    return Covariate(
        name=name,
        median=median,
        mean=float(filled.mean()),
        spread=float(filled.std()) or 1.0,
    )


def covariate_rows(patients: pl.DataFrame, names: Sequence[str]) -> list[CovariateRow]:
    """Return the covariates of the patients of a study, see `table_rows`.

    Raises:
        CohortError: A column that is empty for all, or a column of numbers that a few cells turn
            into text.
    """
    for name in names:
        refuse_near_numbers(patients.drop_nulls(name), name)
        if patients[name].null_count() == patients.height:
            msg = f"covariate {name!r} is empty for all {counted(patients.height, 'patient')}"
            raise CohortError(msg)
    return table_rows(patients, names)


def table_rows(patients: pl.DataFrame, names: Sequence[str]) -> list[CovariateRow]:
    """Return the covariates of each patient: numbers, texts, or None where not known.

    Args:
        patients: one row per patient, with a column for each covariate.
        names: the columns; booleans become 0 and 1.

    Raises:
        CohortError: A number that is not finite.
    """
    if not names:
        return [()] * patients.height
    columns: list[list[float | str | None]] = []
    for name in names:
        series = patients[name]
        if not series.dtype.is_numeric() and series.dtype != pl.Boolean:
            columns.append(series.cast(pl.String).to_list())
            continue
        numbers = series.cast(pl.Float64).fill_nan(None)
        if numbers.is_infinite().any():
            msg = f"covariate {name!r} holds a number that is not finite; correct it or empty it"
            raise CohortError(msg)
        columns.append(numbers.to_list())
    return list(zip(*columns, strict=True))


def category_names(names: Sequence[str], rows: Sequence[CovariateRow]) -> tuple[str, ...]:
    """Return the names of the covariates that hold texts."""
    return tuple(
        name
        for name, cells in zip(names, zip(*rows, strict=True), strict=False)
        if any(isinstance(cell, str) for cell in cells)
    )


def covariate_notes(names: Sequence[str], rows: Sequence[CovariateRow]) -> list[str]:
    """Return a sentence for each covariate that some patients lack."""
    notes = []
    for name, cells in zip(names, zip(*rows, strict=True), strict=True):
        missing = sum(cell is None for cell in cells)
        is_text = any(isinstance(cell, str) for cell in cells)
        stand_in = "a level of its own" if is_text else "the median of the training patients"
        if missing:
            notes.append(
                f"covariate {name} is not known of {missing} of {counted(len(cells), 'patient')}: "
                f"{stand_in} stands in"
            )
    return notes
