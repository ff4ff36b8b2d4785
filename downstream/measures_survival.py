"""Measures of survival predictions, by scikit-survival.

Censoring weights come from TRAINING patients, who are never resampled: an interval is that of the
patients who were predicted.

Shape letters: P patients, T times, R resamples.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from downstream import measures_weighted as weighted
from downstream.measures import Measure, UndefinedMetricError
from downstream.survival_weighted import concordance

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def harrell_c(event_P: NDArray[np.bool_], time_P: Floats, risk_P: Floats) -> float:
    """Harrell's C; tied risks (within 1e-8) count one half.

    Args:
        event_P: True where the event was seen.
        time_P: Times to the event or to the end of follow-up.
        risk_P: HIGHER = WORSE.

    Raises:
        UndefinedMetricError: No pair can be compared.
    """
    from sksurv.metrics import concordance_index_censored

    found = _defined("Harrell's C", concordance_index_censored, event_P, time_P, risk_P)
    return float(found[0])


def uno_c(
    event_P: NDArray[np.bool_],
    time_P: Floats,
    risk_P: Floats,
    *,
    train_event: NDArray[np.bool_],
    train_time: Floats,
    tau: float | None = None,
) -> float:
    """Uno's C: pairs weighted by the inverse probability of not being censored.

    Args:
        event_P: True where the event was seen.
        time_P: Times to the event or to the end of follow-up.
        risk_P: HIGHER = WORSE.
        train_event: Of the training patients, whose censoring gives the weights.
        train_time: Likewise.
        tau: Only events before it count; it should be within the training follow-up.

    Raises:
        UndefinedMetricError: No pair can be compared, or weights do not exist at some time.
    """
    from sksurv.metrics import concordance_index_ipcw
    from sksurv.util import Surv

    train = Surv.from_arrays(train_event, train_time)
    test = Surv.from_arrays(event_P, time_P)
    found = _defined("Uno's C", concordance_index_ipcw, train, test, risk_P, tau=tau)
    return float(found[0])


def dynamic_auc(
    event_P: NDArray[np.bool_],
    time_P: Floats,
    risk_P: Floats,
    *,
    train_event: NDArray[np.bool_],
    train_time: Floats,
    times_T: Floats,
) -> float:
    """Mean over time of the cumulative/dynamic AUC, by `sksurv.metrics.cumulative_dynamic_auc`.

    Args:
        event_P: True where the event was seen.
        time_P: Times to the event or to the end of follow-up.
        risk_P: HIGHER = WORSE; [P], or [P, T] where it changes over time.
        train_event: Of the training patients, whose censoring gives the weights.
        train_time: Likewise.
        times_T: From TRAINING follow-up, within that of the test patients.

    Raises:
        UndefinedMetricError: A time is outside the patients' follow-up, or nobody is on one side.
    """
    from sksurv.metrics import cumulative_dynamic_auc
    from sksurv.util import Surv

    train = Surv.from_arrays(train_event, train_time)
    test = Surv.from_arrays(event_P, time_P)
    return float(_defined("AUC(t)", cumulative_dynamic_auc, train, test, risk_P, times_T)[1])


def integrated_brier(
    event_P: NDArray[np.bool_],
    time_P: Floats,
    survival_PT: Floats,
    *,
    train_event: NDArray[np.bool_],
    train_time: Floats,
    times_T: Floats,
) -> float:
    """Brier score of survival curves over time, by `sksurv.metrics.integrated_brier_score`.

    Args:
        event_P: True where the event was seen.
        time_P: Times to the event or to the end of follow-up.
        survival_PT: S(t) at `times_T`; LOWER = WORSE, unlike a risk.
        train_event: Of the training patients, whose censoring gives the weights.
        train_time: Likewise.
        times_T: At least 2, ascending, from TRAINING follow-up, within that of the test patients.

    Returns:
        0 for perfect curves; 0.25 for S = 0.5 always, without censoring. Lower is better.

    Raises:
        UndefinedMetricError: A time is outside the patients' follow-up.
    """
    from sksurv.metrics import integrated_brier_score
    from sksurv.util import Surv

    train = Surv.from_arrays(train_event, train_time)
    test = Surv.from_arrays(event_P, time_P)
    return float(
        _defined("integrated Brier", integrated_brier_score, train, test, survival_PT, times_T)
    )


def survival_measures(
    *,
    train_event: NDArray[np.bool_],
    train_time: Floats,
    tau: float | None = None,
    times_T: Floats | None = None,
) -> list[Measure]:
    """What is reported of risks; truth is (event, time), prediction the risk.

    Args:
        train_event: Of training patients, for the weights.
        train_time: Likewise.
        tau: See `uno_c`.
        times_T: See `dynamic_auc`, which is left out without.
    """
    train: dict[str, Any] = {"train_event": train_event, "train_time": train_time}
    found = [
        Measure(name="harrell_c", value=harrell_c, resampled=weighted.harrell_c),
        Measure(
            name="uno_c",
            value=partial(uno_c, **train, tau=tau),
            resampled=partial(weighted.uno_c, **train, tau=tau),
        ),
    ]
    if times_T is not None:
        found.append(Measure(name="auc_t", value=partial(dynamic_auc, **train, times_T=times_T)))
    return found


def rank_measures(repetition_S: NDArray[np.int64] | None = None) -> list[Measure]:
    """The main measure of a run; truth is (event, time), prediction the rank within the fold.

    Args:
        repetition_S: Rows with the same number, such as those of one repeat and seed, are compared
            with each other, and their pairs are added up; None if every patient has one row.
    """
    if repetition_S is None:
        return [Measure(name="harrell_c", value=harrell_c, resampled=weighted.harrell_c)]
    within = partial(_rank_c, repetition_S=repetition_S)
    return [measure_of("harrell_c", within)]


def measure_of(name: str, how: Callable[..., Floats], *, higher_is_better: bool = True) -> Measure:
    """A measure from its form for many resamples; its value is that where each row counts once."""
    value = partial(_on_all, name, how)
    return Measure(name=name, value=value, resampled=how, higher_is_better=higher_is_better)


def _rank_c(
    w_RS: Floats,
    event_S: NDArray[np.bool_],
    time_S: Floats,
    rank_S: Floats,
    *,
    repetition_S: NDArray[np.int64],
) -> Floats:
    """Harrell's C [R] of pairs within repetitions."""
    ones_S = event_S.astype(np.float64)
    return concordance(w_RS, event_S, time_S, repetition_S, ones_S, rank_S)


