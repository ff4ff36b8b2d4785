"""Survival from pooled features: means over tiles and slides, then PCA and a ridge Cox model.

Risks point one way everywhere: HIGHER = WORSE (a shorter survival is expected).

Shape letters: P patients, N tiles, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from downstream.settings import CoxSettings


class SurvivalError(ValueError):
    """Patients that a survival model cannot be fitted on."""


@dataclass(frozen=True, kw_only=True)
class CoxModel:
    """A fitted Cox regression with the scaling and PCA of its training patients.

    Attributes:
        pipeline: scikit-learn pipeline from raw pooled features to the log hazard ratio.
    """

    pipeline: Any

    def risk(self, x_PD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log hazard ratios float64[P] against the mean training patient; HIGHER = WORSE."""
        risk_P: NDArray[np.float64] = self.pipeline.predict(x_PD)
        return risk_P


def pool(slides: Sequence[NDArray[np.float16]]) -> NDArray[np.float64]:
    """One vector per patient: the mean over slides of the mean over tiles.

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
        msg = f"none of a patient's {len(slides)} slides has a tile; take the patient out"
        raise SurvivalError(msg)
    pooled_D: NDArray[np.float64] = np.mean(means, axis=0)
    return pooled_D


def fit_cox(
    x_PD: NDArray[np.float64],
    time_P: NDArray[np.float64],
    event_P: NDArray[np.bool_],
    *,
    settings: CoxSettings,
) -> CoxModel:
    """Fit on one training fold: standardise, PCA, `sksurv.linear_model.CoxPHSurvivalAnalysis`.

    Scaling and PCA see these patients only. The penalty grows with the number of features that
    vary, because standardised features have that total variance: without it a wide teacher would be
    shrunk less than a narrow one.

    Args:
        x_PD: Pooled features of the TRAINING patients.
        time_P: Times to the event or to the end of follow-up.
        event_P: True where the event was seen.
        settings: Components and penalty.

    Raises:
        SurvivalError: No event, or no feature that varies.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    varying = int((np.ptp(x_PD, axis=0) > 0).sum()) if len(x_PD) else 0
    if not event_P.any() or not varying:
        msg = (
            f"{len(x_PD)} training patients have {int(event_P.sum())} events and {varying} "
            "features that vary; a Cox model needs both: use fewer folds or more patients"
        )
        raise SurvivalError(msg)
    components = min(settings.components, len(x_PD) - 1, varying)
    pipeline = make_pipeline(
        StandardScaler(),
        PCA(n_components=components, svd_solver="full"),
        CoxPHSurvivalAnalysis(alpha=settings.alpha * varying),
    )
    pipeline.fit(x_PD, Surv.from_arrays(event_P, time_P))
    return CoxModel(pipeline=pipeline)


def fold_ranks(risk_P: NDArray[np.float64], fold_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """Out-of-fold risks on one scale: the rank within the fold, ties at their mean rank.

    A Cox risk has no zero point, so risks of two folds' models cannot be compared as they are.

    Args:
        risk_P: Risks by each patient's own fold's model; HIGHER = WORSE.
        fold_P: Test fold of each patient.

    Returns:
        float64[P] in (0, 1); HIGHER = WORSE.

    >>> fold_ranks(np.array([3.0, 1.0, 70.0, 90.0]), np.array([0, 0, 1, 1]))
    array([0.75, 0.25, 0.25, 0.75])
    """
    from scipy.stats import rankdata

    ranks_P = np.empty(len(risk_P))
    for fold in np.unique(fold_P):
        here = fold_P == fold
        ranks_P[here] = (rankdata(risk_P[here]) - 0.5) / here.sum()
    return ranks_P


def is_high_risk(
    risk_P: NDArray[np.float64], train_risk_P: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """High risk group: above the median risk of the TRAINING patients; at the median is low."""
    high_P: NDArray[np.bool_] = risk_P > np.median(train_risk_P)
    return high_P
