"""Scores of one arm's test predictions over all its folds, with intervals over patients.

A model's risk has no zero point and a fold's curves lean on its own training patients, so a patient
is compared within the fold only; the one exception, `harrell_c`, compares ranks within the fold.
Censoring weights come from each fold's training patients, who are never resampled.

Shape letters: P patients, S rows of predictions, T times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import UndefinedMetricError, measure_of
from downstream.measures.intervals import Comparison, Interval, bca_or_percentile, compare, interval
from downstream.survival import survival_weighted
from downstream.survival.risks import SurvivalError
from downstream.survival.survival_rows import FollowUp, SurvivalPredictions, follow_up

if TYPE_CHECKING:
    from downstream.measures.class_measures import Measure

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A measure with its arrays, the arguments of `intervals.interval` and `compare`.

    Attributes:
        measure: the measure.
        truth: true outcomes, arrays [S, ...].
        prediction: predictions, [S, ...].
    """

    measure: "Measure"
    truth: tuple[NDArray[Any], ...]
    prediction: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class SurvivalScores:
    """The measures of an arm's predictions, with intervals.

    Attributes:
        intervals: interval of each defined measure, by name.
        higher_is_better: direction of each defined measure.
        left_out: reason why each other measure is undefined, by name.
        observed_expected: patients who died until `horizon` over those that the curves predicted;
            1 is right, so it ranks no arms and is not among the intervals. None where undefined.
        horizon: middle curve time.
    """

    intervals: dict[str, Interval]
    higher_is_better: dict[str, bool]
    left_out: dict[str, str]
    observed_expected: Interval | None
    horizon: float


@dataclass(frozen=True, kw_only=True)
class RiskGroups:
    """Patients of high and of low risk, one row per patient.

    Attributes:
        patient: [P] ids, sorted.
        event: [P] true where the event was seen.
        time: [P] times to the event or to the end of follow-up.
        high: [P] true for high risk.
        p_value: p value of the log-rank test; None with one group only, or no event.
    """

    patient: tuple[str, ...]
    event: Flags
    time: Floats
    high: Flags
    p_value: float | None


