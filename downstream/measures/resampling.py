"""A measure on many resamples of the same patients, for one model or several.

Fast where the measure accepts weights; memory is bounded by computing the resamples in chunks.

Shape letters: P patients, S rows of predictions (one or more a patient), R resamples, M models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import UndefinedMetricError

if TYPE_CHECKING:
    from downstream.measures.class_measures import Measure

Floats = NDArray[np.float64]


Method = Literal["bca", "percentile"]

_LEAST = 1000
_CELLS = 4_000_000
_JACKKNIFE = 512
_MOST_REDRAWN = 20


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Estimates of a measure for M models on bootstrap resamples.

    Attributes:
        values: [M, R] estimates, all models on the same resamples.
        whole: [M] estimates on all patients.
        without: [M, P] estimates without each patient in turn; NaN [M, 1] where not needed.
        redrawn: number of resamples that were undefined for a model.
        method: method of the interval that the estimates are drawn for.
    """

    values: Floats
    whole: Floats
    without: Floats
    redrawn: int
    method: Method


def draw_all(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    seed: int | Sequence[int],
    patients: Sequence[str] | None,
    resamples: int,
    level: float,
    method: Method,
) -> Draws:
    """Return estimates on resamples of patients; see `intervals.interval` for the arguments.

    Raises:
        ValueError: Too few resamples, a level that is none, or rows that do not fit.
        UndefinedMetricError: See `intervals.interval`.
    """
    owner_arrays = [] if patients is None else [patients]
    sizes = {len(part) for part in (*truth, *predictions, *owner_arrays)}
    if len(sizes) != 1 or resamples < _LEAST or not 0 < level < 1:
        msg = (
            f"rows {sorted(sizes)}, resamples={resamples}, level={level}; give equally many rows "
            f"everywhere, at least {_LEAST} resamples and a level between 0 and 1"
        )
        raise ValueError(msg)
    rows = sizes.pop()
    owner_S = np.arange(rows)
    if patients is not None:
        owner_S = np.unique(np.asarray(patients), return_inverse=True)[1]
    whole = np.array([measure.value(*truth, part) for part in predictions])
    estimates_MR, redrawn = _resampled_estimates(
        measure, truth, predictions, owner_S, seed, resamples
    )
    count = int(owner_S.max()) + 1
    without = np.full((len(predictions), 1), np.nan)
    if method == "bca":
        without = _jackknife_estimates(measure, truth, predictions, owner_S, count)
    return Draws(values=estimates_MR, whole=whole, without=without, redrawn=redrawn, method=method)


def _resampled_estimates(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    owner_S: NDArray[np.int64],
    seed: int | Sequence[int],
    resamples: int,
) -> tuple[Floats, int]:
    """Return estimates [M, R] where all models have one, and the number of redrawn resamples."""
    rng, count = np.random.default_rng(seed), int(owner_S.max()) + 1
    kept: list[Floats] = []
    drawn = have = 0
    while have < resamples:
        if drawn > _MOST_REDRAWN * resamples:
            msg = f"{measure.name} is undefined on most resamples of {count} patients; add patients"
            raise UndefinedMetricError(msg)
        w_RP = rng.multinomial(count, np.full(count, 1 / count), size=resamples - have)
        estimates_MR = _in_chunks(measure, truth, predictions, w_RP.astype(np.float64), owner_S)
        kept.append(estimates_MR[:, np.isfinite(estimates_MR).all(axis=0)])
        drawn += len(w_RP)
        have += kept[-1].shape[1]
    return np.concatenate(kept, axis=1), drawn - have


def _in_chunks(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    w_RP: Floats,
    owner_S: NDArray[np.int64],
) -> Floats:
    """Return estimates [M, R], computed for a bounded number of weights at a time."""
    step = max(1, _CELLS // len(owner_S))
    chunks = [w_RP[start : start + step][:, owner_S] for start in range(0, len(w_RP), step)]
    return np.array(
        [
            np.concatenate([estimates_of_weights(measure, chunk, truth, part) for chunk in chunks])
            for part in predictions
        ]
    )


def estimates_of_weights(
    measure: "Measure", w_RS: Floats, truth: Sequence[NDArray[Any]], prediction: NDArray[Any]
) -> Floats:
    """Return estimates [R], NaN where undefined; without a form for resamples, rows are repeated.

    Args:
        measure: the measure of the predictions.
        w_RS: how often each row counts, whole numbers.
        truth: true outcomes, arrays [S, ...].
        prediction: predictions, [S, ...].
    """
    if measure.resampled is not None:
        return measure.resampled(w_RS, *truth, prediction)
    estimates_R = np.full(len(w_RS), np.nan)
    for at, w_S in enumerate(w_RS.astype(np.int64)):
        rows = np.repeat(np.arange(len(w_S)), w_S)
        try:
            estimates_R[at] = measure.value(*(part[rows] for part in truth), prediction[rows])
        except UndefinedMetricError:
            continue  # NaN, which the caller counts and draws again
    return estimates_R


def _jackknife_estimates(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    owner_S: NDArray[np.int64],
    count: int,
) -> Floats:
    """Return estimates [M, P] without each patient in turn."""
    parts = []
    for start in range(0, count, _JACKKNIFE):
        w_RP = 1 - np.eye(min(_JACKKNIFE, count - start), count, k=start)
        parts.append(_in_chunks(measure, truth, predictions, w_RP, owner_S))
    without = np.concatenate(parts, axis=1)
    if not np.isfinite(without).all():
        lost = int((~np.isfinite(without)).any(axis=0).sum())
        msg = (
            f"{measure.name} is undefined without one of {lost} patients, so BCa has no "
            "acceleration; take method='percentile', or add patients"
        )
        raise UndefinedMetricError(msg)
    return without
