"""Survival heads' losses: Cox partial likelihood with ties, and discrete-time hazards.

Risks point one way everywhere: HIGHER = WORSE (a shorter survival is expected).

Shape letters: P patients (of a batch), T time bins.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from downstream.survival.risks import SurvivalError

Ties = Literal["efron", "breslow"]


def cox_loss(risk_P: Tensor, time_P: Tensor, event_P: Tensor, *, ties: Ties = "efron") -> Tensor:
    """Return the negative log partial likelihood per event; a scalar, at least float32.

    A patient is at risk at t if the own time is t or later, so that one censored at t is at risk of
    the events at t. The risk sets are those of the patients given: a batch's likelihood is not a
    part of the whole cohort's, so use the largest batch that fits. Adding a constant to all risks
    changes nothing. Time and memory are O(P log P).

    Args:
        risk_P: log hazard ratios; HIGHER = WORSE.
        time_P: times to the event or to the end of follow-up.
        event_P: true where the event was seen.
        ties: `efron` (1977), which assumes an unknown order of tied events, or `breslow` (1974), in
            which all tied patients are at risk for each tied event.

    Raises:
        SurvivalError: No event, or arrays of different lengths.
    """
    _check(risk_P, time_P, event_P)
    event = event_P.bool()
    if not bool(event.any()):
        msg = f"all {len(event)} patients are censored; give batches that hold events"
        raise SurvivalError(msg)
    risk = risk_P.float() if risk_P.dtype in {torch.float16, torch.bfloat16} else risk_P
    # a constant cancels, and without it exp() below stays within range
    risk = risk - risk.detach().max()
    times, at_P = torch.unique(time_P, return_inverse=True)
    groups = len(times)
    at_risk = _log_sum_from(_log_sums(risk, at_P, groups))[at_P[event]]
    if ties == "breslow":
        return (at_risk - risk[event]).mean()
    tied = _log_sums(risk[event], at_P[event], groups)[at_P[event]]
    order, count = _rank_in_group(at_P[event], groups)
    share = order.to(risk.dtype) / count.to(risk.dtype)
    # the events at t are among those at risk, so the share is below 1 and so is what is taken off
    left = at_risk + torch.log1p(-share * torch.exp((tied - at_risk).clamp(max=0)))
    return (left - risk[event]).mean()


def discrete_loss(
    logits_PT: Tensor, bin_P: Tensor, event_P: Tensor, *, alpha: float = 0.4
) -> Tensor:
    """Return the negative log-likelihood of discrete-time hazards of each patient [P], float32.

    With h = sigmoid(logits) and S(t) = prod over s <= t of (1 - h_s): -log(S(y - 1) h(y)) for an
    event in bin y, and -log S(y) for a patient censored in it, times 1 - alpha there: alpha
    reduces the weight of the censored. This is the loss of MCAT and Shazam (0.4 there), but in log
    space where their code cuts S and h off at 1e-7, which stops the gradient of a sure and wrong
    hazard.

    Args:
        logits_PT: logits of the hazards.
        bin_P: bin of each patient's time, from `TimeBins.index`.
        event_P: true where the event was seen.
        alpha: share by which censored patients weigh less, in 0..1; 0 is the plain likelihood.

    Raises:
        SurvivalError: Bins out of range, or alpha.
    """
    _check(logits_PT, bin_P, event_P)
    bins = logits_PT.shape[1]
    if not 0 <= alpha <= 1 or bool(((bin_P < 0) | (bin_P >= bins)).any()):
        msg = (
            f"alpha={alpha}, bins {int(bin_P.min())} to {int(bin_P.max())} of {bins}; alpha is in "
            "0..1 and a bin in 0 to one less than the head's outputs"
        )
        raise SurvivalError(msg)
    logits = logits_PT.float()
    survive_PT = F.logsigmoid(-logits)
    y = bin_P.long()[:, None]
    until_P = survive_PT.cumsum(dim=1).gather(1, y)[:, 0]
    here_P = survive_PT.gather(1, y)[:, 0]
    died_P = F.logsigmoid(logits.gather(1, y)[:, 0])
    event = event_P.bool()
    return torch.where(event, -(until_P - here_P + died_P), -(1 - alpha) * until_P)


def survival_curve(logits_PT: Tensor) -> Tensor:
    """Return S(t) at the end of each bin, float64 [P, T], never rising."""
    return F.logsigmoid(-logits_PT.double()).cumsum(dim=1).exp()


def discrete_risk(logits_PT: Tensor) -> Tensor:
    """Return minus the sum of S(t) over bins, float64 [P], in -T..0; HIGHER = WORSE."""
    return -survival_curve(logits_PT).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class TimeBins:
    """Bins of follow-up time; the first begins at 0 and the last has no end.

    Attributes:
        edges: inner edges, ascending; a time on an edge is in the later bin.
        patients: patients on whom the edges were fitted, for `split.Split.check_fitted_on`.
    """

    edges: tuple[float, ...]
    patients: frozenset[str]

    @property
    def bins(self) -> int:
        """Return the number of bins."""
        return len(self.edges) + 1

    def index(self, time_P: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bin of each time, int64[P] in 0 to bins - 1; any time has one."""
        return np.searchsorted(np.array(self.edges), time_P, side="right").astype(np.int64)


