"""Selective prediction: how many patients a classifier answers for at a target accuracy.

The confidence from which on it answers is chosen on each cell's validation patients; coverage and
accuracy are those of its test patients.

Shape letters: P patients, C classes.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from downstream.measures.abstention import (
    ClassPredictions,
    choose_threshold,
    is_answered,
    risk_coverage,
)

if TYPE_CHECKING:
    from downstream.run.study import Study
    from downstream.splits.split import Part


def coverage_at(study: "Study", part: pl.DataFrame, *, target: float) -> dict[str, Any] | None:
    """Return an arm's coverage and accuracy, and the area under its risk-coverage curve.

    Args:
        study: a run of classes.
        part: all rows of the arm, validation and test.
        target: accuracy on the answered patients.

    Returns:
        `target`, `coverage` (share answered), `accuracy` on the answered patients (None without
        any), `aurc` and `optimal_aurc`; None without validation patients.
    """
    answered, correct, sure = [], [], []
    for _, cell in part.group_by("repeat", "fold", "seed", maintain_order=True):
        validation = cell.filter(pl.col("part") == "validation")
        if validation.is_empty():
            return None
        tested = _predictions(study, cell.filter(pl.col("part") == "test"), "test")
        threshold = choose_threshold(_predictions(study, validation, "validation"), target=target)
        answered.append(is_answered(tested, threshold))
        correct.append(tested.is_correct)
        sure.append(tested.confidence)
    is_told, is_correct = np.concatenate(answered), np.concatenate(correct)
    curve = risk_coverage(np.concatenate(sure), is_correct)
    return {
        "target": target,
        "coverage": float(is_told.mean()),
        "accuracy": float(is_correct[is_told].mean()) if is_told.any() else None,
        "aurc": curve.aurc,
        "optimal_aurc": curve.optimal_aurc,
    }


def _predictions(study: "Study", rows: pl.DataFrame, part: "Part") -> ClassPredictions:
    """Return the probabilities and labels of the rows of one part of a split."""
    return ClassPredictions(
        patients=tuple(rows["patient_id"]),
        probabilities=np.array(rows["probabilities"].to_list()),
        labels=np.array([study.classes.index(name) for name in rows["label"]], dtype=np.int64),
        part=part,
    )
