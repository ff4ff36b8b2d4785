"""The result of a tile probe: measures with intervals over patients, whose tiles go together.

With few shots a measure is the mean over draws of the labelled tiles, and so is its interval, which
is over patients; the spread of the draws is returned beside it.

Shape letters: N tiles, T draws, C classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import Measure, classification_measures, measure_of
from downstream.measures.comparisons import ComparedArm, comparison_table
from downstream.measures.fold_test import corrected_test, part_values
from downstream.measures.intervals import bca_or_percentile, compare, interval
from downstream.measures.weighted import auroc_folds

Floats = NDArray[np.float64]


MEASURES = ("auroc_folds", "auroc", "balanced_accuracy", "f1")
"""The first is the main one, of pairs of tiles that one probe scored.

Classes are predicted at equal weight: binary from 0.5 on."""


def metrics_of(
    label_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    scores_NTC: Floats,
    patients: Sequence[str],
    *,
    seed: int,
    spread: bool,
) -> dict[str, Any]:
    """Return the measures of one arm as JSON.

    Args:
        label_N: class of each tile.
        fold_N: fold in which each tile is tested.
        scores_NTC: probabilities of each tile by draw and class.
        patients: patient of each tile.
        seed: seed of the resamples.
        spread: whether to include the spread of the draws: `sd`, `least` and `most`.

    Returns:
        The estimate and interval of the main measure, and all `measures` by name.
    """
    assessed = {
        name: _measure_with_interval(arrays, patients, seed=seed, spread=spread)
        for name, arrays in _questions(label_N, fold_N, scores_NTC).items()
    }
    main = assessed[MEASURES[0]]
    keys = ("estimate", "low", "high", "level", "method", "resamples", "redrawn")
    return {"metric": MEASURES[0], **{key: main[key] for key in keys}, "measures": assessed}


def compare_probes(
    label_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    scores: Mapping[str, Floats],
    patients: Sequence[str],
    *,
    reference: str,
    overlap: float,
    margin: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return comparisons of all arms with the reference, on the same tiles and folds.

    Args:
        label_N: class of each tile.
        fold_N: fold in which each tile is tested.
        scores: arm -> probabilities [N, T, C].
        patients: patient of each tile.
        reference: name of the arm that the others are compared with.
        overlap: see `fold_test.overlap_of`.
        margin: non-inferiority margin; None for no such test.
        seed: seed of the resamples.
    """
    arrays_of = {
        name: _questions(label_N, fold_N, part)[MEASURES[0]] for name, part in scores.items()
    }
    compared = {}
    for name, (measure, truth, one) in arrays_of.items():
        if name == reference:
            continue
        of_draws, other = _mean_of_draws(measure), arrays_of[reference][2]
        values = [part_values(of_draws, truth, part, fold_N) for part in (one, other)]
        fitted = partial(
            compare, of_draws, truth, one, other, seed=seed, margin=margin, patients=patients
        )
        compared[name] = ComparedArm(
            test=corrected_test(*values, overlap=overlap, margin=margin),
            fitted=bca_or_percentile(fitted),
        )
    return comparison_table(compared, other=reference, measure=MEASURES[0], margin=margin)


def _questions(
    label_N: NDArray[np.int64], fold_N: NDArray[np.int64], scores_NTC: Floats
) -> dict[str, tuple[Measure, tuple[NDArray[np.int64], ...], Floats]]:
    """Return the measures by name, with truth and scores: [N, T] of class 1, or [N, T, C]."""
    binary = scores_NTC.shape[2] == 2
    scores = scores_NTC[:, :, 1] if binary else scores_NTC
    measures = classification_measures("binary" if binary else "multiclass")
    within = measure_of("auroc_folds", auroc_folds)
    pooled = {measure.name: (measure, (label_N,), scores) for measure in measures}
    questions = {"auroc_folds": (within, (label_N, fold_N), scores), **pooled}
    return {name: questions[name] for name in MEASURES}


def _measure_with_interval(
    arrays: tuple[Measure, tuple[NDArray[np.int64], ...], Floats],
    patients: Sequence[str],
    *,
    seed: int,
    spread: bool,
) -> dict[str, Any]:
    """Return a measure's estimate and interval as JSON, with the spread of the draws."""
    measure, truth, scores = arrays
    estimate = partial(
        interval, _mean_of_draws(measure), truth, scores, seed=seed, patients=patients
    )
    estimated = bca_or_percentile(estimate)
    assessed: dict[str, Any] = {**vars(estimated), "higher_is_better": measure.higher_is_better}
    if spread:
        draws = [measure.value(*truth, scores[:, draw]) for draw in range(scores.shape[1])]
        sd = float(np.std(draws, ddof=1)) if len(draws) > 1 else None
        assessed |= {"draws": len(draws), "sd": sd, "least": min(draws), "most": max(draws)}
    return assessed


def _mean_of_draws(measure: Measure) -> Measure:
    """Return a measure of scores [N, T] or [N, T, C]: the mean of `measure` over draws."""

    def value(*arrays: NDArray[Any]) -> float:
        *truth, scores = arrays
        return float(np.mean([measure.value(*truth, scores[:, t]) for t in range(scores.shape[1])]))

    def resampled(w_RN: Floats, *arrays: NDArray[Any]) -> Floats:
        assert measure.resampled is not None  # all of classification's have it
        *truth, scores = arrays
        each = [measure.resampled(w_RN, *truth, scores[:, t]) for t in range(scores.shape[1])]
        return np.asarray(np.mean(each, axis=0))

    return Measure(
        name=measure.name,
        value=value,
        resampled=resampled,
        higher_is_better=measure.higher_is_better,
    )
