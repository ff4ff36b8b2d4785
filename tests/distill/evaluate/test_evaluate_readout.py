"""Read-outs and their scores, against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

from distill.errors import DistillError
from distill.evaluate.measures.class_scores import (
    balanced_accuracy,
    class_scores,
    confusion,
    f1_of,
    mean_scores,
)
from distill.evaluate.measures.readout import (
    STRENGTHS,
    chosen_ridges,
    inner_split,
    linear_probe,
    nearest,
    ridge,
)


@pytest.mark.parametrize("shape", [(50, 8), (20, 64)], ids=["channels", "tiles"])
@pytest.mark.parametrize("strength", [1e-6, 0.1, 10.0])
def test_ridge_is_that_of_scikit_learn(shape: tuple[int, int], strength: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, [0.1, 10] * (shape[1] // 2), shape)
    y = rng.normal(-3, 2, (shape[0], 5))
    alpha = strength * np.square(x - x.mean(axis=0)).sum() / shape[1]
    expected = Ridge(alpha=alpha, solver="svd").fit(x, y)
    new = rng.normal(5, 1, (7, shape[1]))
    np.testing.assert_allclose(ridge(x, y, strength)(new), expected.predict(new), rtol=1e-6)


def test_ridge_does_not_depend_on_the_scale_of_the_embedding() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(30, 2))
    large = (1e4 * x).astype(np.float32)
    np.testing.assert_allclose(ridge(x, y, 0.1)(x), ridge(large, y, 0.1)(large), rtol=1e-4)


def test_the_strength_is_chosen_on_patients_left_out_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    patient = np.arange(80) // 10
    x = rng.normal(size=(80, 60))
    targets = {"linear": x[:, :3] * 2, "noise": rng.normal(size=(80, 4))}
    ridges = chosen_ridges(x, targets, patient)
    linear, noise = ridges["linear"], ridges["noise"]
    assert linear.strength < 0.01 < noise.strength
    for name, target in targets.items():
        alone = ridge(x, target, ridges[name].strength)
        np.testing.assert_allclose(ridges[name](x), alone(x), atol=1e-5)
    inner = inner_split(patient)
    errors = [
        np.square(ridge(x[~inner], x[~inner, :3] * 2, s)(x[inner]) - 2 * x[inner, :3]).sum()
        for s in STRENGTHS
    ]
    assert linear.strength == STRENGTHS[int(np.argmin(errors))]
    with pytest.raises(DistillError, match="3 training tiles"):
        chosen_ridges(x[:3], {"t": x[:3]}, patient[:3])


def test_inner_split_takes_whole_patients() -> None:
    patient = np.repeat(np.arange(7), [1, 30, 2, 5, 9, 4, 6])
    inner = inner_split(patient)
    assert len(set(patient[inner])) == 2
    assert not set(patient[inner]) & set(patient[~inner])
    np.testing.assert_array_equal(inner, inner_split(patient))
    assert inner_split(np.zeros(20, int)).sum() == 5


def clouds(tiles: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes, uneven, in 12 channels of very different scales."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, tiles, p=[0.6, 0.3, 0.1])
    middle = np.random.default_rng(9).normal(0, apart, (3, 12))
    return (middle[label] + rng.normal(size=(tiles, 12))) * 10.0 ** (np.arange(12) % 4), label


def test_linear_probe_separates_classes_and_is_at_chance_for_shuffled_labels() -> None:
    x, label = clouds(300, 0, 2.0)
    test, truth = clouds(200, 1, 2.0)
    patient = np.arange(300) // 20
    predicted, _ = linear_probe(x, label, patient, test)
    assert balanced_accuracy(truth, predicted) > 0.95
    shuffled = np.random.default_rng(0).permutation(label)
    nothing, _ = linear_probe(x, shuffled, patient, test)
    assert balanced_accuracy(truth, nothing) < 0.55
    with pytest.raises(DistillError, match="of one class"):
        linear_probe(x, np.zeros(300, int), patient, test)


def test_linear_probe_does_not_depend_on_scale_or_constant_channels() -> None:
    x, label = clouds(120, 0)
    patient = np.arange(120) // 10
    other = np.concatenate([x * 1e3 - 40, np.full((120, 2), 3.0)], axis=1)
    plain, scaled = (linear_probe(some, label, patient, some)[0] for some in (x, other))
    np.testing.assert_array_equal(plain, scaled)


@pytest.mark.parametrize("k", [1, 10])
def test_nearest_is_that_of_scikit_learn(k: int) -> None:
    x, label = clouds(150, 0)
    test, _ = clouds(100, 1)
    expected = KNeighborsClassifier(k, metric="cosine").fit(x, label)
    votes = expected.predict_proba(test)
    clear = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    predicted = nearest(x, label, test, k)
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(predicted[clear], expected.predict(test)[clear])


def test_nearest_gives_a_tie_to_the_more_similar() -> None:
    x = np.array([[1.0, 0.0], [1.0, 0.3], [0.0, 1.0], [0.1, 1.0]])
    label = np.array([5, 5, 2, 2])
    assert nearest(x, label, np.array([[1.0, 0.2]]), 4).tolist() == [5]
    assert nearest(x, label, np.array([[0.2, 1.0]]), 20).tolist() == [2]


def test_scores_are_those_of_scikit_learn() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        truth = rng.choice([1, 4, 6], 30)
        guess = np.where(rng.random(30) < 0.6, truth, rng.choice([1, 4, 6, 9], 30))
        table = confusion(truth, guess, [1, 4, 6, 9])
        expected = f1_score(truth, guess, average="macro")
        assert float(f1_of(table)) == pytest.approx(expected)
        classes = np.unique(truth)
        recalls = [(guess[truth == c] == c).mean() for c in classes]
        assert balanced_accuracy(truth, guess) == pytest.approx(np.mean(recalls))
        if set(guess) <= set(truth):
            sklearn = balanced_accuracy_score(truth, guess)
            assert balanced_accuracy(truth, guess) == pytest.approx(sklearn)


def draws(patients: int, seed: int) -> np.ndarray:
    """Draw the number of times that each patient is in each of 1000 resamples."""
    share = np.full(patients, 1 / patients)
    return np.random.default_rng((seed, patients)).multinomial(patients, share, size=1000)


def test_intervals_draw_whole_patients() -> None:
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    truth = rng.integers(0, 3, len(patient))
    guess = np.where(rng.random(len(patient)) < 0.7, truth, 0)
    scores = class_scores(truth, guess, patient, seed=3)
    drawn = []
    for times in draws(12, 3):
        rows = np.concatenate(
            [np.flatnonzero(patient == p) for p in np.repeat(np.arange(12), times)]
        )
        drawn.append(f1_score(truth[rows], guess[rows], average="macro"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert scores["macro_f1"]["estimate"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert (scores["macro_f1"]["low"], scores["macro_f1"]["high"]) == pytest.approx((low, high))


def test_means_draw_whole_patients_and_leave_out_nan() -> None:
    patient = np.repeat(np.arange(5), 4)
    score = np.arange(20.0)
    score[3] = np.nan
    mean = mean_scores({"v": score}, patient, seed=1)["v"]
    drawn = [np.nanmean(np.repeat(score.reshape(5, 4), t, axis=0)) for t in draws(5, 1)]
    assert mean["estimate"] == pytest.approx(np.nanmean(score))
    assert (mean["low"], mean["high"]) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_one_patient_has_no_interval() -> None:
    patient = np.zeros(8, int)
    means = mean_scores({"v": np.full(8, 0.5)}, patient)["v"]
    scores = class_scores(np.arange(8) % 2, np.zeros(8, int), patient)["balanced_accuracy"]
    for interval in (means, scores):
        assert interval["estimate"] == 0.5
        assert np.isnan([interval["low"], interval["high"]]).all()
