"""Survival models: which way risk points, what each may see, curves against scikit-survival."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from downstream.run.fit_settings import SurvivalSettings
from downstream.run.model_tables import POOLED
from downstream.survival.curves import (
    at_times,
    breslow_curve,
    curve_times,
    fit_baseline,
    hazard_curve,
)
from downstream.survival.pooled_models import PooledModel, fit_pooled
from downstream.survival.risks import SurvivalError
from downstream.survival.survival_losses import TimeBins, survival_curve

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Outcome = tuple[Floats, Floats, Flags]

SMALL = SurvivalSettings(components=6, trees=40, most_trees=40, penalties=15, learning_rate=0.1)
SEEDS = st.integers(0, 10**6)
NAMES = sorted(POOLED)


def cohort(patients: int, *, seed: int, width: int = 12) -> Outcome:
    """Features whose first columns follow a planted log hazard, which is the first; censoring."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((patients, width))
    x[:, 1:6] += x[:, :1]
    time = rng.exponential(np.exp(-1.5 * x[:, 0]))
    censoring = rng.exponential(3.0, size=patients)
    return x, np.minimum(time, censoring), time <= censoring


def fitted(
    name: str, *, seed: int = 0, train: int = 10, settings: SurvivalSettings = SMALL
) -> PooledModel:
    return fit_pooled(
        name, *cohort(100, seed=train), validation=cohort(60, seed=11), settings=settings, seed=seed
    )


def tied(seed: int) -> tuple[Floats, Floats, Flags]:
    """Risks, times with ties and events, at least one."""
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(3, 50))
    event = rng.random(patients) < 0.6
    event[0] = True
    return rng.standard_normal(patients), rng.integers(1, 12, patients) / 2, event


@pytest.mark.parametrize("name", NAMES)
def test_higher_is_worse(name: str) -> None:
    x, time, event = cohort(150, seed=12)
    model = fitted(name)
    risk = model.risk(x)
    assert risk.dtype == np.float64
    concordance = concordance_index_censored(event, time, risk)[0]
    assert concordance > 0.7
    assert np.corrcoef(risk, x[:, 0])[0, 1] > 0.6  # the planted log hazard, with its sign
    later = model.survival(x, np.array([float(np.median(time))]))[:, 0]
    assert np.corrcoef(risk, later)[0, 1] < -0.6


@pytest.mark.parametrize("name", NAMES)
def test_curves_never_rise_and_are_the_estimators(name: str) -> None:
    x, time, _ = cohort(40, seed=13)
    model = fitted(name)
    grid = np.concatenate([[0.0], np.sort(time), [time.max() + 100]])
    curves = model.survival(x, grid)
    assert curves.shape == (40, len(grid))
    assert curves[:, 0].tolist() == [1.0] * 40
    assert curves.min() >= 0
    assert curves.max() <= 1
    assert (np.diff(curves, axis=1) <= 0).all()
    steps = model.estimator.predict_survival_function(model.pipeline.transform(x), **model.options)
    inside = grid[(grid >= steps[0].x[0]) & (grid <= steps[0].x[-1])]
    expected = np.stack([step(inside) for step in steps])
    assert model.survival(x, inside) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_model(name: str) -> None:
    x, _, _ = cohort(30, seed=14)
    assert fitted(name).risk(x).tolist() == fitted(name).risk(x).tolist()
    drawn = name in {"forest", "boosting"}
    assert (fitted(name, seed=1).risk(x).tolist() != fitted(name).risk(x).tolist()) == drawn


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fitted_is_the_training_patients(name: str) -> None:
    x, _, _ = cohort(100, seed=10)
    steps = fitted(name).pipeline
    if name == "coxnet_fixed":
        assert steps.transform(x).tolist() == x.tolist()  # features as they are
        return
    assert steps[0].mean_ == pytest.approx(x.mean(axis=0))
    if name == "coxnet":
        assert steps[0].n_samples_seen_ == 100
    else:
        assert steps[0].n_samples_ == 100
        assert steps[0].n_components_ == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_patients_risk_is_that_of_no_other_test_patient(name: str) -> None:
    """Not even where the others are far from all that was trained on."""
    x, time, _ = cohort(20, seed=15)
    strange = x.copy()
    strange[1:] *= 1000
    model, grid = fitted(name), np.sort(time)
    before = model.risk(x)[0], model.survival(x, grid)[0]
    after = model.risk(strange)[0], model.survival(strange, grid)[0]
    assert before[0] == pytest.approx(after[0], abs=1e-12)
    assert before[1] == pytest.approx(after[1], abs=1e-12)
    assert model.risk(x)[0] == before[0]


