"""Pictures of classifications: curves, calibration, decisions, abstention.

Shape letters: S rows of predictions, P patients, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from downstream.measures.abstention import risk_coverage
from downstream.measures.class_measures import UndefinedMetricError, auroc
from downstream.measures.conformal import guarantee_warnings
from downstream.measures.intervals import interval
from downstream.report.plots.plots_bands import CurveScores
from downstream.report.plots.plots_classes import (
    confusion_svg,
    precision_recall_svg,
    reliability_svg,
    risk_coverage_svg,
    roc_svg,
)
from downstream.report.plots.plots_report import forest_svg
from downstream.report.run_tables import share_text
from downstream.report.views.picture_sections import (
    MOST_CURVES,
    MOST_PANELS,
    SMALL_PX,
    Section,
    first,
    together,
)

if TYPE_CHECKING:
    import polars as pl

    from downstream.measures.abstention import RiskCoverage
    from downstream.report.finished_run import Estimate, Run

_POOLED = (
    "Every prediction of a test patient counts, of all folds as they are; bands are pointwise 95 % "
    "over patients."
)


def class_sections(run: "Run") -> list[Section]:
    """Return the sections of a run of two classes or more."""
    section = Section(key="curves", title="Discrimination: ROC and precision-recall")
    for question, curves in class_curves(run, run.arms, section).items():
        for add in (add_roc, add_precision):
            add(section, run, question, curves)
    if run.unit == "tile":
        if run.result["config"]["shots"] is not None:
            section.notes.append("With few shots a tile's probability is its mean over draws.")
        # a probe weighs classes alike, however rare: its probabilities are not those of tiles
        return [section, _decisions(run)]
    return [section, _calibration(run), _decisions(run), _abstention(run)]


def class_section(run: "Run", arms: Sequence[str]) -> Section:
    """Return the section on ROC curves: of all arms for two classes, else of each arm's classes."""
    section = Section(key="", title="")
    drawn_arms = run.arms if run.task == "binary" else arms
    for shown, curves in class_curves(run, drawn_arms, section).items():
        add_roc(section, run, shown, curves)
    return section


def class_curves(
    run: "Run", arms: Sequence[str], section: Section
) -> dict[str, dict[str, CurveScores]]:
    """Return the curves of each picture: one per arm for two classes, else one per class.

    Args:
        run: the run.
        arms: names of the arms.
        section: section that gets notes on what is left out.

    Returns:
        Title of a picture -> name of a curve -> scores of the curve.
    """
    if run.task == "binary":
        drawn = first(arms, MOST_PANELS, section)
        question = f"{run.classes[-1]} against {run.classes[0]}"
        return {question: {arm: _class_scores(run, arm, run.classes[-1]) for arm in drawn}}
    names = run.classes[:MOST_CURVES]
    if names != run.classes:
        section.notes.append(f"Curves are drawn of the first {MOST_CURVES} classes.")
    curves_of_question = {}
    for arm in first(arms, MOST_PANELS, section):
        curves = {name: _class_scores(run, arm, name) for name in names}
        defined = {name: one for name, one in curves.items() if len(np.unique(one.label)) == 2}
        absent = [name for name in names if name not in defined]
        if absent:
            section.notes.append(
                f"{arm}: no curve for {', '.join(absent)}: no patient is of it, or all are."
            )
        if defined:
            curves_of_question[f"{arm}, each class against all others"] = defined
    return curves_of_question


def add_roc(section: Section, run: "Run", question: str, curves: Mapping[str, CurveScores]) -> None:
    """Add the ROC curves: in one picture, or of many arms in one each."""
    caption = f"ROC: {question}. {_POOLED} The diagonal is chance."
    _add_curves(section, run, ("ROC", "auroc", roc_svg), question, curves, caption)


def add_precision(
    section: Section, run: "Run", question: str, curves: Mapping[str, CurveScores]
) -> None:
    """Add the precision-recall curves: in one picture, or of many arms in one each."""
    caption = (
        f"Precision by recall: {question}. {_POOLED} A dashed line is the share of the class, "
        "which is chance."
    )
    kind = ("Precision-recall", "auprc", precision_recall_svg)
    _add_curves(section, run, kind, question, curves, caption)


