"""The threshold from which on a patient is predicted positive, chosen on validation patients."""

import numpy as np
from numpy.typing import NDArray


def best_threshold(label_P: NDArray[np.int64], score_P: NDArray[np.float64]) -> float:
    """Return the threshold with the greatest balanced accuracy (Youden's J), between two scores.

    Of equally good thresholds the nearest to 0.5 is returned.

    Args:
        label_P: labels, 0 or 1, of VALIDATION patients.
        score_P: probabilities of class 1.

    Returns:
        The threshold; 0.5 if the patients are of one class only, or if there are none.

    >>> best_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9]))
    0.25
    """
    if len(np.unique(label_P)) < 2:
        return 0.5
    scores = np.unique(score_P)
    cuts = np.concatenate([[scores[0]], (scores[1:] + scores[:-1]) / 2])
    called_TP = score_P >= cuts[:, None]
    youden_T = called_TP[:, label_P == 1].mean(axis=1) - called_TP[:, label_P == 0].mean(axis=1)
    best = cuts[youden_T >= youden_T.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
