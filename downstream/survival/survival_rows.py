"""Test predictions of one arm, and the censoring weights of each fold's follow-up.

Shape letters: P patients, S rows of predictions, T times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cluster import counted
from downstream.measures.class_measures import UndefinedMetricError
from downstream.measures.weighted import groups
from downstream.survival.risks import SurvivalError
from downstream.survival.survival_weighted import brier_losses

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]


_COLUMNS = ("patient", "repeat", "fold", "seed", "event", "time", "risk", "rank", "high")


@dataclass(frozen=True, kw_only=True)
class SurvivalPredictions:
    """Test predictions of one arm, one row each.

    Attributes:
        patient: [S] ids of the patients.
        repeat: [S] numbers of the repetitions.
        fold: [S] numbers of the folds.
        seed: [S] numbers of the trainings.
        event: [S] true where the event was seen.
        time: [S] times to the event or to the end of follow-up.
        risk: [S] risks, HIGHER = WORSE; comparable within a fold.
        rank: [S] rank of the risk within its repeat, fold and seed.
        high: [S] whether the risk is above the median of the fold's TRAINING patients.
        curve: [S, T] S(t) at the run's `curve_times`; None for a model without.

    Raises:
        SurvivalError: No row, or columns of different lengths.
    """

    patient: Sequence[str]
    repeat: Labels
    fold: Labels
    seed: Labels
    event: Flags
    time: Floats
    risk: Floats
    rank: Floats
    high: Flags
    curve: Floats | None = None

    def __post_init__(self) -> None:
        """Raise SurvivalError for columns of different lengths, or without rows."""
        sizes = {name: len(getattr(self, name)) for name in _COLUMNS}
        sizes |= {} if self.curve is None else {"curve": len(self.curve)}
        if len(set(sizes.values())) != 1 or not len(self.time):
            msg = f"columns of {sizes} rows; give every column one value a prediction, and a row"
            raise SurvivalError(msg)

    def numbered(self, *names: str) -> Labels:
        """Return the number of each row's group [S]; rows equal in these columns are a group."""
        table = np.stack([np.asarray(getattr(self, name)) for name in names], axis=1)
        numbers: Labels = np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)
        return numbers


def predictions_of(rows: "pl.DataFrame") -> SurvivalPredictions:
    """Return the test rows of one arm from a run's `predictions.parquet`."""
    columns = {name: rows[name].to_numpy() for name in _COLUMNS[1:]}
    curves = None
    if "curve" in rows.columns and not rows["curve"].has_nulls():
        curves = np.array(rows["curve"].to_list(), dtype=np.float64)
    return SurvivalPredictions(patient=rows["patient_id"].to_list(), curve=curves, **columns)


@dataclass(frozen=True, kw_only=True)
class CellRows:
    """The test rows of one repeat, fold and seed, with their censoring weights.

    Attributes:
        key: numbers of the repetition, the fold and the seed.
        rows: numbers of the cell's rows.
        free: [T] probability by the training patients of not being censored up to each time; 0
            where they have no estimate.
    """

    key: tuple[int, int, int]
    rows: Labels
    free: Floats


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """Censoring weights by each fold's training patients, and the time until which they exist.

    Attributes:
        times: [T] times at which curves are evaluated.
        cells: cells, one per repetition, fold and seed.
        group: [S] number of each row's cell.
        inverse: [S] inverse probability of not being censored up to the row's time; 0 without an
            event, or with one after `until`.
        until: [S] the last of `times` for which the cell's training patients define weights.
    """

    times: Floats
    cells: tuple[CellRows, ...]
    group: Labels
    inverse: Floats
    until: Floats

    def curves(self, rows: SurvivalPredictions) -> Floats:
        """Return the survival curves of all rows.

        Raises:
            UndefinedMetricError: The model has no curves.
        """
        if rows.curve is None:
            msg = "the model gives risks and no curves"
            raise UndefinedMetricError(msg)
        return rows.curve

    def brier(self, rows: SurvivalPredictions) -> Floats:
        """Return each row's contribution to the integrated Brier score of its cell [S].

        A cell's times are those for which its training patients define weights, before the last
        test patient's end of follow-up.

        Raises:
            UndefinedMetricError: The model has no curves, or a cell has fewer than two such times.
        """
        curve_ST, loss_S = self.curves(rows), np.empty(len(rows.time))
        for cell in self.cells:
            at = cell.rows
            here_T = (cell.free > 0) & (self.times < rows.time[at].max())
            if here_T.sum() < 2:
                msg = f"{int(here_T.sum())} of {len(here_T)} times are within the follow-up of "
                msg += "repeat {}, fold {}, seed {}; 2 are needed: use fewer folds".format(
                    *cell.key
                )
                raise UndefinedMetricError(msg)
            loss_S[at] = brier_losses(
                rows.event[at], rows.time[at], self.inverse[at], curve_ST[np.ix_(at, here_T)],
                times_T=self.times[here_T], free_T=cell.free[here_T],
            )  # fmt: skip
        return loss_S


def follow_up(
    rows: SurvivalPredictions,
    training: Mapping[tuple[int, int], tuple[Flags, Floats]],
    times_T: Floats,
) -> FollowUp:
    """Return censoring weights of all rows.

    Args:
        rows: test predictions.
        training: (events, times) of the TRAINING patients of each (repeat, fold).
        times_T: times at which curves are evaluated, ascending.

    Raises:
        SurvivalError: A fold has no training patient with an event, or curves are at other
            times.
    """
    if rows.curve is not None and rows.curve.shape[1] != len(times_T):
        msg = f"curves of shape {rows.curve.shape} at {len(times_T)} times; give one column a time"
        raise SurvivalError(msg)
    group_S, cells = rows.numbered("repeat", "fold", "seed"), []
    inverse_S, until_S = np.zeros(len(rows.time)), np.full(len(rows.time), -np.inf)
    for at in groups(group_S):
        key = tuple(int(getattr(rows, name)[at[0]]) for name in ("repeat", "fold", "seed"))
        censoring, last = _censoring(training, key[0], key[1])
        free_T = np.zeros(len(times_T))
        if (times_T <= last).any():
            free_T[times_T <= last] = censoring.predict_proba(times_T[times_T <= last])
        cells.append(CellRows(key=(key[0], key[1], key[2]), rows=at, free=free_T))
        if (free_T > 0).any():
            until_S[at] = times_T[free_T > 0].max()
        observed = at[rows.event[at] & (rows.time[at] <= until_S[at])]
        if len(observed):
            inverse_S[observed] = 1 / censoring.predict_proba(rows.time[observed])
    return FollowUp(
        times=times_T, cells=tuple(cells), group=group_S, inverse=inverse_S, until=until_S
    )


def _censoring(
    training: Mapping[tuple[int, int], tuple[Flags, Floats]], repeat: int, fold: int
) -> tuple[Any, float]:
    """Return the Kaplan-Meier curve of censoring, and the end of the training follow-up."""
    from sksurv.nonparametric import CensoringDistributionEstimator
    from sksurv.util import Surv

    event_P, time_P = training.get((repeat, fold), (np.zeros(0, bool), np.zeros(0)))
    if not event_P.any():
        msg = (
            f"repeat {repeat}, fold {fold} has {counted(len(event_P), 'training patient')} and "
            f"{int(event_P.sum())} events; give (events, times) of those it was trained on"
        )
        raise SurvivalError(msg)
    estimator = CensoringDistributionEstimator().fit(Surv.from_arrays(event_P, time_P))
    return estimator, float(time_P.max())