def _add_curves(
    section: Section,
    run: "Run",
    kind: tuple[str, str, Callable[..., bytes]],
    question: str,
    curves: Mapping[str, CurveScores],
    caption: str,
) -> None:
    """Add curves of one kind: its name, its measure, and the function that draws it."""
    name, measure, draw = kind
    pictures = _pictures(run, curves)
    estimates = _legend_estimates(run, measure)
    for shown, context in pictures:
        arm = next(iter(shown))
        title = f"{name}: {question}" if context is None else arm
        drawn = partial(
            draw, shown, estimates=estimates, context=context, seed=_seed(run), title=title
        )
        section.add(
            drawn,
            f"{name} curves, {question}{_of_arm(shown, context)}",
            caption if context is None else f"{name} of {arm}: {question}.{_behind(context)}",
            width=500 if context is None else SMALL_PX,
        )
    if len(pictures) > 1:
        section.notes.append(caption)


_Shown = TypeVar("_Shown")


def _pictures(
    run: "Run", curves: Mapping[str, _Shown]
) -> list[tuple[dict[str, _Shown], dict[str, _Shown] | None]]:
    """Return the curves of each picture, and those in grey behind them; None where all fit in one.

    Curves of classes stay in one picture: they are of one arm.
    """
    return _multiples(curves) if run.task == "binary" else [(dict(curves), None)]


def _multiples(
    curves: Mapping[str, _Shown],
) -> list[tuple[dict[str, _Shown], dict[str, _Shown] | None]]:
    """Return each curve with all others behind it; one picture of all where there are few."""
    groups = together(list(curves))
    if len(groups) == 1:
        return [(dict(curves), None)]
    return [
        (
            {arm: curves[arm]},
            {other: curve for other, curve in curves.items() if other != arm},
        )
        for (arm,) in groups
    ]


def _of_arm(shown: Mapping[str, Any], context: Mapping[str, Any] | None) -> str:
    """Return the arm of a small picture for its caption; empty for a picture of all arms."""
    return "" if context is None else f", {next(iter(shown))}"


def _behind(context: Mapping[str, Any] | None) -> str:
    """Return what stands behind the curves of a small picture."""
    return "" if context is None else " Grey: the other arms."


def _legend_estimates(run: "Run", measure: str) -> "dict[str, Estimate] | None":
    """Return the arms' estimates for the legend, or None where curves are of classes."""
    return run.estimates(measure) if run.task == "binary" else None


def _seed(run: "Run") -> int:
    return int(run.result["config"].get("seed", 0))


def _class_scores(run: "Run", arm: str, name: str) -> CurveScores:
    """Return the labels and probabilities of one class, one row per prediction."""
    rows, at = run.rows(arm), run.classes.index(name)
    return CurveScores(
        label=(rows["label"] == name).to_numpy().astype(np.int64),
        score=rows["probabilities"].list.get(at).to_numpy(),
        patients=rows["patient_id"].to_list(),
    )


def _likeliest_class_scores(run: "Run", arm: str) -> CurveScores:
    """Return the probability of the likeliest class, and whether the patient has that class."""
    rows = run.rows(arm)
    probabilities = np.array(rows["probabilities"].to_list())
    right = probabilities.argmax(axis=1) == _indices(rows["label"], run.classes)
    return CurveScores(
        label=right.astype(np.int64),
        score=probabilities.max(axis=1),
        patients=rows["patient_id"].to_list(),
    )


def _indices(labels: "pl.Series", classes: list[str]) -> NDArray[np.int64]:
    return np.array([classes.index(name) for name in labels], dtype=np.int64)


def _calibration(run: "Run") -> Section:
    """Return the section on calibration: predicted probabilities against observed shares."""
    section = Section(key="calibration", title="Calibration of probabilities")
    arms = first(run.arms, MOST_PANELS, section)
    binary = run.task == "binary"
    xlabel = f"probability of {run.classes[-1]}" if binary else "probability of the likeliest class"
    ylabel = f"share that is {run.classes[-1]}" if binary else "share that is correct"
    curves = {
        a: _class_scores(run, a, run.classes[-1]) if binary else _likeliest_class_scores(run, a)
        for a in arms
    }
    _add_reliability(
        section,
        curves,
        xlabel,
        ylabel,
        "Predictions in up to ten bins of about equally many, by their probability; bars are 95 % "
        "over patients. On the diagonal predicted probabilities are observed shares; below it they "
        "are too high. Below: how often each probability was predicted.",
    )
    return section