def test_validation_patients_choose_and_nothing_else() -> None:
    """The path of penalties is the training patients'; others choose another one on it."""
    train = cohort(100, seed=10)
    noise = cohort(60, seed=11)
    noise = (np.random.default_rng(0).permutation(noise[0]), *noise[1:])
    useful, useless = (
        fit_pooled("coxnet", *train, validation=part, settings=SMALL, seed=0)
        for part in (cohort(60, seed=11), noise)
    )
    assert useful.estimator.alphas_.tolist() == useless.estimator.alphas_.tolist()
    assert useful.estimator.coef_.tolist() == useless.estimator.coef_.tolist()
    # where features say nothing, the greatest penalty is the best
    assert useless.options["alpha"] > useful.options["alpha"]
    more, fewer = (
        fit_pooled("boosting", *train, validation=part, settings=SMALL, seed=0)
        for part in (cohort(60, seed=11), noise)
    )
    assert fewer.estimator.n_estimators_ < more.estimator.n_estimators_ <= 40


def test_the_kept_trees_are_the_first_of_all_trees() -> None:
    train, held = cohort(100, seed=10), cohort(60, seed=11)
    model = fit_pooled("boosting", *train, validation=held, settings=SMALL, seed=0)
    kept = model.estimator.n_estimators_
    whole = model.estimator.set_params(n_estimators=SMALL.most_trees)
    risk = model.risk(held[0])
    whole.fit(model.pipeline.transform(train[0]), Surv.from_arrays(train[2], train[1]))
    stages = list(whole.staged_predict(model.pipeline.transform(held[0])))
    assert stages[kept - 1] == pytest.approx(risk, abs=1e-12)


def test_each_setting_changes_its_model() -> None:
    """A setting that nothing reads would leave the risks as they are."""
    changed: dict[str, dict[str, float]] = {
        "cox": {"components": 3, "alpha": 1.0},
        "coxnet": {"l1_ratio": 1.0, "penalties": 5, "least_penalty": 0.3},
        "coxnet_fixed": {"l1_ratio": 1.0, "penalty": 0.3},
        "forest": {"components": 3, "trees": 20, "leaf": 15},
        "boosting": {"most_trees": 3, "depth": 1, "learning_rate": 0.3, "subsample": 0.9}
        | {"leaf": 20},
    }  # fmt: skip
    x, _, _ = cohort(20, seed=16)
    for name, changed_options in changed.items():
        plain = fitted(name).risk(x)
        for setting, option in changed_options.items():
            other_settings = replace(SMALL, **{setting: option})  # type: ignore[arg-type]
            assert fitted(name, settings=other_settings).risk(x).tolist() != plain.tolist(), (
                name,
                setting,
            )


def test_wide_features_of_few_patients() -> None:
    train, held = cohort(40, seed=1, width=300), cohort(20, seed=2, width=300)
    for name in NAMES:
        model = fit_pooled(name, *train, validation=held, settings=SMALL, seed=0)
        assert np.isfinite(model.risk(held[0])).all()


def test_what_nothing_can_be_fitted_on() -> None:
    x, time, event = cohort(10, seed=5)
    held = cohort(10, seed=6)
    with pytest.raises(SurvivalError, match="'lasso'; allowed are boosting, cox, coxnet, "):
        fit_pooled("lasso", x, time, event, validation=held, settings=SMALL, seed=0)
    for name in NAMES:
        with pytest.raises(SurvivalError, match="10 training patients have 0 events"):
            fit_pooled(name, x, time, event & False, validation=held, settings=SMALL, seed=0)
        with pytest.raises(SurvivalError, match="0 features that vary"):
            fit_pooled(
                name, np.ones((10, 3)), time, event | True, validation=held, settings=SMALL, seed=0
            )
    censored = (*held[:2], held[2] & False)
    for name, choice in (("boosting", "number of trees"), ("coxnet", "penalty")):
        with pytest.raises(SurvivalError, match=f"chooses its {choice} .* 0 without an event"):
            fit_pooled(name, x, time, event, validation=None, settings=SMALL, seed=0)
        with pytest.raises(SurvivalError, match="10 without an event were given"):
            fit_pooled(name, x, time, event, validation=censored, settings=SMALL, seed=0)
    for name in ("cox", "forest"):
        assert (
            len(fit_pooled(name, x, time, event, validation=None, settings=SMALL, seed=0).risk(x))
            == 10
        )


