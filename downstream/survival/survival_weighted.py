"""Measures of survival over several folds, for many resamples at once; see `survival_scores`.

Only patients of one group (a fold's test patients, or a whole repetition) are compared with each
other, and their pairs are added over groups: a fold of few events weighs little, and one without a
pair nothing. With one group each measure is scikit-survival's.

Shape letters: R resamples, S rows of predictions, P rows of one group, T times, K event times.
"""

import numpy as np
from numpy.typing import NDArray

from downstream.measures.weighted import divide, groups

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]


_TIED = 1e-8
_BLOCK = 512


def concordance(
    w_RS: Floats, event_S: Flags, time_S: Floats, group_S: Labels, weight_S: Floats, risk_S: Floats
) -> Floats:
    """Return concordances [R] of pairs within groups; NaN where there is no pair.

    Args:
        w_RS: how often each row was drawn.
        event_S: true where the event was seen.
        time_S: times to the event or to the end of follow-up.
        group_S: rows with the same number are compared.
        weight_S: weight of the pairs in which this row's event comes first: 1 for Harrell's C, the
            squared inverse probability of not being censored for Uno's, 0 after its horizon.
        risk_S: risks, HIGHER = WORSE.
    """
    parts = [
        _pairs_in_order(w_RS[:, at], event_S[at], time_S[at], risk_S[at], weight_S[at])
        for at in groups(group_S)
    ]
    return divide(sum(right_R for right_R, _ in parts), sum(pairs_R for _, pairs_R in parts))


def _pairs_in_order(
    w_RP: Floats, event_P: Flags, time_P: Floats, risk_P: Floats, weight_P: Floats
) -> tuple[Floats, Floats]:
    """Return the weights [R] of comparable pairs in the right order, and of all pairs.

    Args:
        w_RP: how often each patient was drawn.
        event_P: true where the event was seen.
        time_P: times to the event or to the end of follow-up.
        risk_P: risks, HIGHER = WORSE.
        weight_P: weight of the pairs in which this patient's event comes first.
    """
    right_R, pairs_R = np.zeros(len(w_RP)), np.zeros(len(w_RP))
    # equality of times is meant: an event comes before one censored at the same time
    for rows in np.split(np.flatnonzero(event_P), range(_BLOCK, int(event_P.sum()), _BLOCK)):
        time_I1, risk_I1 = time_P[rows, None], risk_P[rows, None]
        can_IP = (time_I1 < time_P) | ((time_I1 == time_P) & ~event_P)
        is_tied_IP = np.abs(risk_I1 - risk_P) <= _TIED
        score_IP = np.where(is_tied_IP, 0.5, risk_P < risk_I1) * can_IP
        w_RI = w_RP[:, rows] * weight_P[rows]
        right_R += np.einsum("rp,rp->r", w_RI @ score_IP, w_RP)
        pairs_R += np.einsum("rp,rp->r", w_RI @ can_IP.astype(np.float64), w_RP)
    return right_R, pairs_R


def dynamic_auc(
    w_RS: Floats,
    event_S: Flags,
    time_S: Floats,
    group_S: Labels,
    inverse_S: Floats,
    until_S: Floats,
    risk_S: Floats,
    *,
    times_T: Floats,
) -> Floats:
    """Return the dynamic AUC's mean over time [R], weighted as in scikit-survival.

    AUC(t) is of those with an event until t against those followed beyond t, within groups; its
    mean is weighted by how many die up to each time since the one before (Kaplan-Meier of all
    rows, drawn as often as they were).

    Args:
        w_RS: how often each row was drawn.
        event_S: true where the event was seen.
        time_S: times to the event or to the end of follow-up.
        group_S: rows with the same number are compared.
        inverse_S: inverse probability of not being censored up to the row's time; 0 without event.
        until_S: the group's last time that counts.
        risk_S: risks, HIGHER = WORSE.
        times_T: times of the AUC, ascending.
    """
    right_RT, pairs_RT = auc_parts(
        w_RS, event_S, time_S, group_S, inverse_S, until_S, risk_S, times_T=times_T
    )
    curve_RT = kaplan_meier(w_RS, event_S, time_S, times_T)
    lost_RT = -np.diff(curve_RT, axis=1, prepend=1.0)
    # a time at which nobody was lost has no weight, whether it has an AUC or not
    weighted_RT = np.where(lost_RT > 0, divide(right_RT, pairs_RT) * lost_RT, 0.0)
    return divide(weighted_RT.sum(axis=1), lost_RT.sum(axis=1))