def _add_reliability(
    section: Section, curves: Mapping[str, CurveScores], xlabel: str, ylabel: str, caption: str
) -> None:
    """Add the reliability curves: in one picture, or of many arms in one each."""
    for shown, context in _multiples(curves):
        arm = "" if context is None else next(iter(shown))
        section.add(
            partial(
                reliability_svg, shown, xlabel=xlabel, ylabel=ylabel, context=context, title=arm
            ),
            f"Reliability curves{_of_arm(shown, context)}",
            caption if context is None else f"Calibration of {arm}.{_behind(context)}",
            width=500 if context is None else SMALL_PX,
        )
    if len(together(list(curves))) > 1:
        section.notes.insert(0, caption)


def _decisions(run: "Run") -> Section:
    """Return the section with the confusion matrices."""
    section = Section(key="decisions", title="Confusion matrices")
    rule = (
        "positive from the threshold on that was chosen on the fold's validation patients "
        "(balanced accuracy)"
        if run.task == "binary" and run.unit == "patient"
        else "the likeliest class"
    )
    once = "that of the first repetition and seed, " if run.unit == "patient" else ""
    for arm in first(run.arms, MOST_PANELS, section):
        counts = confusion_counts(run, arm)
        section.add(
            partial(confusion_svg, counts, run.classes, title=arm),
            f"Confusion matrix of {arm}",
            f"{arm}: {rule}; one prediction a {run.unit}, {once}{int(counts.sum()):,} {run.unit}s. "
            "Shares are of a row.",
            width=330,
        )
    return section


def confusion_counts(run: "Run", arm: str) -> NDArray[np.int64]:
    """Return counts of patients or tiles [C, C], rows by true and columns by predicted class."""
    rows, classes = run.once(arm), len(run.classes)
    truth = _indices(rows["label"], run.classes)
    if run.task == "binary":
        threshold = rows["threshold"].fill_null(0.5)
        predicted = (rows["score"] >= threshold).to_numpy().astype(np.int64)
    else:
        predicted = np.array(rows["probabilities"].to_list()).argmax(axis=1)
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _abstention(run: "Run") -> Section:
    """Return the section on selective prediction."""
    section = Section(key="abstention", title="Selective prediction")
    curves: dict[str, RiskCoverage] = {}
    for arm in first(run.arms, MOST_PANELS, section):
        sure = _likeliest_class_scores(run, arm)
        curves[arm] = risk_coverage(sure.score, sure.label == 1)
    arm_texts = [
        _coverage_text(arm, one, run.rows(arm).height)
        for arm, one in run.result.get("coverage", {}).items()
    ]
    target = next((one["target"] for one in run.result.get("coverage", {}).values()), None)
    target_text = (
        ""
        if target is None
        else (
            f" Target accuracy {target:.0%}, confidence threshold chosen on validation patients: "
            f"{'; '.join(arm_texts)}."
        )
    )
    caption = (
        "Share of errors of the likeliest class among the surest predictions, by how many are "
        "given. A useful confidence rises from the left; the area under the curve is compared with "
        "the least possible one, where all errors are the least sure. All test predictions count."
        + target_text
    )
    for shown, context in _multiples(curves):
        arm = "" if context is None else next(iter(shown))
        section.add(
            partial(risk_coverage_svg, shown, context=context, title=arm),
            f"Risk by coverage{_of_arm(shown, context)}",
            caption if context is None else f"Errors by coverage of {arm}.{_behind(context)}",
            width=500 if context is None else SMALL_PX,
        )
    if len(together(list(curves))) > 1:
        section.notes.insert(0, caption)
    for arm, promise in run.result.get("guarantees", {}).items():
        section.notes.append(_guarantee_text(arm, promise, run.rows(arm).height))
        section.notes.extend(f"{sentence}." for sentence in guarantee_warnings(arm, promise))
    return section


