"""Scores of an arm's test predictions with their intervals.

An interval is over patients; a patient with several predictions (repetitions, seeds) is drawn with
all of them.

Shape letters: P rows of predictions, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import (
    Measure,
    UndefinedMetricError,
    class_distance_measure,
    classification_measures,
    measure_of,
)
from downstream.measures.fold_test import part_values
from downstream.measures.intervals import Interval, bca_or_percentile, interval
from downstream.measures.number_measures import (
    multilabel_auroc_folds,
    multilabel_measures,
    regression_measures,
)
from downstream.measures.weighted import auroc_folds
from downstream.run.study import outcomes

if TYPE_CHECKING:
    import polars as pl

    from downstream.run.study import Study

MeasuredArrays = tuple[Measure, Sequence[NDArray[Any]], NDArray[Any]]
"""A measure with the truth and the predictions that it is taken of."""

MAIN = {
    "binary": "auroc_folds",
    "multiclass": "auroc_folds",
    "multilabel": "auroc_folds",
    "regression": "r2",
    "survival": "harrell_c_folds",
}
"""The main measure of each task: it stands first, and arms are compared by it.

Each fold's model has a scale of its own, so rankings are measured within folds: pooled over folds a
ranking without any signal has an AUROC below one half (0.488 over 224 cohorts), and a good one
loses. Numbers have the target's own scale, in every fold."""


@dataclass(frozen=True, kw_only=True)
class ScoredMeasure:
    """A measure of an arm, with its interval or the reason why it is undefined.

    Attributes:
        measure: its name.
        interval: its value, or None where it is undefined.
        higher_is_better: direction; None where 1 is right.
        why: why it is undefined.
        parts: the measure on each test part (repetition, fold and seed), NaN where it is undefined.
    """

    measure: str
    interval: Interval | None
    higher_is_better: bool | None
    why: str = ""
    parts: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def score(study: "Study", part: "pl.DataFrame") -> list[ScoredMeasure]:
    """Return all measures of the test rows of one arm.

    Args:
        study: the run.
        part: test rows of one arm.
    """
    if study.task == "survival":
        return _score_survival(study, part)
    patients, numbers = part["patient_id"].to_list(), _model_numbers(part) - 1
    return [
        replace(
            _scored_measure(measure, truth, prediction, patients, study.seed),
            parts=part_values(measure, truth, prediction, numbers),
        )
        for measure, truth, prediction in _questions(study, part)
    ]


def main_name(study: "Study") -> str:
    """Return the name of a run's main measure; quadratic kappa for classes in an order."""
    return "kappa_quadratic" if study.is_ordered else MAIN[study.task]


def main_measure(study: "Study", part: "pl.DataFrame") -> "MeasuredArrays | str":
    """Return the main measure of the run's task with its truth and predictions, or why it has none.

    Args:
        study: the run.
        part: test rows of one arm.
    """
    name = main_name(study)
    if study.task != "survival":
        return next(arrays for arrays in _questions(study, part) if arrays[0].name == name)
    from downstream.survival.survival_rows import predictions_of
    from downstream.survival.survival_scores import questions

    question = questions(predictions_of(part), training_of(study), study_times(study))[name]
    if isinstance(question, str):
        return question
    return question.measure, question.truth, question.prediction


def _score_survival(study: "Study", part: "pl.DataFrame") -> list[ScoredMeasure]:
    """Return all survival measures of one arm, undefined measures last."""
    from downstream.survival.survival_rows import predictions_of
    from downstream.survival.survival_scores import questions, score_predictions

    rows, training, times = predictions_of(part), training_of(study), study_times(study)
    parts = _survival_parts(part, questions(rows, training, times))
    scores = score_predictions(rows, training, times, seed=study.seed)
    defined = [
        ScoredMeasure(
            measure=name,
            interval=interval,
            higher_is_better=scores.higher_is_better[name],
            parts=parts.get(name, np.empty(0)),
        )
        for name, interval in scores.intervals.items()
    ]
    undefined = [
        ScoredMeasure(
            measure=name, interval=None, higher_is_better=name != "integrated_brier", why=why
        )
        for name, why in scores.left_out.items()
    ]
    if scores.observed_expected is not None:
        # deaths until the middle of the curves' times over those that the curves foretold
        calibration = ScoredMeasure(
            measure="observed_expected", interval=scores.observed_expected, higher_is_better=None
        )
        defined.append(calibration)
    return [*defined, *undefined]


def _survival_parts(
    part: "pl.DataFrame", questions: "Mapping[str, Any]"
) -> dict[str, NDArray[np.float64]]:
    """Return each survival measure on each test part, where it is one of all rows."""
    numbers = _model_numbers(part) - 1
    return {
        name: part_values(question.measure, question.truth, question.prediction, numbers)
        for name, question in questions.items()
        if not isinstance(question, str) and len(question.prediction) == part.height
    }


