"""Metrics against the libraries they stand on, and intervals against what they promise."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sksurv.metrics import concordance_index_censored

from downstream import UndefinedMetricError, auroc, bootstrap, concordance


def test_auroc_equals_scikit_learn_with_ties() -> None:
    label = np.array([0, 0, 1, 1, 0, 1])
    score = np.array([0.1, 0.5, 0.5, 0.9, 0.5, 0.1])
    assert auroc(label, score) == roc_auc_score(label, score)


@pytest.mark.parametrize(
    ("score", "expected"),
    [([0.1, 0.2, 0.3, 0.4], 1.0), ([0.4, 0.3, 0.2, 0.1], 0.0), ([0.5, 0.5, 0.5, 0.5], 0.5)],
)
def test_auroc_by_hand(score: list[float], expected: float) -> None:
    assert auroc(np.array([0, 0, 1, 1]), np.array(score)) == expected


def test_auroc_of_three_classes_is_the_mean_of_one_against_rest() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 10)
    score = rng.dirichlet(np.ones(3), size=30)
    each = [roc_auc_score(label == c, score[:, c]) for c in range(3)]
    assert auroc(label, score) == pytest.approx(np.mean(each))


def test_auroc_needs_every_class() -> None:
    with pytest.raises(UndefinedMetricError, match="all 2 classes; these 3 patients are of 1"):
        auroc(np.array([1, 1, 1]), np.array([0.1, 0.2, 0.3]))
    with pytest.raises(UndefinedMetricError, match="all 3 classes"):
        auroc(np.array([0, 1]), np.full((2, 3), 1 / 3))


def test_concordance_equals_scikit_survival_with_ties_in_time_and_risk() -> None:
    rng = np.random.default_rng(1)
    time = rng.integers(1, 8, size=60).astype(float)
    event = rng.random(60) < 0.6
    risk = rng.integers(0, 5, size=60).astype(float)
    assert concordance(event, time, risk) == concordance_index_censored(event, time, risk)[0]


def test_concordance_higher_risk_is_worse() -> None:
    time = np.array([1.0, 2.0, 3.0, 4.0])
    event = np.ones(4, dtype=bool)
    assert concordance(event, time, -time) == 1.0
    assert concordance(event, time, time) == 0.0


@pytest.mark.parametrize(
    ("event", "message"), [([False, False], "all 2 patients are censored"), ([False, True], "no t")]
)
def test_concordance_without_comparable_pairs(event: list[bool], message: str) -> None:
    with pytest.raises(UndefinedMetricError, match=message):
        concordance(np.array(event), np.array([1.0, 2.0]), np.array([0.1, 0.2]))


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def test_bootstrap_covers_a_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(200):
        found = bootstrap(mean, rng.standard_normal(40), n=200, seed=seed)
        assert found.low <= found.estimate <= found.high
        hits += found.low <= 0 <= found.high
    assert (
        0.88 <= hits / 200 <= 0.99
    )  # 0.95 is promised; a percentile interval of 40 is a bit narrow


def test_bootstrap_is_a_function_of_its_seed() -> None:
    values = np.arange(10.0)
    assert bootstrap(mean, values, seed=3) == bootstrap(mean, values, seed=3)
    assert bootstrap(mean, values, seed=3) != bootstrap(mean, values, seed=4)


def test_bootstrap_draws_the_same_patients_from_every_array() -> None:
    one = np.random.default_rng(4).standard_normal(30)

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.mean() - b.mean())

    found = bootstrap(difference, one, one - 1, n=50, seed=0)
    assert (found.low, found.high) == pytest.approx((1, 1))


def test_bootstrap_redraws_and_counts_degenerate_resamples() -> None:
    label, score = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    found = bootstrap(auroc, label, score, n=100, seed=0)
    # a resample misses the one positive patient with probability 0.75^4 = 0.32
    assert 20 <= found.redrawn <= 90
    assert found.low == found.high == 1.0


def test_bootstrap_gives_up_on_a_metric_that_is_almost_never_defined() -> None:
    def picky(values: np.ndarray) -> float:
        if len(np.unique(values)) < len(values):
            msg = "not all values are there"
            raise UndefinedMetricError(msg)
        return 0.0

    with pytest.raises(UndefinedMetricError, match="30 patients; add patients"):
        bootstrap(picky, np.arange(30.0), n=5, seed=0)