@given(seed=SEEDS)
@examples(max_examples=60, deadline=None)
def test_the_baseline_is_scikit_survivals(seed: int) -> None:
    risk, time, event = tied(seed)
    other = np.random.default_rng(seed + 1).standard_normal(7)
    expected = BreslowEstimator().fit(risk, event, time).get_survival_function(other)
    first, last = time.min(), time.max()
    grid = np.concatenate([[first], np.linspace(first, last, 9), [last]])
    curves = breslow_curve(risk, time, event, other, grid)
    assert curves == pytest.approx(np.stack([step(grid) for step in expected]), abs=1e-9)
    # a constant on all risks is no information
    moved = breslow_curve(risk + 5, time, event, other + 5, grid)
    assert moved == pytest.approx(curves, abs=1e-9)


def test_no_drop_before_the_first_event() -> None:
    """There scikit-survival has the drop of the first time already."""
    time, event = np.array([2.0, 3.0]), np.array([True, True])
    curves = breslow_curve(np.zeros(2), time, event, np.zeros(1), np.array([0.0, 1.9, 2.0, 99.0]))
    assert curves[0] == pytest.approx([1, 1, np.exp(-0.5), np.exp(-1.5)])


def test_risks_far_apart_stay_finite() -> None:
    risk, time = np.array([900.0, 0.0, -900.0]), np.array([1.0, 2.0, 3.0])
    curves = breslow_curve(risk, time, time > 0, risk, np.array([0.5, 1.0, 2.0, 3.0]))
    # at 1 the first is alone at risk as far as anyone can tell; at 2 the second; at 3 the third
    e = np.exp(-1)
    expected = [[1, e, 0, 0], [1, 1, e, 0], [1, 1, 1, e]]
    assert curves == pytest.approx(np.array(expected), abs=1e-12)


def test_a_baseline_needs_an_event_and_finite_risks() -> None:
    time, event = np.array([1.0, 2.0]), np.array([True, False])
    with pytest.raises(SurvivalError, match=r"2 risks \(2 of them finite\), 2 times, 0 events"):
        fit_baseline(np.zeros(2), time, event & False)
    with pytest.raises(SurvivalError, match=r"1 of them finite"):
        fit_baseline(np.array([0.0, np.nan]), time, event)
    with pytest.raises(SurvivalError, match="3 risks"):
        fit_baseline(np.zeros(3), time, event)


def test_curves_of_hazards_drop_at_the_edges() -> None:
    bins = TimeBins(edges=(1.0, 2.0, 4.0), patients=frozenset())
    logits = np.random.default_rng(0).standard_normal((5, 4)) * 3
    ends = survival_curve(torch.from_numpy(logits)).numpy()
    times = np.array([0.0, 0.9, 1.0, 1.5, 2.0, 3.9, 4.0, 50.0])
    curves = hazard_curve(logits, bins, times)
    ones = np.ones(5)
    columns = [ones, ones, ends[:, 0], ends[:, 0], ends[:, 1], ends[:, 1], ends[:, 2], ends[:, 2]]
    assert curves == pytest.approx(np.stack(columns, axis=1), abs=1e-12)
    linear = hazard_curve(logits, bins, times, between="linear")
    half = (ends[:, 0] + ends[:, 1]) / 2
    expected = [ones, 1 - 0.9 * (1 - ends[:, 0]), ends[:, 0], half]
    assert linear[:, :4] == pytest.approx(np.stack(expected, axis=1), abs=1e-12)
    assert (linear <= curves + 1e-12).all()
    with pytest.raises(SurvivalError, match=r"\(5, 4\) for 3 bins"):
        hazard_curve(logits, TimeBins(edges=(1.0, 2.0), patients=frozenset()), times)


def test_steps_hold_until_the_next() -> None:
    curves = np.array([[0.8, 0.5], [0.9, 0.1]])
    values_at = at_times(np.array([1.0, 2.0]), curves, np.array([0.0, 1.0, 1.5, 2.0, 9.0]))
    assert values_at.tolist() == [[1, 0.8, 0.8, 0.5, 0.5], [1, 0.9, 0.9, 0.1, 0.1]]


@given(seed=SEEDS, most=st.integers(2, 40))
@examples(max_examples=40, deadline=None)
def test_curve_times_are_event_times(seed: int, most: int) -> None:
    _, time, event = tied(seed)
    times = curve_times(time, event, most=most)
    assert set(times) <= set(time[event])
    assert (np.diff(times) > 0).all()
    assert 1 <= len(times) <= most


def test_curve_times_leave_out_the_ends() -> None:
    time = np.arange(1.0, 1001.0)
    times = curve_times(time, time % 2 == 0)
    assert len(times) == 32
    assert (times[0], times[-1]) == (50, 950)
    with pytest.raises(SurvivalError, match="0 events"):
        curve_times(time, time < 0)
