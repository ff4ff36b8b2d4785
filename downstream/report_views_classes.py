"""Pictures of classifications: curves, calibration, decisions, abstention.

Shape letters: S rows of predictions, P patients, C classes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from downstream.abstention import risk_coverage
from downstream.intervals import interval
from downstream.measures import UndefinedMetricError, auroc
from downstream.plots import roc_png
from downstream.plots_bands import Scores
from downstream.plots_classes import (
    confusion_png,
    precision_recall_png,
    reliability_png,
    risk_coverage_png,
)
from downstream.report_plots import forest_png
from downstream.report_views import MOST_CURVES, MOST_PANELS, Section, first

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl
    from numpy.typing import NDArray

    from downstream.abstention import RiskCoverage
    from downstream.report_run import Estimate, Run

_POOLED = (
    "Every prediction of a test patient counts, of all folds as they are; bands are pointwise 95 % "
    "over patients."
)


def class_sections(run: Run) -> list[Section]:
    """Of two classes or more."""
    return [roc_section(run), _calibration(run), _decisions(run), _abstention(run)]


def roc_section(run: Run) -> Section:
    """ROC and precision-recall: a curve an arm for two classes, else a picture an arm."""
    section = Section(key="curves", title="Telling classes apart")
    if run.task == "binary":
        arms = first(run.arms, MOST_CURVES, section)
        curves = {arm: _of_class(run, arm, run.classes[-1]) for arm in arms}
        _curves(section, run, curves, f"{run.classes[-1]} against {run.classes[0]}", of_arms=True)
        return section
    names = run.classes[:MOST_CURVES]
    if names != run.classes:
        section.notes.append(f"Curves are drawn of the first {MOST_CURVES} classes.")
    for arm in first(run.arms, MOST_PANELS, section):
        curves = {name: _of_class(run, arm, name) for name in names}
        there = {name: one for name, one in curves.items() if len(np.unique(one.label)) == 2}
        absent = [name for name in names if name not in there]
        if absent:
            section.notes.append(
                f"No curve for {', '.join(absent)}: no patient is of it, or all are."
            )
        if there:
            _curves(section, run, there, f"{arm}, each class against all others", of_arms=False)
    return section


def _curves(
    section: Section, run: Run, curves: Mapping[str, Scores], what: str, *, of_arms: bool
) -> None:
    seed = int(run.result["config"].get("seed", 0))
    known = {name: run.estimates(name) if of_arms else None for name in ("auroc", "auprc")}
    section.add(
        partial(roc_png, curves, estimates=known["auroc"], seed=seed),
        f"ROC curves, {what}",
        f"ROC: {what}. {_POOLED} The diagonal is chance.",
    )
    section.add(
        partial(precision_recall_png, curves, estimates=known["auprc"], seed=seed),
        f"Precision-recall curves, {what}",
        f"Precision by recall: {what}. {_POOLED} A dashed line is the share of the class, which "
        "knowing nothing gives.",
    )


def _of_class(run: Run, arm: str, name: str) -> Scores:
    """Probabilities of one class."""
    rows, at = run.rows(arm), run.classes.index(name)
    return Scores(
        label=(rows["label"] == name).to_numpy().astype(np.int64),
        score=rows["probabilities"].list.get(at).to_numpy(),
        patients=rows["patient_id"].to_list(),
    )


def _sure(run: Run, arm: str) -> Scores:
    """Probability of the likeliest class, and whether the patient is of it."""
    rows = run.rows(arm)
    probabilities = np.array(rows["probabilities"].to_list())
    right = probabilities.argmax(axis=1) == _indices(rows["label"], run.classes)
    return Scores(
        label=right.astype(np.int64),
        score=probabilities.max(axis=1),
        patients=rows["patient_id"].to_list(),
    )


def _indices(labels: pl.Series, classes: list[str]) -> NDArray[np.int64]:
    return np.array([classes.index(name) for name in labels], dtype=np.int64)


def _calibration(run: Run) -> Section:
    """Whether probabilities are what they say."""
    section = Section(key="calibration", title="Are probabilities what they say?")
    arms = first(run.arms, MOST_CURVES, section)
    binary = run.task == "binary"
    xlabel = f"probability of {run.classes[-1]}" if binary else "probability of the likeliest class"
    ylabel = f"share that is {run.classes[-1]}" if binary else "share that is right"
    curves = {a: _of_class(run, a, run.classes[-1]) if binary else _sure(run, a) for a in arms}
    section.add(
        partial(reliability_png, curves, xlabel=xlabel, ylabel=ylabel),
        "Reliability curves",
        "Predictions in ten bins of about equally many, by their probability; bars are 95 % over "
        "patients. On the diagonal probabilities are what they say, below it they say too much. "
        "Below: how often each probability was given.",
    )
    return section


def _decisions(run: Run) -> Section:
    """Confusion matrices."""
    section = Section(key="decisions", title="Decisions")
    how = (
        "positive from the threshold on that was chosen on the fold's validation patients "
        "(balanced accuracy)"
        if run.task == "binary"
        else "the likeliest class"
    )
    for arm in first(run.arms, MOST_PANELS, section):
        counts = confusion_counts(run, arm)
        section.add(
            partial(confusion_png, counts, run.classes, title=arm),
            f"Confusion matrix of {arm}",
            f"{arm}: {how}; one prediction a patient, that of the first repetition and seed, "
            f"{int(counts.sum()):,} patients. Shares are of a row.",
            width=330,
        )
    return section


def confusion_counts(run: Run, arm: str) -> NDArray[np.int64]:
    """Patients by true (rows) and predicted class (columns) [C, C]."""
    rows, classes = run.once(arm), len(run.classes)
    truth = _indices(rows["label"], run.classes)
    if run.task == "binary":
        threshold = rows["threshold"].fill_null(0.5)
        said = (rows["score"] >= threshold).to_numpy().astype(np.int64)
    else:
        said = np.array(rows["probabilities"].to_list()).argmax(axis=1)
    counts = np.bincount(truth * classes + said, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _abstention(run: Run) -> Section:
    """What leaving out unsure predictions would bring."""
    section = Section(key="abstention", title="Saying nothing where it is not sure")
    curves: dict[str, RiskCoverage] = {}
    for arm in first(run.arms, MOST_CURVES, section):
        sure = _sure(run, arm)
        curves[arm] = risk_coverage(sure.score, sure.label == 1)
    section.add(
        partial(risk_coverage_png, curves),
        "Risk by coverage",
        "Share of errors of the likeliest class among the surest predictions, by how many are "
        "given. A useful confidence rises from the left; the area under the curve is compared with "
        "the least possible one, where all errors are the least sure. All test predictions count.",
    )
    return section


def label_sections(run: Run) -> list[Section]:
    """Of several labels, each yes or no."""
    section = Section(key="labels", title="Label by label")
    for arm in first(run.arms, MOST_PANELS, section):
        found, without = label_estimates(run, arm)
        if without:
            section.notes.append(
                f"{arm}: no AUROC for {', '.join(without)}, which all patients have or none."
            )
        if found:
            section.add(
                partial(forest_png, found, xlabel="AUROC, 95 % interval over patients"),
                f"AUROC per label of {arm}",
                f"{arm}: AUROC of each label over all test predictions, with its interval over "
                "patients; the dashed line is chance.",
                width=540,
            )
    return [section, _label_calibration(run)]


def label_estimates(run: Run, arm: str) -> tuple[dict[str, Estimate], list[str]]:
    """AUROC of each label with its interval, and the labels that have none."""
    from downstream import measures_weighted as weighted
    from downstream.measures import Measure

    measure = Measure(name="auroc", value=auroc, resampled=weighted.auroc)
    seed = int(run.result["config"].get("seed", 0))
    found: dict[str, Estimate] = {}
    without = []
    for name in run.classes:
        one = _of_label(run, arm, name)
        try:
            known = interval(
                measure, (one.label,), one.score, seed=seed, patients=one.patients,
                method="percentile", resamples=1000,
            )  # fmt: skip
        except UndefinedMetricError:
            without.append(name)
            continue
        found[name] = (known.estimate, known.low, known.high)
    return found, without


def _of_label(run: Run, arm: str, name: str) -> Scores:
    rows, at = run.rows(arm), run.classes.index(name)
    return Scores(
        label=rows["labels"].list.get(at).to_numpy().astype(np.int64),
        score=rows["probabilities"].list.get(at).to_numpy(),
        patients=rows["patient_id"].to_list(),
    )


def _label_calibration(run: Run) -> Section:
    section = Section(key="calibration", title="Are probabilities what they say?")
    curves = {arm: _all_labels(run, arm) for arm in first(run.arms, MOST_CURVES, section)}
    section.add(
        partial(
            reliability_png,
            curves,
            xlabel="probability of a label",
            ylabel="share that has the label",
        ),
        "Reliability curves",
        "All labels of all test predictions together, in ten bins of about equally many; bars are "
        "95 % over patients. On the diagonal probabilities are what they say.",
    )
    return section


def _all_labels(run: Run, arm: str) -> Scores:
    parts = [_of_label(run, arm, name) for name in run.classes]
    return Scores(
        label=np.concatenate([part.label for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        patients=[one for part in parts for one in part.patients or ()],
    )