def score_predictions(
    rows: SurvivalPredictions,
    training: Mapping[tuple[int, int], tuple[Flags, Floats]],
    times_T: Floats,
    *,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> SurvivalScores:
    """Return all measures of `SCORES`, with BCa intervals, or percentiles where BCa has none.

    Args:
        rows: test predictions.
        training: (events, times) of the TRAINING patients of each (repeat, fold).
        times_T: see `curves.curve_times`.
        seed: seed of the resamples.
        resamples: number of resamples, at least 1000.
        level: level of the intervals, in 0..1.

    Raises:
        SurvivalError: A fold without training patients, or arrays that do not fit.
    """
    intervals: dict[str, Interval] = {}
    higher: dict[str, bool] = {}
    left_out: dict[str, str] = {}
    for name, question in questions(rows, training, times_T).items():
        try:
            if isinstance(question, str):
                raise UndefinedMetricError(question)
            arrays = (question.measure, question.truth, question.prediction)
            estimate = partial(
                interval,
                *arrays,
                patients=rows.patient,
                resamples=resamples,
                seed=seed,
                level=level,
            )
            intervals[name] = bca_or_percentile(estimate)
            higher[name] = question.measure.higher_is_better
        except UndefinedMetricError as error:
            left_out[name] = str(error)
    left_out.pop("observed_expected", None)
    return SurvivalScores(
        intervals={name: intervals[name] for name in SCORES if name in intervals},
        higher_is_better={name: higher[name] for name in SCORES if name in intervals},
        left_out=left_out,
        observed_expected=intervals.get("observed_expected"),
        horizon=float(times_T[(len(times_T) - 1) // 2]),
    )


def compare_predictions(
    one: SurvivalPredictions,
    other: SurvivalPredictions,
    training: Mapping[tuple[int, int], tuple[Flags, Floats]],
    times_T: Floats,
    *,
    seed: int,
    measure: str = "harrell_c",
    margin: float | None = None,
) -> Comparison:
    """Return the comparison of two arms on the same patients, see `intervals.compare`.

    Args:
        one: test predictions of an arm.
        other: test predictions of the other arm, for the same patients, repeats, folds and seeds,
            in the same order.
        training: see `score_predictions`.
        times_T: see `score_predictions`.
        seed: seed of the resamples.
        measure: name of the measure in `SCORES`.
        margin: non-inferiority margin, in the measure's unit.

    Raises:
        SurvivalError: The rows of the two arms differ in patients or cells.
        UndefinedMetricError: The measure is undefined for one of them.
    """
    same = ("patient", "repeat", "fold", "seed")
    if any(list(getattr(one, name)) != list(getattr(other, name)) for name in same):
        msg = f"{len(one.patient)} and {len(other.patient)} rows of other patients, folds or seeds;"
        msg += " sort both arms alike, and compare arms of the same run"
        raise SurvivalError(msg)
    both = [questions(rows, training, times_T)[measure] for rows in (one, other)]
    for question in both:
        if isinstance(question, str):
            raise UndefinedMetricError(question)
    a, b = (question for question in both if isinstance(question, Question))
    arrays = (a.measure, a.truth, a.prediction, b.prediction)
    estimate = partial(compare, *arrays, seed=seed, margin=margin, patients=one.patient)
    return bca_or_percentile(estimate)


def questions(
    rows: SurvivalPredictions,
    training: Mapping[tuple[int, int], tuple[Flags, Floats]],
    times_T: Floats,
) -> dict[str, Question | str]:
    """Return each measure with its truth and predictions, or why it is undefined.

    Args:
        rows: test predictions.
        training: see `score_predictions`.
        times_T: see `score_predictions`.

    Raises:
        SurvivalError: See `score_predictions`.
    """
    follow = follow_up(rows, training, times_T)
    question_of: dict[str, Question | str] = {}
    for name, ask in (SCORES | {"observed_expected": _calibration}).items():
        try:
            question_of[name] = ask(rows, follow)
        except UndefinedMetricError as error:
            question_of[name] = str(error)
    return question_of


def _harrell(rows: SurvivalPredictions, _: FollowUp) -> Question:
    """Return Harrell's C over ranks within the fold, pooled over folds."""
    truth = (rows.event, rows.time, rows.numbered("repeat", "seed"))
    return Question(
        measure=measure_of("harrell_c", survival_weighted.concordance),
        truth=(*truth, rows.event.astype(np.float64)),
        prediction=rows.rank,
    )


def _harrell_within_folds(rows: SurvivalPredictions, _: FollowUp) -> Question:
    """Return Harrell's C over pairs of the same fold."""
    truth = (rows.event, rows.time, rows.numbered("repeat", "fold", "seed"))
    return Question(
        measure=measure_of("harrell_c_folds", survival_weighted.concordance),
        truth=(*truth, rows.event.astype(np.float64)),
        prediction=rows.risk,
    )


def _uno(rows: SurvivalPredictions, follow: FollowUp) -> Question:
    """Return Uno's C over pairs of the same fold, weighted by censoring."""
    weight_S = np.where(rows.time < follow.until, follow.inverse**2, 0.0)
    return Question(
        measure=measure_of("uno_c", survival_weighted.concordance),
        truth=(rows.event, rows.time, follow.group, weight_S),
        prediction=rows.risk,
    )


def _auc(rows: SurvivalPredictions, follow: FollowUp) -> Question:
    """Return the mean dynamic AUC over time, within folds."""
    truth = (rows.event, rows.time, follow.group, follow.inverse, follow.until)
    ones = np.ones((1, len(rows.time)))
    pairs_T = survival_weighted.auc_parts(ones, *truth, rows.risk, times_T=follow.times)[1][0]
    if not (pairs_T > 0).any():
        msg = f"auc_t: at none of {len(follow.times)} times has a fold patients on both sides"
        raise UndefinedMetricError(msg)
    auc_at_times = partial(survival_weighted.dynamic_auc, times_T=follow.times[pairs_T > 0])
    return Question(measure=measure_of("auc_t", auc_at_times), truth=truth, prediction=rows.risk)


def _brier(rows: SurvivalPredictions, follow: FollowUp) -> Question:
    """Return the integrated Brier score of the survival curves."""
    return Question(
        measure=measure_of("integrated_brier", survival_weighted.mean_loss, higher_is_better=False),
        truth=(),
        prediction=follow.brier(rows),
    )


def _calibration(rows: SurvivalPredictions, follow: FollowUp) -> Question:
    """Return observed over expected deaths at the middle time; at late times few are at risk."""
    middle = (len(follow.times) - 1) // 2
    observed_expected = partial(
        survival_weighted.observed_expected, horizon=float(follow.times[middle])
    )
    return Question(
        measure=measure_of("observed_expected", observed_expected),
        truth=(rows.event, rows.time),
        prediction=follow.curves(rows)[:, middle],
    )


def km_groups(rows: SurvivalPredictions) -> RiskGroups:
    """Return the patients of high and of low risk, with the p value of a log-rank test.

    Each fold's model made the cut on its own training patients. A patient with several predictions
    has the group of most of them, low if they are even, and counts once. The p value is
    a description: the patients of a fold helped to make the cuts of all others, so that it is
    smaller than chance would have it (Simon et al. 2011).

    Args:
        rows: test predictions.
    """
    from downstream.report.plots.plots_outcomes import logrank_p

    names, first, whose_S = np.unique(
        np.asarray(rows.patient), return_index=True, return_inverse=True
    )
    high_P = np.bincount(whose_S, rows.high) > np.bincount(whose_S) / 2
    time_P, event_P = rows.time[first], rows.event[first]
    return RiskGroups(
        patient=tuple(names.tolist()),
        event=event_P,
        time=time_P,
        high=high_P,
        p_value=logrank_p(time_P, event_P, high_P),
    )


SCORES: dict[str, Callable[[SurvivalPredictions, FollowUp], Question]] = {
    "harrell_c": _harrell,
    "harrell_c_folds": _harrell_within_folds,
    "uno_c": _uno,
    "auc_t": _auc,
    "integrated_brier": _brier,
}
"""Measures of survival, the main one first."""
