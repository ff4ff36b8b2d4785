"""Survival: which way risk points, what a fold may see, how folds are pooled."""

from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sksurv.metrics import concordance_index_censored

from downstream import SurvivalError, SurvivalSettings
from downstream.survival.pooled_models import PENALTIES, PooledModel, fit_pooled
from downstream.survival.risks import fold_ranks, is_high_risk, pool

Floats = NDArray[np.float64]


def fit_cox(
    x: Floats,
    time: Floats,
    event: NDArray[np.bool_],
    *,
    settings: SurvivalSettings = SurvivalSettings(),  # noqa: B008 - it is frozen
) -> PooledModel:
    return fit_pooled("cox", x, time, event, validation=None, settings=settings, seed=0)


def cohort(patients: int, *, seed: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Features whose first column is the log hazard; 30 % censored."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((patients, 12))
    x[:, 1:6] += x[:, :1]
    time = rng.exponential(np.exp(-1.5 * x[:, 0]))
    censoring = rng.exponential(3.0, size=patients)
    return x, np.minimum(time, censoring), time <= censoring


def test_higher_is_worse() -> None:
    x, time, event = cohort(120, seed=0)
    model = fit_cox(x, time, event, settings=SurvivalSettings())
    test_x, test_time, test_event = cohort(120, seed=1)
    risk = model.risk(test_x)
    assert concordance_index_censored(test_event, test_time, risk)[0] > 0.7
    assert np.corrcoef(risk, test_x[:, 0])[0, 1] > 0.7  # the planted log hazard, same sign
    high = is_high_risk(risk, model.risk(x))
    observed = test_event
    assert np.median(test_time[high & observed]) < np.median(test_time[~high & observed])


def test_scaling_and_pca_are_the_training_patients() -> None:
    x, time, event = cohort(40, seed=2)
    (pca,) = fit_cox(x, time, event, settings=SurvivalSettings(components=4)).pipeline
    assert pca.mean_ == pytest.approx(x.mean(axis=0))
    assert pca.n_samples_ == 40
    assert pca.n_components_ == 4


def test_a_strong_direction_is_not_one_of_many_alike() -> None:
    """Standardised first, its hazard was found with a C of 0.59, where the truth has 0.73."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 64))
    x[:, 0] *= 5
    time = rng.exponential(np.exp(-x[:, 0] / 5))
    event, train, test = np.ones(400, dtype=bool), slice(0, 54), slice(54, 400)
    model = fit_cox(x[train], time[train], event[train])
    found, truth = (
        concordance_index_censored(event[test], time[test], risk)[0]
        for risk in (model.risk(x[test]), x[test, 0])
    )
    assert found > truth - 0.03 > 0.65


def test_the_penalty_is_chosen_where_there_is_somebody_to_choose_on() -> None:
    x, time, event = cohort(60, seed=6)
    held = (x[40:], time[40:], event[40:])
    fit = partial(fit_pooled, "cox", x[:40], time[:40], event[:40], seed=0)
    unchosen = fit(validation=None, settings=SurvivalSettings())
    at_a_tenth = fit(validation=held, settings=SurvivalSettings(alpha=0.1))
    assert unchosen.risk(x).tolist() == at_a_tenth.risk(x).tolist()
    censored = (x[40:], time[40:], event[40:] & False)
    assert fit(validation=censored, settings=SurvivalSettings()).risk(x).tolist() == (
        unchosen.risk(x).tolist()
    )
    chosen = fit(validation=held, settings=SurvivalSettings())
    fits = {a: fit(validation=held, settings=SurvivalSettings(alpha=a)) for a in PENALTIES}
    losses = {a: partial_likelihood_loss(one.risk(held[0]), *held[1:]) for a, one in fits.items()}
    best = fits[min(losses, key=losses.__getitem__)]
    assert chosen.risk(x).tolist() == best.risk(x).tolist()


def partial_likelihood_loss(risk: Floats, time: Floats, event: NDArray[np.bool_]) -> float:
    """Return minus the log partial likelihood, written out patient by patient."""
    parts = [
        risk[at] - np.log(np.exp(risk[time >= time[at]]).sum()) for at in np.flatnonzero(event)
    ]
    return -float(np.sum(parts))


def test_components_never_exceed_the_patients() -> None:
    x, time, event = cohort(8, seed=3)
    pipeline = fit_cox(x, time, event, settings=SurvivalSettings(components=16)).pipeline
    assert pipeline[0].n_components_ == 7


def test_the_penalty_treats_wide_and_narrow_features_alike() -> None:
    x, time, event = cohort(60, seed=4)
    wide = np.tile(x, (1, 5))
    risk, wide_risk = (
        fit_cox(part, time, event, settings=SurvivalSettings(components=6)).risk(part)
        for part in (x, wide)
    )
    assert wide_risk == pytest.approx(risk, abs=1e-4)


def test_a_fit_needs_events_and_variation() -> None:
    x, time, event = cohort(10, seed=5)
    with pytest.raises(SurvivalError, match="10 training patients have 0 events"):
        fit_cox(x, time, np.zeros(10, dtype=bool), settings=SurvivalSettings())
    with pytest.raises(SurvivalError, match="0 features that vary"):
        fit_cox(np.ones((10, 3)), time, event | True, settings=SurvivalSettings())


def test_slides_weigh_the_same_whatever_their_size() -> None:
    big = np.full((1000, 2), 1.0, np.float16)
    small = np.full((10, 2), 3.0, np.float16)
    empty = np.empty((0, 2), np.float16)
    assert pool([big, small, empty]).tolist() == [2.0, 2.0]
    with pytest.raises(SurvivalError, match="none of a patient's 1 slide has a tile"):
        pool([empty])


def test_pooling_does_not_overflow_float16() -> None:
    assert pool([np.full((10_000, 1), 60_000, np.float16)]) == pytest.approx([59_968], rel=1e-3)


def test_ranks_make_folds_comparable() -> None:
    risk = np.array([100.0, 101.0, 102.0, -3.0, -2.0, -2.0])
    fold = np.array([0, 0, 0, 1, 1, 1])
    assert fold_ranks(risk, fold) == pytest.approx([1 / 6, 0.5, 5 / 6, 1 / 6, 2 / 3, 2 / 3])


def test_the_cut_is_the_training_median() -> None:
    assert is_high_risk(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 9.0])).tolist() == [
        False,
        False,
        True,
    ]
