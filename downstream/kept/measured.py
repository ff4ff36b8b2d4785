"""Measures of a run's predictions on labelled patients, seen and unseen apart."""

from dataclasses import replace
from functools import partial
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cluster import counted
from downstream.cohorts.cohort import patient_table
from downstream.cohorts.competing import competing_labels
from downstream.cohorts.label_tables import load_labels
from downstream.cohorts.outcomes import survival_labels
from downstream.kept.kept_model import KeptModelError
from downstream.measures.class_measures import (
    Measure,
    UndefinedMetricError,
    classification_measures,
    measure_of,
)
from downstream.measures.intervals import bca_or_percentile, interval
from downstream.measures.number_measures import regression_measures
from downstream.measures.weighted import auroc_folds
from downstream.run.label_targets import value_names
from downstream.survival.survival_weighted import concordance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from downstream.cohorts.outcomes import EventMeans
    from downstream.kept.predict_patients import PatientPredictions
    from featurestore import Lake

_NOT_HERE = ("multilabel",)


# Long by its docstring, and with the options that a study's labels have.
def measured_predictions(
    lake: "Lake",
    predictions: "PatientPredictions",
    labels: str | PathLike[str],
    columns: "Sequence[str]",
    *,
    classes: "Sequence[str]",
    event_means: "EventMeans" = "auto",
    class_names: "Sequence[str]" = (),
    cause: str | None = None,
    censored: str = "0",
    ids: "Mapping[str, Any] | None" = None,
) -> dict[str, dict[str, Any]]:
    """Return the measures of predictions with intervals, for patients the run has seen and others.

    Predictions of seen patients are of models that were not trained on them: another estimate of
    what the run measured, and measured as there: rankings first within folds (`auroc_folds`,
    `harrell_c_folds`), where both of a pair have their score from the same models, then pooled.
    Those of unseen patients are an external validation: all folds' models predict each of them.

    Args:
        lake: the lake of the patients.
        predictions: predictions of one arm.
        labels: table of labels, as for a study.
        columns: label columns of the run: the target, or time and event.
        classes: classes of the run, in its order.
        event_means: what 1 means in the column of events, see `survival_labels`.
        class_names: names that the run gives the values of its target, see `LabelOptions`.
        cause: event of interest among competing ones, see `competing_labels`.
        censored: value of patients without an event, likewise.
        ids: options of `load_labels`.

    Returns:
        `seen` and `unseen`, each with `patients` and `measures` by name (`estimate`, `low`, `high`,
        or `undefined` with the reason), and `not predicted`, labelled patients without a
        prediction; a group without patients is left out.

    Raises:
        KeptModelError: No labelled patient is predicted, a label that is no class of the run, or a
            task without measures here.
    """
    if predictions.task in _NOT_HERE:
        msg = f"{predictions.task} predictions are not measured; compare them with the labels"
        raise KeptModelError(msg)
    rows, labelled = labelled_rows(
        lake,
        predictions,
        labels,
        columns,
        class_names=class_names,
        cause=cause,
        censored=censored,
        ids=ids,
    )
    groups = {"seen": rows.filter("seen"), "unseen": rows.filter(~pl.col("seen"))}
    missed = labelled - rows.height
    not_predicted = {"not predicted": {"patients": missed, "measures": {}}} if missed else {}
    return not_predicted | {
        name: {
            "patients": group.height,
            "measures": _measures(predictions.task, group, columns, classes, event_means),
        }
        for name, group in groups.items()
        if group.height
    }