def training_of(study: "Study") -> dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]]:
    """Return the events and times of the patients that a (repeat, fold) does not test."""
    outcome = {patient.patient_id: patient.outcome for patient in study.patients}
    training = {}
    for key in study.folds:
        split = study.inner(*key)[0]
        times_events = np.array([outcome[one] for one in (*split.train, *split.validation)])
        training[key] = (times_events[:, 1] == 1, times_events[:, 0])
    return training


def study_times(study: "Study") -> NDArray[np.float64]:
    """Return the times at which survival curves are kept: the same in every cell of a run.

    They only decide where curves are evaluated; no model is fitted on them.
    """
    from downstream.survival.curves import curve_times

    times_events = outcomes(study.patients)
    return curve_times(times_events[:, 0], times_events[:, 1] == 1)


def _scored_measure(
    measure: "Measure",
    truth: Sequence[Any],
    prediction: NDArray[Any],
    patients: list[str],
    seed: int,
) -> ScoredMeasure:
    """Return a measure with its bootstrap interval, or with the reason why it is undefined."""
    better = measure.higher_is_better
    try:
        estimate = partial(interval, measure, truth, prediction, seed=seed, patients=patients)
        estimated = bca_or_percentile(estimate)
    except UndefinedMetricError as error:
        return ScoredMeasure(
            measure=measure.name, interval=None, higher_is_better=better, why=str(error)
        )
    return ScoredMeasure(measure=measure.name, interval=estimated, higher_is_better=better)


def _questions(study: "Study", part: "pl.DataFrame") -> list[MeasuredArrays]:
    """Return every measure of the run's task with its truth and predictions."""
    return _QUESTIONS[study.task](study, part)


def _number_questions(_: "Study", part: "pl.DataFrame") -> list[MeasuredArrays]:
    """Return the measures of a regression, with true and predicted numbers."""
    truth, prediction = part["value"].to_numpy(), part["found"].to_numpy()
    return [(measure, (truth,), prediction) for measure in regression_measures()]


def _label_questions(_: "Study", part: "pl.DataFrame") -> list[MeasuredArrays]:
    """Return the measures of several labels, with labels and probabilities."""
    labels, probabilities = np.array(part["labels"].to_list()), _probabilities(part)
    pooled: list[MeasuredArrays] = [
        (measure, (labels,), probabilities) for measure in multilabel_measures()
    ]
    return [(_LABELS_WITHIN_FOLDS, (labels, _model_numbers(part)), probabilities), *pooled]


def _class_questions(study: "Study", part: "pl.DataFrame") -> list[MeasuredArrays]:
    """Return the measures of several classes, with classes and probabilities."""
    label, probabilities = _class_indices(study, part), _probabilities(part)
    measures = classification_measures("multiclass")
    if study.is_ordered:
        measures.append(class_distance_measure())
    pooled: list[MeasuredArrays] = [(measure, (label,), probabilities) for measure in measures]
    return [(_WITHIN_FOLDS, (label, _model_numbers(part)), probabilities), *pooled]


def _binary_questions(study: "Study", part: "pl.DataFrame") -> list[MeasuredArrays]:
    """Return the measures of two classes, with classes and scores of class 1."""
    label, score = _class_indices(study, part), part["score"].to_numpy()
    # Folds have thresholds of their own: scores are moved so that each fold's is at one half.
    moved = score - part["threshold"].to_numpy() + 0.5
    pooled: list[MeasuredArrays] = [
        (measure, (label,), moved if measure.of_decisions else score)
        for measure in classification_measures("binary")
    ]
    return [(_WITHIN_FOLDS, (label, _model_numbers(part)), score), *pooled]


_WITHIN_FOLDS = measure_of("auroc_folds", auroc_folds)
_LABELS_WITHIN_FOLDS = measure_of("auroc_folds", multilabel_auroc_folds)
_QUESTIONS = {
    "binary": _binary_questions,
    "multiclass": _class_questions,
    "multilabel": _label_questions,
    "regression": _number_questions,
}


def _probabilities(part: "pl.DataFrame") -> NDArray[np.float64]:
    return np.array(part["probabilities"].to_list())


def _class_indices(study: "Study", part: "pl.DataFrame") -> NDArray[np.int64]:
    return np.array([study.classes.index(name) for name in part["label"]], dtype=np.int64)


def _model_numbers(part: "pl.DataFrame") -> NDArray[np.int64]:
    """Return the number of each row's model [P]: one per repetition, fold and seed."""
    import polars as pl

    cell = pl.struct("repeat", "fold", "seed").rank("dense").cast(pl.Int64)
    numbers: NDArray[np.int64] = part.select(cell.alias("cell"))["cell"].to_numpy()
    return numbers
