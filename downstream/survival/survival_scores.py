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
from downstream.measures.intervals import Interval, bca_or_percentile, interval
from downstream.survival import survival_weighted
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


SCORES: dict[str, Callable[[SurvivalPredictions, FollowUp], Question]] = {
    "harrell_c_folds": _harrell_within_folds,
    "harrell_c": _harrell,
    "uno_c": _uno,
    "auc_t": _auc,
    "integrated_brier": _brier,
}
"""Measures of survival, the main one first."""
