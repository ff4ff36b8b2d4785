"""A measure on many resamples of the same patients, for one model or several.

Fast where the measure takes weights; memory is bounded by taking so many resamples at a time.

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
    """Values of a measure for M models on bootstrap resamples.

    Attributes:
        values: [M, R], on the same resamples.
        whole: [M], on all patients.
        without: [M, P] without each patient in turn; NaN [M, 1] where not needed.
        redrawn: Resamples that were undefined for a model.
        method: What they are for.
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
    """Draw patients with all their rows; see `intervals.interval` for the arguments.

    Raises:
        ValueError: Too few resamples, a level that is none, or rows that do not fit.
        UndefinedMetricError: As `intervals.interval`.
    """
    whose = [] if patients is None else [patients]
    sizes = {len(part) for part in (*truth, *predictions, *whose)}
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
    values, redrawn = _resampled(measure, truth, predictions, owner_S, seed, resamples)
    count = int(owner_S.max()) + 1
    without = np.full((len(predictions), 1), np.nan)
    if method == "bca":
        without = _without_each(measure, truth, predictions, owner_S, count)
    return Draws(values=values, whole=whole, without=without, redrawn=redrawn, method=method)


def _resampled(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    owner_S: NDArray[np.int64],
    seed: int | Sequence[int],
    resamples: int,
) -> tuple[Floats, int]:
    """Return values [M, R] on resamples where all models have one, and the number drawn again."""
    rng, count = np.random.default_rng(seed), int(owner_S.max()) + 1
    kept: list[Floats] = []
    drawn = have = 0
    while have < resamples:
        if drawn > _MOST_REDRAWN * resamples:
            msg = f"{measure.name} is undefined on most resamples of {count} patients; add patients"
            raise UndefinedMetricError(msg)
        w_RP = rng.multinomial(count, np.full(count, 1 / count), size=resamples - have)
        values = _in_chunks(measure, truth, predictions, w_RP.astype(np.float64), owner_S)
        kept.append(values[:, np.isfinite(values).all(axis=0)])
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
    """Return values [M, R], a bounded number of weights at a time."""
    step = max(1, _CELLS // len(owner_S))
    chunks = [w_RP[start : start + step][:, owner_S] for start in range(0, len(w_RP), step)]
    return np.array(
        [
            np.concatenate([_values(measure, chunk, truth, part) for chunk in chunks])
            for part in predictions
        ]
    )


def _values(
    measure: "Measure", w_RS: Floats, truth: Sequence[NDArray[Any]], prediction: NDArray[Any]
) -> Floats:
    """Return values [R]; where the measure has no fast form, on rows repeated as often as drawn."""
    if measure.resampled is not None:
        return measure.resampled(w_RS, *truth, prediction)
    values = np.full(len(w_RS), np.nan)
    for at, w_S in enumerate(w_RS.astype(np.int64)):
        rows = np.repeat(np.arange(len(w_S)), w_S)
        try:
            values[at] = measure.value(*(part[rows] for part in truth), prediction[rows])
        except UndefinedMetricError:
            continue  # NaN, which the caller counts and draws again
    return values


def _without_each(
    measure: "Measure",
    truth: Sequence[NDArray[Any]],
    predictions: Sequence[NDArray[Any]],
    owner_S: NDArray[np.int64],
    count: int,
) -> Floats:
    """Return values [M, P] without each patient in turn."""
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
