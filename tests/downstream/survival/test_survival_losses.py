"""Survival losses against loops in float64, scikit-survival, and stored numbers of statsmodels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from downstream.survival.risks import SurvivalError
from downstream.survival.survival_losses import (
    Ties,
    TimeBins,
    cox_loss,
    discrete_loss,
    discrete_risk,
    fit_bins,
    survival_curve,
)

Array = NDArray[np.float64]
TIES: tuple[Ties, ...] = ("efron", "breslow")


def cohort(patients: int, *, seed: int, times: int = 6) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Risks, times with many ties, events, of which there is one at least."""
    rng = np.random.default_rng(seed)
    event = rng.random(patients) < 0.6
    event[rng.integers(patients)] = True
    return rng.normal(size=patients) * 2, rng.integers(1, times, patients).astype(float), event


def by_hand(risk: Array, time: Array, event: NDArray[np.bool_], ties: Ties) -> tuple[float, Array]:
    """Loss and gradient by the textbook formulas, event time by event time."""
    loss, gradient = 0.0, np.zeros(len(risk))
    for t in np.unique(time[event]):
        at_risk, tied = time >= t, (time == t) & event
        d = int(tied.sum())
        loss -= risk[tied].sum()
        gradient -= tied
        for number in range(d):
            part = number / d if ties == "efron" else 0.0
            weight = np.exp(risk) * (at_risk - part * tied)
            loss += np.log(weight.sum())
            gradient += weight / weight.sum()
    return loss / event.sum(), gradient / event.sum()


@given(patients=st.integers(1, 40), seed=st.integers(0, 10**6), ties=st.sampled_from(TIES))
@settings(max_examples=150, deadline=None)
def test_cox_loss_and_gradient_by_hand(patients: int, seed: int, ties: Ties) -> None:
    risk, time, event = cohort(patients, seed=seed)
    x = torch.from_numpy(risk).requires_grad_()
    loss = cox_loss(x, torch.from_numpy(time), torch.from_numpy(event), ties=ties)
    loss.backward()  # type: ignore[no-untyped-call]
    expected, gradient = by_hand(risk, time, event, ties)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, gradient, rtol=1e-8, atol=1e-11)


# 12 patients with ties; statsmodels 0.15.0, PHReg(time, x, status, ties).loglike(b) and .score(b)
X = np.array([0.5, -1.2, 0.3, 2.0, 0.0, -0.7, 1.1, 0.4, -0.3, 0.9, -1.5, 0.2])
TIME = np.array([5.0, 3.0, 5.0, 1.0, 3.0, 8.0, 1.0, 3.0, 5.0, 2.0, 8.0, 3.0])
EVENT = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1], dtype=bool)
STATSMODELS: dict[Ties, tuple[float, float]] = {
    "efron": (-13.813294223641007, 3.2577597457885275),
    "breslow": (-14.767412579728166, 2.823677778757441),
}
LIFELINES = (1.8223542972665203, -12.158459805557541)  # 0.30.3: the slope and its log-likelihood


@pytest.mark.parametrize("ties", TIES)
def test_cox_loss_is_statsmodels(ties: Ties) -> None:
    slope = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    risk = slope * torch.from_numpy(X)
    loss = cox_loss(risk, torch.from_numpy(TIME), torch.from_numpy(EVENT), ties=ties)
    (-loss * EVENT.sum()).backward()
    likelihood, score = STATSMODELS[ties]
    assert -loss.item() * EVENT.sum() == pytest.approx(likelihood, rel=1e-9)
    assert slope.grad is not None
    assert slope.grad.item() == pytest.approx(score, rel=1e-9)


def test_cox_loss_is_lifelines() -> None:
    slope = torch.tensor(LIFELINES[0], dtype=torch.float64, requires_grad=True)
    loss = cox_loss(slope * torch.from_numpy(X), torch.from_numpy(TIME), torch.from_numpy(EVENT))
    assert -loss.item() * EVENT.sum() == pytest.approx(LIFELINES[1], rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, slope)
    assert abs(gradient.item()) < 1e-6


@pytest.mark.parametrize("ties", TIES)
def test_the_least_cox_loss_is_scikit_survivals_fit(ties: Ties) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    time = np.ceil(rng.exponential(np.exp(-x @ [1.0, -0.5, 0.0])) * 8)
    event = rng.random(120) < 0.7
    fitted = CoxPHSurvivalAnalysis(ties=ties, tol=1e-12).fit(x, Surv.from_arrays(event, time))

    def loss(slope: Array) -> tuple[float, Array]:
        b = torch.from_numpy(slope).requires_grad_()
        risk = torch.from_numpy(x) @ b
        loss = cox_loss(risk, torch.from_numpy(time), torch.from_numpy(event), ties=ties)
        (gradient,) = torch.autograd.grad(loss, b)
        return loss.item(), gradient.numpy()

    optimum = minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(optimum.x, fitted.coef_, atol=1e-6)


@pytest.mark.parametrize("ties", TIES)
def test_cox_loss_stays_finite_and_forgets_a_constant(ties: Ties) -> None:
    risk, time, event = cohort(50, seed=3)
    t, e = torch.from_numpy(time), torch.from_numpy(event)
    plain = cox_loss(torch.from_numpy(risk), t, e, ties=ties)
    torch.testing.assert_close(cox_loss(torch.from_numpy(risk) + 1e4, t, e, ties=ties), plain)
    for dtype in (torch.float16, torch.float32):
        far = (torch.from_numpy(risk) * 200).to(dtype).requires_grad_()
        loss = cox_loss(far, t, e, ties=ties)
        assert loss.dtype == torch.float32
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert far.grad is not None
        assert far.grad.isfinite().all()


