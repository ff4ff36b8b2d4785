"""Survival: pooled features, ranks that make folds comparable, and risk groups.

Risks point one way everywhere: HIGHER = WORSE (a shorter survival is expected).

Shape letters: P patients, N tiles, D feature width.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster import counted


class SurvivalError(ValueError):
    """An error for patients on whom a survival model cannot be fitted.

    Examples:
        >>> issubclass(sl.SurvivalError, ValueError)  # ask for fewer folds, or add events
        True
    """


def pool(slides: Sequence[NDArray[np.float16]]) -> NDArray[np.float64]:
    """Return one vector per patient: the mean over slides of the mean over tiles.

    Slides weigh the same whatever their size, so that a large resection does not drown a biopsy.

    Args:
        slides: float16[N, D] of each slide; slides without tiles are left out.

    Returns:
        float64[D].

    Raises:
        SurvivalError: No slide has a tile.
    """
    means = [x_ND.mean(axis=0, dtype=np.float64) for x_ND in slides if len(x_ND)]
    if not means:
        msg = (
            f"none of a patient's {counted(len(slides), 'slide')} has a tile; take the patient out"
        )
        raise SurvivalError(msg)
    pooled_D: NDArray[np.float64] = np.mean(means, axis=0)
    return pooled_D


def fold_ranks(risk_P: NDArray[np.float64], fold_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return out-of-fold risks on one scale: the rank within the fold, ties at their mean rank.

    A Cox risk has no zero point, so risks of two folds' models cannot be compared as they are.

    Args:
        risk_P: risk of each patient by the model of the patient's test fold; HIGHER = WORSE.
        fold_P: test fold of each patient.

    Returns:
        float64[P] in (0, 1); HIGHER = WORSE.

    >>> fold_ranks(np.array([3.0, 1.0, 70.0, 90.0]), np.array([0, 0, 1, 1]))
    array([0.75, 0.25, 0.25, 0.75])
    """
    from scipy.stats import rankdata

    ranks_P = np.empty(len(risk_P))
    for fold in np.unique(fold_P):
        in_fold_P = fold_P == fold
        ranks_P[in_fold_P] = (rankdata(risk_P[in_fold_P]) - 0.5) / in_fold_P.sum()
    return ranks_P


def is_high_risk(
    risk_P: NDArray[np.float64], train_risk_P: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return whether each risk is above the median risk of the TRAINING patients; equal is low."""
    high_P: NDArray[np.bool_] = risk_P > np.median(train_risk_P)
    return high_P
