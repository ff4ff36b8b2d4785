"""Measures of a run as other tools take them: on each test part, then their mean over parts.

Classes are the likeliest ones, also of two, as the tools decide; measures by scikit-learn.

Shape letters: P patients, C classes, J test parts.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
TakeMeasure = Callable[[Labels, Floats], float]


def mean_over_parts(value_J: Floats) -> dict[str, Any]:
    """Return mean, spread and limits of a measure over the test parts that have it.

    Args:
        value_J: the measure on each test part; NaN where it is undefined.

    Returns:
        `mean`; `sd` (of J - 1); `se`, the standard error as Patho-Bench takes it (deviation of J,
        over the root of J); `low` and `high` of the 95 % t interval, as STAMP's; `parts` with the
        measure, and `left_out` without. All but the counts are None where there are too few.

    >>> mean_over_parts(np.array([0.5, 1.0, np.nan]))["mean"]
    0.75
    """
    from scipy import stats

    value_J = np.asarray(value_J, dtype=np.float64)
    known_J = value_J[np.isfinite(value_J)]
    parts = len(known_J)
    answer: dict[str, Any] = dict.fromkeys(("mean", "sd", "se", "low", "high"))
    answer |= {"parts": parts, "left_out": len(value_J) - parts}
    if parts:
        answer["mean"] = float(known_J.mean())
    if parts > 1:
        sd = float(known_J.std(ddof=1))
        reach = float(stats.t.ppf(0.975, parts - 1)) * sd / parts**0.5
        answer |= {"sd": sd, "se": float(known_J.std()) / parts**0.5}
        answer |= {"low": answer["mean"] - reach, "high": answer["mean"] + reach}
    return answer


def _auc(label_P: Labels, share_PC: Floats) -> float:
    """Return the mean over classes of the area of one against the rest."""
    from sklearn.metrics import roc_auc_score

    present = np.unique(label_P)
    if len(present) < 2:
        return float("nan")
    if share_PC.shape[1] == 2:
        return float(roc_auc_score(label_P, share_PC[:, 1]))
    areas = [roc_auc_score(label_P == c, share_PC[:, c]) for c in present]
    return float(np.mean(areas)) if len(present) == share_PC.shape[1] else float("nan")


def _average_precision(label_P: Labels, share_PC: Floats) -> float:
    """Return the mean over classes of the average precision of one against the rest."""
    from sklearn.metrics import average_precision_score

    present = np.unique(label_P)
    if len(present) < share_PC.shape[1]:
        return float("nan")
    return float(np.mean([average_precision_score(label_P == c, share_PC[:, c]) for c in present]))


def _macro_f1(label_P: Labels, share_PC: Floats) -> float:
    from sklearn.metrics import f1_score

    labels = list(range(share_PC.shape[1]))
    called = share_PC.argmax(axis=1)
    return float(f1_score(label_P, called, labels=labels, average="macro", zero_division=0))


def _balanced_accuracy(label_P: Labels, share_PC: Floats) -> float:
    """Return the mean recall of the classes that are there, as scikit-learn takes it."""
    called_P, classes = share_PC.argmax(axis=1), np.unique(label_P)
    return float(np.mean([(called_P[label_P == c] == c).mean() for c in classes]))


def _accuracy(label_P: Labels, share_PC: Floats) -> float:
    return float((share_PC.argmax(axis=1) == label_P).mean())


def _weighted_kappa(label_P: Labels, share_PC: Floats) -> float:
    from sklearn.metrics import cohen_kappa_score

    called_P = share_PC.argmax(axis=1)
    if len(np.unique(np.concatenate([label_P, called_P]))) < 2:
        return float("nan")
    return float(cohen_kappa_score(label_P, called_P, weights="quadratic"))


CLASS_MEASURES: dict[str, dict[str, TakeMeasure]] = {
    "patho-bench": {
        "macro-ovr-auc": _auc,
        "bacc": _balanced_accuracy,
        "weighted_kappa": _weighted_kappa,
        "macro-f1": _macro_f1,
    },
    "stamp": {
        "roc_auc_score (mean over classes)": _auc,
        "average_precision_score (mean over classes)": _average_precision,
        "f1_score (mean over classes)": _macro_f1,
    },
    "clam": {"test_auc": _auc, "test_acc": _accuracy},
}
"""By protocol the measures of classes, under the tool's names."""

_PARTS = ["repeat", "fold", "seed"]


def protocol_measures(
    protocol: str, task: str, classes: list[str], tested: "pl.DataFrame"
) -> dict[str, dict[str, Any]]:
    """Return the tool's measures of one arm over its test parts, by the tool's names.

    Args:
        protocol: name of the protocol.
        task: task of the run.
        classes: classes of the run.
        tested: test rows of the arm.

    Returns:
        Measure -> `mean_over_parts`; empty for tasks that the tool does not measure so.
    """
    parts = [rows for _, rows in tested.group_by(_PARTS, maintain_order=True)]
    if task == "survival":
        values = [_concordance(rows) for rows in parts]
        return {"cindex": mean_over_parts(np.array(values))}
    if task not in {"binary", "multiclass"}:
        return {}
    arrays = [_arrays(rows, classes) for rows in parts]
    measures: Mapping[str, TakeMeasure] = CLASS_MEASURES[protocol]
    return {
        name: mean_over_parts(np.array([measure(*one) for one in arrays]))
        for name, measure in measures.items()
    }


def _arrays(rows: "pl.DataFrame", classes: list[str]) -> tuple[Labels, Floats]:
    """Return class indices [P] and probabilities [P, C] of one test part."""
    label_P = np.array([classes.index(name) for name in rows["label"]], dtype=np.int64)
    return label_P, np.array(rows["probabilities"].to_list(), dtype=np.float64)


def _concordance(rows: "pl.DataFrame") -> float:
    """Return Harrell's C of one test part; NaN without a comparable pair."""
    from downstream.survival.survival_weighted import concordance

    event = rows["event"].to_numpy()
    one = np.zeros(rows.height, dtype=np.int64)
    weights = np.ones((1, rows.height))
    arrays = (event, rows["time"].to_numpy(), one, event.astype(np.float64))
    return float(concordance(weights, *arrays, rows["risk"].to_numpy())[0])