def test_cox_loss_falls_as_the_worse_die_first() -> None:
    time, event = torch.arange(1.0, 6.0), torch.ones(5, dtype=torch.bool)
    assert cox_loss(-time, time, event) < cox_loss(torch.zeros(5), time, event)
    assert cox_loss(time, time, event) > cox_loss(torch.zeros(5), time, event)


def test_efron_and_breslow_differ_with_ties_only() -> None:
    risk, event = torch.randn(6, generator=torch.Generator().manual_seed(0)), torch.ones(6).bool()
    free, tied = torch.arange(6.0), torch.arange(6.0) // 2
    a, b = (cox_loss(risk, free, event, ties=ties) for ties in TIES)
    torch.testing.assert_close(a, b)
    a, b = (cox_loss(risk, tied, event, ties=ties) for ties in TIES)
    assert b - a > 1e-3


@pytest.mark.parametrize("event", [[False, False], []])
def test_cox_loss_needs_events(event: list[bool]) -> None:
    size = len(event)
    with pytest.raises(SurvivalError):
        cox_loss(torch.zeros(size), torch.ones(size), torch.tensor(event, dtype=torch.bool))
    with pytest.raises(SurvivalError, match="3 predictions, 2 times"):
        cox_loss(torch.zeros(3), torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_discrete_loss_by_hand(alpha: float) -> None:
    """The loss of MCAT is (1 - alpha) (censored + uncensored) + alpha uncensored."""
    rng = np.random.default_rng(1)
    logits, y, event = rng.normal(size=(20, 4)) * 2, rng.integers(0, 4, 20), rng.random(20) < 0.5
    loss = discrete_loss(
        torch.from_numpy(logits), torch.from_numpy(y), torch.from_numpy(event), alpha=alpha
    )
    for at in range(20):
        hazard = [1 / (1 + np.exp(-logit)) for logit in logits[at]]
        alive = [1.0, *itertools.accumulate((1 - h for h in hazard), lambda a, b: a * b)]
        uncensored = -np.log(alive[y[at]] * hazard[y[at]]) if event[at] else 0.0
        censored = 0.0 if event[at] else -np.log(alive[y[at] + 1])
        expected = (1 - alpha) * (censored + uncensored) + alpha * uncensored
        assert loss[at].item() == pytest.approx(expected, rel=1e-5)


def test_the_discrete_likelihood_is_a_distribution() -> None:
    """Events in every bin and survival beyond the last one add up to 1."""
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    total = survival_curve(logits)[:, -1]
    for y in range(5):
        bins_of_y = torch.full((7,), y)
        total = (
            total + torch.exp(-discrete_loss(logits, bins_of_y, torch.ones(7), alpha=0)).double()
        )
    torch.testing.assert_close(total, torch.ones(7).double(), rtol=1e-5, atol=1e-5)


def test_a_sure_and_wrong_hazard_still_has_a_gradient() -> None:
    logits = torch.tensor([[-60.0, 0.0]], requires_grad=True)
    loss = discrete_loss(logits, torch.tensor([0]), torch.tensor([True]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(60)
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(-1)


def test_risk_higher_is_worse() -> None:
    """Patients who die in an earlier bin are given a higher risk once the loss is least."""
    y = torch.arange(4).repeat(5)
    logits = torch.where(torch.arange(4) == y[:, None], 4.0, -4.0)
    risk = discrete_risk(logits).numpy()
    event = np.ones(20, dtype=bool)
    assert concordance_index_censored(event, y.numpy().astype(float), risk)[0] == 1.0
    assert ((risk >= -4) & (risk <= 0)).all()
    curve = survival_curve(logits)
    assert (curve.diff(dim=1) <= 0).all()


def test_discrete_loss_refuses_bins_out_of_range() -> None:
    with pytest.raises(SurvivalError, match="bins 4 to 4 of 4"):
        discrete_loss(torch.zeros(1, 4), torch.tensor([4]), torch.tensor([True]))
    with pytest.raises(SurvivalError, match=r"alpha=1\.5"):
        discrete_loss(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([True]), alpha=1.5)


def test_bins_hold_equally_many_events_and_any_time() -> None:
    rng = np.random.default_rng(2)
    time, event = rng.exponential(10, 400), rng.random(400) < 0.6
    bins = fit_bins(time, event, patients=[f"p{i}" for i in range(400)])
    per_bin = np.bincount(bins.index(time[event]))
    assert np.ptp(per_bin) <= 1
    assert bins.index(np.array([0.0, 1e9, *bins.edges])).tolist() == [0, 3, 1, 2, 3]
    assert bins.bins == 4
    assert "p17" in bins.patients


def test_censored_times_do_not_move_the_bins() -> None:
    time, event = np.arange(1.0, 41.0), np.arange(40) % 2 == 0
    patients = [str(i) for i in range(40)]
    moved = np.where(event, time, 1000.0)
    assert fit_bins(time, event, patients=patients) == fit_bins(moved, event, patients=patients)


@pytest.mark.parametrize(
    ("time", "event"),
    [
        ([1, 1, 1, 2], [1, 1, 1, 1]),
        ([1, 2, 3, 4], [0, 0, 0, 0]),
        ([1, 1, 9, 9], [1, 1, 1, 1]),  # edges differ (1, 5, 9), two bins have nobody
    ],
)
def test_bins_that_would_be_empty_are_refused(time: list[float], event: list[int]) -> None:
    with pytest.raises(SurvivalError, match="ask for fewer bins"):
        fit_bins(np.array(time, float), np.array(event, bool), patients=list("abcd"))


def test_times_on_an_edge_are_in_the_later_bin() -> None:
    bins = TimeBins(edges=(2.0, 4.0), patients=frozenset())
    assert bins.index(np.array([1.9, 2.0, 3.9, 4.0])).tolist() == [0, 1, 1, 2]