def auc_parts(
    w_RS: Floats,
    event_S: Flags,
    time_S: Floats,
    group_S: Labels,
    inverse_S: Floats,
    until_S: Floats,
    risk_S: Floats,
    *,
    times_T: Floats,
) -> tuple[Floats, Floats]:
    """Return the weights [R, T] of pairs in the right order and of all pairs, at each time."""
    right_RT, pairs_RT = (np.zeros((len(w_RS), len(times_T))) for _ in range(2))
    for at in groups(group_S):
        before_end = times_T <= until_S[at].max()
        case_RS = w_RS[:, at] * inverse_S[at] * event_S[at]
        right, pairs = _group_auc(case_RS, w_RS[:, at], time_S[at], risk_S[at], times_T[before_end])
        right_RT[:, before_end] += right
        pairs_RT[:, before_end] += pairs
    return right_RT, pairs_RT


def _group_auc(
    case_RP: Floats, w_RP: Floats, time_P: Floats, risk_P: Floats, times_T: Floats
) -> tuple[Floats, Floats]:
    """Return `auc_parts` of one group: each patient becomes a case once, as early as it can."""
    right_RT, pairs_RT = (np.zeros((len(w_RP), len(times_T))) for _ in range(2))
    gap_PP = risk_P[:, None] - risk_P
    above_PP = np.where(np.abs(gap_PP) <= _TIED, 0.5, gap_PP > 0)
    beaten_RP, cases_R = np.zeros_like(w_RP), np.zeros(len(w_RP))
    before = -np.inf
    for number, t in enumerate(times_T):
        new_P = (time_P > before) & (time_P <= t)
        beaten_RP += case_RP[:, new_P] @ above_PP[new_P]
        cases_R += case_RP[:, new_P].sum(axis=1)
        left_P = time_P > t
        right_RT[:, number] = np.einsum("rp,rp->r", beaten_RP[:, left_P], w_RP[:, left_P])
        pairs_RT[:, number] = cases_R * w_RP[:, left_P].sum(axis=1)
        before = t
    return right_RT, pairs_RT


def kaplan_meier(w_RS: Floats, event_S: Flags, time_S: Floats, times_T: Floats) -> Floats:
    """Return the Kaplan-Meier curves [R, T] of weighted rows."""
    order = np.argsort(time_S, kind="stable")
    w_RS, event_S = w_RS[:, order], event_S[order]
    times_K, starts = np.unique(time_S[order], return_index=True)
    at_risk_RS = w_RS[:, ::-1].cumsum(axis=1)[:, ::-1]
    died_RK = np.add.reduceat(w_RS * event_S, starts, axis=1)
    stay_RK = 1 - np.nan_to_num(divide(died_RK, at_risk_RS[:, starts]))
    curve_RK = np.concatenate([np.ones((len(w_RS), 1)), stay_RK.cumprod(axis=1)], axis=1)
    survival_RT: Floats = curve_RK[:, np.searchsorted(times_K, times_T, side="right")]
    return survival_RT


def observed_expected(
    w_RS: Floats, event_S: Flags, time_S: Floats, survival_S: Floats, *, horizon: float
) -> Floats:
    """Return observed over expected deaths until a time [R]; 1 is right.

    Calibration in the large: it does not see whether the right patients have the low curves.

    Args:
        w_RS: how often each row was drawn.
        event_S: true where the event was seen.
        time_S: times to the event or to the end of follow-up; the observed share is 1 minus their
            Kaplan-Meier curve.
        survival_S: predicted S at the horizon.
        horizon: a time within follow-up.
    """
    died_R = 1 - kaplan_meier(w_RS, event_S, time_S, np.array([horizon]))[:, 0]
    return divide(died_R, mean_loss(w_RS, 1 - survival_S))


def mean_loss(w_RS: Floats, loss_S: Floats) -> Floats:
    """Return the means [R] of a loss that is defined for each row."""
    mean_R: Floats = w_RS @ loss_S / w_RS.sum(axis=1)
    return mean_R


def brier_losses(
    event_P: Flags,
    time_P: Floats,
    inverse_P: Floats,
    curve_PT: Floats,
    *,
    times_T: Floats,
    free_T: Floats,
) -> Floats:
    """Return each patient's contribution to the integrated Brier score, which is their mean.

    The score is a mean over patients of terms with fixed weights, and so is its integral: a
    bootstrap needs no more than the mean of these.

    Args:
        event_P: true where the event was seen.
        time_P: times to the event or to the end of follow-up.
        inverse_P: inverse probability of not being censored up to the own time; 0 without event.
        curve_PT: predicted S(t).
        times_T: at least 2 times, ascending.
        free_T: probability of not being censored up to these times, above 0.
    """
    case_PT = (time_P[:, None] <= times_T) & event_P[:, None]
    left_PT = time_P[:, None] > times_T
    loss_PT = np.where(case_PT, curve_PT**2 * inverse_P[:, None], 0.0)
    loss_PT += left_PT * (1 - curve_PT) ** 2 / free_T
    loss_P: Floats = np.trapezoid(loss_PT, times_T, axis=1) / (times_T[-1] - times_T[0])
    return loss_P