def _coverage_text(arm: str, one: Mapping[str, Any], predictions: int) -> str:
    """Return how many predictions of an arm were answered, and how many of them correctly."""
    answered = share_text(one["coverage"], predictions)
    if one["accuracy"] is None:
        return f"{arm}: {answered} answered"
    answers = round(one["coverage"] * predictions)
    return f"{arm}: {answered} answered, {share_text(one['accuracy'], answers)} of them correctly"


def _guarantee_text(arm: str, promise: Mapping[str, Any], predictions: int) -> str:
    """Return what conformal sets and deferral of an arm did, in a sentence."""
    sets, deferral, level = promise["sets"], promise["deferral"], promise["level"]
    answers = round(deferral["told"] * predictions)
    wrong = ""
    if deferral["wrong"] is not None:
        wrong = f", {share_text(deferral['wrong'], answers)} of them wrongly"
    return (
        f"{arm}: conformal sets of {level:.0%} hold the class of "
        f"{share_text(sets['coverage'], predictions)} of the "
        f"patients with {sets['size']:.2f} classes each, "
        f"{share_text(sets['single'], predictions)} are a single class. "
        f"Deferral that allows {1 - level:.0%} wrong among the answered: "
        f"{share_text(deferral['told'], predictions)} answered{wrong}."
    )


def label_sections(run: "Run") -> list[Section]:
    """Return the sections of a run of several labels that do not exclude each other."""
    return [label_section(run, run.arms), _label_calibration(run)]


def label_section(run: "Run", arms: Sequence[str]) -> Section:
    """Return the section on the AUROC of each label, one picture per arm."""
    section = Section(key="labels", title="AUROC of each label")
    for arm in first(arms, MOST_PANELS, section):
        estimates, without = label_estimates(run, arm)
        if without:
            section.notes.append(
                f"{arm}: no AUROC for {', '.join(without)}, which all patients have or none."
            )
        if estimates:
            section.add(
                partial(forest_svg, estimates, xlabel="AUROC, 95 % interval over patients"),
                f"AUROC per label of {arm}",
                f"{arm}: AUROC of each label over all test predictions, with its interval over "
                "patients; the dashed line is chance.",
                width=540,
            )
    return section


def label_estimates(run: "Run", arm: str) -> "tuple[dict[str, Estimate], list[str]]":
    """Return the AUROC of each label with its interval, and the labels where it is undefined."""
    from downstream.measures import weighted
    from downstream.measures.class_measures import Measure

    measure = Measure(name="auroc", value=auroc, resampled=weighted.auroc)
    estimates: dict[str, Estimate] = {}
    without = []
    for name in run.classes:
        one = _label_scores(run, arm, name)
        try:
            estimated = interval(
                measure, (one.label,), one.score, seed=_seed(run), patients=one.patients,
                method="percentile", resamples=1000,
            )  # fmt: skip
        except UndefinedMetricError:
            without.append(name)
            continue
        estimates[name] = (estimated.estimate, estimated.low, estimated.high)
    return estimates, without


def _label_scores(run: "Run", arm: str, name: str) -> CurveScores:
    """Return the values and probabilities of one label, one row per prediction."""
    rows, at = run.rows(arm), run.classes.index(name)
    return CurveScores(
        label=rows["labels"].list.get(at).to_numpy().astype(np.int64),
        score=rows["probabilities"].list.get(at).to_numpy(),
        patients=rows["patient_id"].to_list(),
    )


def _label_calibration(run: "Run") -> Section:
    """Return the section on the calibration of all labels together."""
    section = Section(key="calibration", title="Calibration of probabilities")
    curves = {arm: _all_labels(run, arm) for arm in first(run.arms, MOST_PANELS, section)}
    _add_reliability(
        section,
        curves,
        "probability of a label",
        "share that has the label",
        "All labels of all test predictions together, in up to ten bins of about equally many; "
        "bars are 95 % over patients. On the diagonal probabilities are what they say.",
    )
    return section


def _all_labels(run: "Run", arm: str) -> CurveScores:
    """Return the values and probabilities of all labels as one set of scores."""
    parts = [_label_scores(run, arm, name) for name in run.classes]
    return CurveScores(
        label=np.concatenate([part.label for part in parts]),
        score=np.concatenate([part.score for part in parts]),
        patients=[one for part in parts for one in part.patients or ()],
    )