def labelled_rows(
    lake: "Lake",
    predictions: "PatientPredictions",
    labels: str | PathLike[str],
    columns: "Sequence[str]",
    *,
    class_names: "Sequence[str]" = (),
    cause: str | None = None,
    censored: str = "0",
    ids: "Mapping[str, Any] | None" = None,
) -> tuple[pl.DataFrame, int]:
    """Return the predictions of labelled patients with their labels, and how many are labelled.

    Args:
        lake: the lake of the patients.
        predictions: predictions of one arm.
        labels: table of labels, as for a study.
        columns: label columns of the run.
        class_names: names that the run gives the values of its target, as VALUE=NAME.
        cause: event of interest among competing ones, see `competing_labels`.
        censored: value of patients without an event, likewise.
        ids: options of `load_labels`.

    Raises:
        KeptModelError: No labelled patient is predicted.
    """
    from featurestore.annotations import labels_of

    table = load_labels(labels_of(lake, fspath(labels)), **dict(ids or {}))
    numbers = columns[:1] if predictions.task in {"survival", "regression"} else ()
    cohort = patient_table(lake.slides(), table, columns, numbers=numbers)
    if cause is not None:
        causes = competing_labels(cohort.patients, *columns, cause=cause, censored=censored)
        event = pl.Series(columns[1], (causes.cause == 1).astype(np.int64))
        cohort = replace(cohort, patients=cohort.patients.with_columns(event))
    rows = predictions.rows.join(cohort.patients.drop("slide_ids"), on="patient_id", how="inner")
    if rows.is_empty():
        msg = (
            f"none of {counted(cohort.patients.height, 'labelled patient')} is among those who "
            "are predicted; the lake may not know the patients that the labels name: tell it by "
            "`slidelake annotate --name patients`"
        )
        raise KeptModelError(msg)
    if class_names:
        named = pl.col(columns[0]).cast(pl.String).replace(value_names(class_names))
        rows = rows.with_columns(named)
    return rows, cohort.patients.height


def _measures(
    task: str,
    rows: pl.DataFrame,
    columns: "Sequence[str]",
    classes: "Sequence[str]",
    event_means: "EventMeans",
) -> dict[str, dict[str, Any]]:
    """Return the measures of one group of patients by name."""
    measures: dict[str, dict[str, Any]] = {}
    is_seen = bool(rows["seen"].all())
    for measure, truth, prediction in [
        *(_fold_questions(task, rows, columns, classes, event_means) if is_seen else ()),
        *_questions(task, rows, columns, classes, event_means),
    ]:
        try:
            estimate = bca_or_percentile(partial(interval, measure, truth, prediction, seed=0))
            measures[measure.name] = {
                "estimate": estimate.estimate,
                "low": estimate.low,
                "high": estimate.high,
            }
        except UndefinedMetricError as error:
            measures[measure.name] = {"undefined": str(error)}
    return measures


def _fold_questions(
    task: str,
    rows: pl.DataFrame,
    columns: "Sequence[str]",
    classes: "Sequence[str]",
    event_means: "EventMeans",
) -> list[tuple[Measure, tuple[Any, ...], Any]]:
    """Return the rankings within folds: of patients that the same models predict."""
    fold_P = rows["fold"].rank("dense").cast(pl.Int64).to_numpy()
    _, truth, prediction = _questions(task, rows, columns, classes, event_means)[0]
    if task == "survival":
        events, times, _, weights = truth
        within = measure_of("harrell_c_folds", concordance)
        return [(within, (events, times, fold_P, weights), prediction)]
    if task in {"binary", "multiclass"}:
        return [(measure_of("auroc_folds", auroc_folds), (*truth, fold_P), prediction)]
    return []


def _questions(
    task: str,
    rows: pl.DataFrame,
    columns: "Sequence[str]",
    classes: "Sequence[str]",
    event_means: "EventMeans",
) -> list[tuple[Measure, tuple[Any, ...], Any]]:
    """Return each measure with its truth and predictions."""
    if task == "regression":
        truth, prediction = rows[columns[0]].cast(pl.Float64).to_numpy(), rows["score"].to_numpy()
        return [(measure, (truth,), prediction) for measure in regression_measures()]
    if task == "survival":
        times, events = survival_labels(rows, *columns, event_means=event_means)
        together = np.zeros(rows.height, dtype=np.int64)
        truth_S = (events, times, together, events.astype(np.float64))
        return [(measure_of("harrell_c", concordance), truth_S, rows["score"].to_numpy())]
    names = [str(label) for label in rows[columns[0]]]
    strangers = sorted(set(names) - set(classes))
    if strangers:
        msg = (
            f"column {columns[0]!r} has {', '.join(strangers[:5])}; the run's classes are "
            f"{', '.join(classes)}"
        )
        raise KeptModelError(msg)
    label = np.array([classes.index(name) for name in names], dtype=np.int64)
    probabilities = rows.select(f"p_{name}" for name in classes).to_numpy()
    if task == "multiclass":
        return [(m, (label,), probabilities) for m in classification_measures("multiclass")]
    decided = (rows["predicted"] == classes[1]).to_numpy().astype(np.float64)
    return [
        (m, (label,), decided if m.of_decisions else probabilities[:, 1])
        for m in classification_measures("binary")
    ]