def fit_bins(
    time_P: NDArray[np.float64],
    event_P: NDArray[np.bool_],
    *,
    patients: list[str],
    bins: int = 4,
) -> TimeBins:
    """Return bins that hold equally many events, from quantiles of the uncensored times.

    Args:
        time_P: times of TRAINING patients only: edges that have seen a test patient are a leak.
        event_P: true where the event was seen.
        patients: ids of the patients.
        bins: number of bins, at least 2.

    Raises:
        SurvivalError: There are too few different event times for `bins` bins, or arrays of
            different lengths.
    """
    if not len(time_P) == len(event_P) == len(patients) or bins < 2:
        msg = (
            f"{len(time_P)} times, {len(event_P)} events, {len(patients)} patients, bins={bins}; "
            "give one of each a patient, and at least 2 bins"
        )
        raise SurvivalError(msg)
    event_times = time_P[event_P]
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    edges = np.quantile(event_times, inner) if len(event_times) else np.zeros(bins - 1)
    time_bins = TimeBins(edges=tuple(edges.tolist()), patients=frozenset(patients))
    if np.bincount(time_bins.index(event_times), minlength=bins).min() == 0:
        msg = (
            f"{bins} bins from {len(np.unique(event_times))} different times of "
            f"{len(event_times)} events would leave some empty; ask for fewer bins, or give more "
            "events"
        )
        raise SurvivalError(msg)
    return time_bins


def _check(scores: Tensor, time_P: Tensor, event_P: Tensor) -> None:
    """Raise SurvivalError for arrays of different lengths, or without patients."""
    if not len(scores) == len(time_P) == len(event_P) or not len(scores):
        msg = (
            f"{len(scores)} predictions, {len(time_P)} times, {len(event_P)} events; one a patient"
        )
        raise SurvivalError(msg)


def _log_sums(log_values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the log-sum-exp of each group; minus infinity for an empty group."""
    most = torch.full((groups,), -torch.inf, dtype=log_values.dtype, device=log_values.device)
    most = most.scatter_reduce(0, group, log_values.detach(), "amax")
    base = torch.where(most.isfinite(), most, 0)
    total = torch.zeros_like(base).scatter_add(0, group, torch.exp(log_values - base[group]))
    return base + torch.where(total > 0, total, 1).log() + torch.where(total > 0, 0, -torch.inf)


def _log_sum_from(log_values: Tensor) -> Tensor:
    """Return the log-sum-exp over each element and all after it."""
    return torch.logcumsumexp(log_values.flip(0), dim=0).flip(0)


def _rank_in_group(group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Return the rank of each member within its group, from 0 on, and the group's size."""
    count = torch.bincount(group, minlength=groups)
    order = torch.argsort(group, stable=True)
    start = count.cumsum(0) - count
    place = torch.empty_like(group)
    place[order] = torch.arange(len(group), device=group.device) - start[group[order]]
    return place, count[group]
