"""Guarantees of a classifier from its validation patients: sets of classes, and deferral.

Both hold for patients who are exchangeable with the validation patients, over the draw of both. A
new site is not: coverage is told by class and by site, so that it is seen where it breaks.

Shape letters: P test patients, N validation patients, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from downstream.run.study import Study

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: A class or site with fewer patients is told, and not judged.
_FEW = 10


def lac_sets(
    validation_NC: Floats, label_N: NDArray[np.int64], test_PC: Floats, *, level: float
) -> Flags:
    """Return the classes that are in each patient's set [P, C], by least ambiguous sets (LAC).

    The true class is in a new patient's set with a probability of at least `level`. A set may be
    empty, and with few validation patients it holds all classes.

    Args:
        validation_NC: probabilities of the validation patients.
        label_N: their class indices.
        test_PC: probabilities of the patients to predict.
        level: least coverage, above 0 and below 1.

    Source:
        Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error
        levels", JASA 114; the quantile is ceil((N + 1) level) / N of 1 - p(label).

    >>> validation = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> lac_sets(validation, np.array([0, 1, 0]), np.array([[0.95, 0.05], [0.5, 0.5]]), level=0.5)
    array([[ True, False],
           [False, False]])
    """
    count = len(label_N)
    rank = int(np.ceil((count + 1) * level - 1e-9))
    if rank > count:
        return np.ones(test_PC.shape, dtype=bool)
    unlike_N = np.sort(1 - validation_NC[np.arange(count), label_N])
    inside: Flags = 1 - test_PC <= unlike_N[rank - 1] + 1e-12
    return inside


def answered_at(
    sure_N: Floats, is_correct_N: Flags, sure_P: Floats, *, false_discoveries: float
) -> Flags:
    """Return whose likeliest class is told [P], at a bounded share of wrong ones among the told.

    The expected share of wrong classes among those that are told is at most `false_discoveries`:
    each patient's class is tested against the validation patients whose class was wrong, and the
    p values go through Benjamini and Hochberg's procedure.

    Args:
        sure_N: probability of the likeliest class of each validation patient.
        is_correct_N: whether that class is the label.
        sure_P: probability of the likeliest class of each patient to predict.
        false_discoveries: greatest expected share, above 0 and below 1.

    Source:
        Jin and Candes 2023, "Selection by prediction with conformal p-values", JMLR 24.
    """
    wrong_N = np.sort(sure_N[~is_correct_N])
    surer = len(wrong_N) - np.searchsorted(wrong_N, sure_P - 1e-12, side="left")
    p_P = (1 + surer) / (len(sure_N) + 1)
    order = np.argsort(p_P, kind="stable")
    bound = false_discoveries * np.arange(1, len(p_P) + 1) / len(p_P)
    passed = np.flatnonzero(p_P[order] <= bound + 1e-12)
    answered_P: Flags = np.zeros(len(p_P), dtype=bool)
    if len(passed):
        answered_P[order[: passed[-1] + 1]] = True
    return answered_P


def guarantees_of(
    study: "Study", part: pl.DataFrame, *, level: float, site_of: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what sets and deferral of one arm did on test patients, as JSON.

    Args:
        study: a run of classes.
        part: all rows of the arm, validation and test.
        level: coverage of the sets; deferral allows 1 - level wrong ones among the told.
        site_of: site of each patient; empty where none is known.

    Returns:
        `level`, `sets` (coverage, mean size, share of single classes, coverage `by_class` and
        `by_site`) and `deferral` (share told, share of wrong ones among them); None without
        validation patients.
    """
    inside, answers, is_correct, names, labels = [], [], [], [], []
    for _, cell in part.group_by("repeat", "fold", "seed", maintain_order=True):
        validation, test = (cell.filter(pl.col("part") == one) for one in ("validation", "test"))
        if validation.is_empty():
            return None
        seen_NC, label_N = _arrays(study, validation)
        test_PC, label_P = _arrays(study, test)
        inside.append(lac_sets(seen_NC, label_N, test_PC, level=level))
        right = test_PC.argmax(axis=1) == label_P
        answers.append(
            answered_at(
                seen_NC.max(axis=1),
                seen_NC.argmax(axis=1) == label_N,
                test_PC.max(axis=1),
                false_discoveries=1 - level,
            )
        )
        is_correct.append(right)
        names += test["patient_id"].to_list()
        labels.append(label_P)
    inside_SC, label_S = np.concatenate(inside), np.concatenate(labels)
    is_told, right_S = np.concatenate(answers), np.concatenate(is_correct)
    covered_S = inside_SC[np.arange(len(label_S)), label_S]
    sites = [site_of[name] for name in names] if site_of else []
    return {
        "level": level,
        "sets": {
            "coverage": float(covered_S.mean()),
            "size": float(inside_SC.sum(axis=1).mean()),
            "single": float((inside_SC.sum(axis=1) == 1).mean()),
            "by_class": _shares(covered_S, [study.classes[label] for label in label_S], names),
            "by_site": _shares(covered_S, sites, names) if sites else {},
        },
        "deferral": {
            "told": float(is_told.mean()),
            "wrong": float(1 - right_S[is_told].mean()) if is_told.any() else None,
        },
    }


def guarantee_warnings(arm: str, promise: Mapping[str, Any]) -> list[str]:
    """Return sentences on classes and sites whose coverage is below what chance explains.

    Args:
        arm: name of the arm.
        promise: what `guarantees_of` returned.
    """
    level, sentences = promise["level"], []
    for kind, groups in (
        ("class", promise["sets"]["by_class"]),
        ("site", promise["sets"]["by_site"]),
    ):
        low = [
            f"{name} ({group['coverage']:.0%} of {group['patients']})"
            for name, group in groups.items()
            if _is_below(group, level)
        ]
        if low:
            sentences.append(
                f"{arm}: sets of {level:.0%} cover less than that in {kind} {', '.join(low)}; "
                "these are unlike the validation patients, and nothing is promised for them"
            )
    return sentences


def _is_below(group: Mapping[str, Any], level: float) -> bool:
    """Whether coverage of a group is lower than chance has it in 1 of 100."""
    from scipy.stats import binom

    patients = group["patients"]
    covered = round(group["coverage"] * patients)
    return patients >= _FEW and bool(binom.cdf(covered, patients, level) < 0.01)


def _arrays(study: "Study", rows: pl.DataFrame) -> tuple[Floats, NDArray[np.int64]]:
    """Return probabilities [P, C] and class indices [P]."""
    label_P = np.array([study.classes.index(name) for name in rows["label"]], dtype=np.int64)
    return np.array(rows["probabilities"].to_list()), label_P


def _shares(
    covered_S: Flags, groups: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the coverage of each group and its number of patients."""
    rows = pl.DataFrame({"group": groups, "covered": covered_S, "patient": names})
    shares = rows.group_by("group").agg(pl.col("covered").mean(), pl.col("patient").n_unique())
    return {
        group: {"coverage": covered, "patients": patients}
        for group, covered, patients in shares.sort("group").iter_rows()
    }
