"""Survival curves S(t) from log hazard ratios (Breslow) and discrete hazards, and their times.

scikit-survival's step functions begin at the first training time and have its value at all earlier
times, a drop included; here S is 1 before the first event, as the estimator is defined.

Shape letters: P patients, K event times, B time bins, T times of the curve.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from downstream.survival.risks import SurvivalError

if TYPE_CHECKING:
    from downstream.survival.survival_losses import TimeBins

Floats = NDArray[np.float64]


Between = Literal["step", "linear"]

_FIRST, _LAST = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Breslow's cumulative hazard of a patient of risk 0.

    Attributes:
        times: [K] event times of the training patients, ascending, each once.
        log_hazard: [K] log of the cumulative hazard from each of them on. Logarithms, because a
            network's risks may be hundreds apart, and their exponentials then leave float64.
    """

    times: Floats
    log_hazard: Floats

    def survival(self, risk_P: Floats, times_T: Floats) -> Floats:
        """Return S(t) [P, T] of patients with these log hazard ratios; HIGHER risk = lower S.

        1 before the first training event; after the last it stays where it is.
        """
        # exp(700) is finite, and S = exp(-exp(700)) is 0
        power_PK = np.exp(np.minimum(risk_P[:, None] + self.log_hazard, 700.0))
        return at_times(self.times, np.exp(-power_PK), times_T)


def fit_baseline(risk_P: Floats, time_P: Floats, event_P: NDArray[np.bool_]) -> Baseline:
    """Fit the baseline hazard of given log hazard ratios by Breslow's (1974) estimator.

    Args:
        risk_P: risks of the TRAINING patients by the fitted model; HIGHER = WORSE. A constant added
            to them and to the test patients' changes no curve.
        time_P: times to the event or to the end of follow-up; a patient censored at t is at risk at
            t.
        event_P: true where the event was seen.

    Raises:
        SurvivalError: No event, a risk that is not finite, or arrays of different lengths.
    """
    same = len(risk_P) == len(time_P) == len(event_P)
    if not same or not event_P.any() or not np.isfinite(risk_P).all():
        msg = (
            f"{len(risk_P)} risks ({int(np.isfinite(risk_P).sum())} of them finite), {len(time_P)} "
            f"times, {int(event_P.sum())} events of {len(event_P)}; a baseline needs one finite "
            "risk and one time a training patient, and an event"
        )
        raise SurvivalError(msg)
    order = np.argsort(-time_P, kind="stable")
    # sums from the last patient on, so that nothing is taken away from a sum
    at_risk_P = np.logaddexp.accumulate(risk_P[order].astype(np.float64))
    times_K, events_K = np.unique(time_P[event_P], return_counts=True)
    last = np.searchsorted(-time_P[order], -times_K, side="right") - 1
    steps_K = np.log(events_K) - at_risk_P[last]
    return Baseline(times=times_K, log_hazard=np.logaddexp.accumulate(steps_K))


def breslow_curve(
    train_risk_P: Floats,
    train_time_P: Floats,
    train_event_P: NDArray[np.bool_],
    risk_P: Floats,
    times_T: Floats,
) -> Floats:
    """Return S(t) [P, T] of patients with these log hazard ratios, see `fit_baseline`."""
    return fit_baseline(train_risk_P, train_time_P, train_event_P).survival(risk_P, times_T)


def hazard_curve(
    logits_PB: Floats, bins: "TimeBins", times_T: Floats, *, between: Between = "step"
) -> Floats:
    """Return S(t) [P, T] of a head of discrete hazards.

    Only S at the inner edges is defined. Within a bin, `step` holds it until the bin ends, which
    is the likelihood's own view and too high inside a wide bin; `linear` spreads the bin's deaths
    evenly (Kvamme and Borgan 2019). The last bin has no end, so S stays after the last edge.

    Args:
        logits_PB: logits of the hazards, one column a bin.
        bins: time bins whose edges were fitted on training patients.
        times_T: times at which S is evaluated; none below 0.
        between: interpolation of S within a bin: `step` or `linear`.

    Raises:
        SurvivalError: The number of columns is not the number of bins.
    """
    if logits_PB.ndim != 2 or logits_PB.shape[1] != bins.bins:
        msg = f"logits of shape {logits_PB.shape} for {bins.bins} bins; give one column a bin"
        raise SurvivalError(msg)
    edges = np.array(bins.edges)
    # log(1 - sigmoid(x)) = -log(1 + exp(x))
    inner_PB = np.exp(-np.logaddexp(0.0, logits_PB[:, :-1].astype(np.float64)).cumsum(axis=1))
    if between == "step":
        return at_times(edges, inner_PB, times_T)
    knots = np.concatenate([[min(0.0, edges[0])], edges])
    known_PB = np.concatenate([np.ones((len(inner_PB), 1)), inner_PB], axis=1)
    return np.array([np.interp(times_T, knots, known_B) for known_B in known_PB])


def at_times(times_K: Floats, value_PK: Floats, times_T: Floats) -> Floats:
    """Return step functions [P, T]: the value from each of `times_K` on, 1 before the first.

    >>> at_times(np.array([1.0, 2.0]), np.array([[0.8, 0.5]]), np.array([0.5, 1.0, 1.9, 7.0]))
    array([[1. , 0.8, 0.8, 0.5]])
    """
    padded_PK = np.concatenate([np.ones((len(value_PK), 1)), value_PK], axis=1)
    survival_PT: Floats = padded_PK[:, np.searchsorted(times_K, times_T, side="right")]
    return survival_PT


def curve_times(time_P: Floats, event_P: NDArray[np.bool_], *, most: int = 32) -> Floats:
    """Return the times of a run's curves: event times from the 5th to the 95th percentile.

    One grid serves all folds of a run, and nothing is fitted with it. It ends before the last
    events, where few are at risk; in each fold, `survival_scores` then uses the times within the
    follow-up of its test patients for which its training patients define censoring weights.

    Args:
        time_P: times to the event or to the end of follow-up.
        event_P: true where the event was seen.
        most: most times, at least 2; fewer are returned if there are fewer events.

    Returns:
        float64[T], ascending, each an event time, T in 1..most.

    Raises:
        SurvivalError: No event, or `most` below 2.
    """
    if not event_P.any() or most < 2:
        msg = f"{int(event_P.sum())} events, most={most}; curves need an event and 2 times or more"
        raise SurvivalError(msg)
    levels = np.linspace(_FIRST, _LAST, most)
    return np.unique(np.quantile(time_P[event_P], levels, method="inverted_cdf"))
