"""The result of a tile probe: measures with intervals over patients, whose tiles go together.

With few shots a measure is the mean over draws of the labelled tiles, and so is its interval, which
is over patients; the spread of the draws is returned beside it.

Shape letters: N tiles, T draws, C classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.measures.class_measures import Measure, classification_measures
from downstream.measures.intervals import bca_or_percentile, compare, comparison_table, interval

if TYPE_CHECKING:
    from downstream.measures.intervals import Comparison

Floats = NDArray[np.float64]


MEASURES = ("auroc", "balanced_accuracy", "f1")
"""The first is the main one. Classes are predicted at equal weight: binary from 0.5 on."""


def metrics_of(
    label_N: NDArray[np.int64],
    scores_NTC: Floats,
    patients: Sequence[str],
    *,
    seed: int,
    spread: bool,
) -> dict[str, Any]:
    """Return the measures of one arm as JSON.

    Args:
        label_N: class of each tile.
        scores_NTC: probabilities of each tile by draw and class.
        patients: patient of each tile.
        seed: seed of the resamples.
        spread: whether to include the spread of the draws: `sd`, `least` and `most`.

    Returns:
        The estimate and interval of the main measure, and all `measures` by name.
    """
    measure_of, scores = _measures_and_scores(scores_NTC)
    assessed = {
        name: _measure_with_interval(
            measure_of[name], label_N, scores, patients, seed=seed, spread=spread
        )
        for name in MEASURES
    }
    main = assessed[MEASURES[0]]
    keys = ("estimate", "low", "high", "level", "method", "resamples", "redrawn")
    return {"metric": MEASURES[0], **{key: main[key] for key in keys}, "measures": assessed}


def compare_probes(
    label_N: NDArray[np.int64],
    scores: Mapping[str, Floats],
    patients: Sequence[str],
    *,
    reference: str,
    margin: float | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return comparisons of all arms with the reference, on the same tiles and resamples.

    Args:
        label_N: class of each tile.
        scores: arm -> probabilities [N, T, C].
        patients: patient of each tile.
        reference: name of the arm that the others are compared with.
        margin: non-inferiority margin; None for no such test.
        seed: seed of the resamples.
    """
    comparisons = {
        name: _arm_comparison(label_N, one, scores[reference], patients, margin=margin, seed=seed)
        for name, one in scores.items()
        if name != reference
    }
    return comparison_table(comparisons, other=reference, measure=MEASURES[0])


def _arm_comparison(
    label_N: NDArray[np.int64],
    one_NTC: Floats,
    other_NTC: Floats,
    patients: Sequence[str],
    *,
    margin: float | None,
    seed: int,
) -> "Comparison":
    """Return the comparison of two arms on the main measure, over the draws' mean."""
    measure_of, one = _measures_and_scores(one_NTC)
    measure, other = _mean_of_draws(measure_of[MEASURES[0]]), _measures_and_scores(other_NTC)[1]

    comparison = partial(
        compare, measure, (label_N,), one, other, seed=seed, margin=margin, patients=patients
    )
    return bca_or_percentile(comparison)


def _measures_and_scores(scores_NTC: Floats) -> tuple[dict[str, Measure], Floats]:
    """Return the measures by name, and their scores: [N, T] of class 1, or [N, T, C]."""
    binary = scores_NTC.shape[2] == 2
    measure_of = {m.name: m for m in classification_measures("binary" if binary else "multiclass")}
    return measure_of, scores_NTC[:, :, 1] if binary else scores_NTC


def _measure_with_interval(
    measure: Measure,
    label_N: NDArray[np.int64],
    scores: Floats,
    patients: Sequence[str],
    *,
    seed: int,
    spread: bool,
) -> dict[str, Any]:
    """Return a measure's estimate and interval as JSON, with the spread of the draws."""
    estimate = partial(
        interval, _mean_of_draws(measure), (label_N,), scores, seed=seed, patients=patients
    )
    estimated = bca_or_percentile(estimate)
    assessed: dict[str, Any] = {**vars(estimated), "higher_is_better": measure.higher_is_better}
    if spread:
        draws = [measure.value(label_N, scores[:, draw]) for draw in range(scores.shape[1])]
        sd = float(np.std(draws, ddof=1)) if len(draws) > 1 else None
        assessed |= {"draws": len(draws), "sd": sd, "least": min(draws), "most": max(draws)}
    return assessed


def _mean_of_draws(measure: Measure) -> Measure:
    """Return a measure of scores [N, T] or [N, T, C]: the mean of `measure` over draws."""

    def value(label_N: NDArray[np.int64], scores: Floats) -> float:
        return float(
            np.mean([measure.value(label_N, scores[:, t]) for t in range(scores.shape[1])])
        )

    def resampled(w_RN: Floats, label_N: NDArray[np.int64], scores: Floats) -> Floats:
        assert measure.resampled is not None  # all of classification's have it
        each = [measure.resampled(w_RN, label_N, scores[:, t]) for t in range(scores.shape[1])]
        return np.asarray(np.mean(each, axis=0))

    return Measure(
        name=measure.name,
        value=value,
        resampled=resampled,
        higher_is_better=measure.higher_is_better,
    )