def _on_all(name: str, how: Callable[..., Floats], *arrays: NDArray[Any]) -> float:
    """A measure's value where each row counts once.

    Raises:
        UndefinedMetricError: It has none.
    """
    found = float(how(np.ones((1, len(arrays[-1]))), *arrays)[0])
    if not np.isfinite(found):
        msg = f"{name} is undefined on {len(arrays[-1])} predictions: nobody to compare on one side"
        raise UndefinedMetricError(msg)
    return found


def curve_measures(
    *, train_event: NDArray[np.bool_], train_time: Floats, times_T: Floats
) -> list[Measure]:
    """What is reported of survival curves; truth is (event, time), prediction S(t) [P, T].

    Args:
        train_event: Of training patients, for the weights.
        train_time: Likewise.
        times_T: See `integrated_brier`.
    """
    value = partial(
        integrated_brier, train_event=train_event, train_time=train_time, times_T=times_T
    )
    return [Measure(name="integrated_brier", value=value, higher_is_better=False)]


def _defined(name: str, how: Callable[..., Any], *arrays: object, **options: object) -> Any:  # noqa: ANN401
    """The library's value; its reason for having none as ours.

    scikit-survival says with a plain ValueError that a time is out of range, and gives NaN with a
    warning where it divides by no pairs.
    """
    from sksurv.exceptions import NoComparablePairException

    try:
        with np.errstate(all="ignore"):
            found = how(*arrays, **options)
    except (NoComparablePairException, ValueError) as error:
        msg = f"{name} is undefined on these patients: {error}"
        raise UndefinedMetricError(msg) from error
    if not np.all(np.isfinite(np.hstack(found if isinstance(found, tuple) else [found]))):
        msg = f"{name} is undefined on these patients: nobody to compare on one side of some time"
        raise UndefinedMetricError(msg)
    return found
