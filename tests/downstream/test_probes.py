"""Probes against scikit-learn's pipelines by hand, and what a fit may see."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from downstream.cohorts.outcomes import TaskKind
from downstream.probes.fit import Probe, fit_probe
from downstream.probes.heads import INVERSE, NEIGHBOURS, STRENGTHS
from downstream.probes.probe_spec import ProbeError
from downstream.run.model_tables import PROBES

Floats = NDArray[np.float64]
Part = tuple[Floats, NDArray[Any]]
ROOT = Path(__file__).resolve().parents[2]


def classes_of(rows: int, classes: int, seed: int, share: list[float] | None = None) -> Part:
    """Rows whose classes differ a little, on an offset and on channels of unlike scale."""
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, rows, p=share)
    centre = np.random.default_rng(99).standard_normal((classes, 12))
    x = centre[y] + 1.5 * rng.standard_normal((rows, 12))
    return x * np.geomspace(0.01, 100, 12) + 7, y


def numbers_of(rows: int, seed: int) -> Part:
    x, _ = classes_of(rows, 2, seed)
    noise = np.random.default_rng(seed + 100).standard_normal(rows)
    return x, 3 + (x[:, 0] - 7) * 50 - (x[:, 5] - 7) + noise


def balanced(y: NDArray[np.int64]) -> Floats:
    weights: Floats = 1 / np.bincount(y)[y]
    return weights


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_scikit_learns_pipeline(classes: int) -> None:
    share = [0.7, 0.3] if classes == 2 else [0.6, 0.3, 0.1]
    (x, y), (xv, yv), (xt, _) = (
        classes_of(n, classes, s, share) for s, n in enumerate((90, 60, 40))
    )
    losses, outputs = [], []
    for inverse in INVERSE:
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=inverse, max_iter=1000, class_weight="balanced")
        ).fit(x, y)
        losses.append(log_loss(yv, model.predict_proba(xv), sample_weight=balanced(yv)))
        outputs.append(model.predict_proba(xt))
    best = int(np.argmin(losses))
    probe = fit_probe(
        "linear", x, y, validation=(xv, yv), task="binary" if classes == 2 else "multiclass",
        classes=classes, seed=0,
    )  # fmt: skip
    assert probe.chosen == (INVERSE[best],)
    best_output = outputs[best][:, 1] if classes == 2 else outputs[best]
    np.testing.assert_allclose(probe.scores(xt), best_output, atol=1e-9)
    assert 0 < best < len(INVERSE) - 1  # both ends of the grid are worse


def test_neighbours_are_scikit_learns_on_classes_of_one_size() -> None:
    (x, y), (xv, yv), (xt, _) = (classes_of(n, 3, s) for s, n in enumerate((400, 60, 40)))
    keep = np.concatenate([np.flatnonzero(y == c)[:100] for c in range(3)])
    x, y = x[keep], y[keep]
    scaler = StandardScaler().fit(x)
    losses, outputs = [], []
    for k in NEIGHBOURS:
        model = KNeighborsClassifier(k, metric="cosine").fit(scaler.transform(x), y)
        at = [(model.predict_proba(scaler.transform(q)) * k + 1 / 3) / (k + 1) for q in (xv, xt)]
        losses.append(log_loss(yv, at[0], sample_weight=balanced(yv)))
        outputs.append(at[1])
    probe = fit_probe("knn", x, y, validation=(xv, yv), task="multiclass", classes=3, seed=0)
    best = int(np.argmin(losses))
    assert probe.chosen[0] == NEIGHBOURS[best]
    np.testing.assert_allclose(probe.scores(xt), outputs[best], atol=1e-12)


def test_a_rare_class_votes_as_much_as_a_common_one() -> None:
    (x, y), (xt, _) = classes_of(200, 2, 0, [0.9, 0.1]), classes_of(30, 2, 1)
    probe = fit_probe("knn", x, y, validation=None, task="binary", classes=2, seed=0)
    scaler = StandardScaler().fit(x)
    model = KNeighborsClassifier(5, metric="cosine").fit(scaler.transform(x), y)
    votes = model.predict_proba(scaler.transform(xt)) * 5
    weighted = votes * (200 / (2 * np.bincount(y))) + 0.5
    np.testing.assert_allclose(probe.scores(xt), weighted[:, 1] / weighted.sum(axis=1), atol=1e-12)
    # features that say nothing: the share of the classes says nothing either
    rng = np.random.default_rng(0)
    noise = fit_probe(
        "knn", rng.standard_normal((4000, 3)), rng.random(4000) < 0.1, task="binary", classes=2,
        validation=(rng.standard_normal((2000, 3)), rng.random(2000) < 0.1),
    )  # fmt: skip
    assert abs(noise.scores(rng.standard_normal((2000, 3))).mean() - 0.5) < 0.05


def test_ridge_and_neighbours_of_numbers_are_scikit_learns() -> None:
    (x, y), (xv, yv), (xt, _) = (numbers_of(n, s) for s, n in enumerate((90, 60, 40)))
    scaler = StandardScaler().fit(x)
    z, zv, zt = (scaler.transform(part) for part in (x, xv, xt))
    models = {
        "linear": [Ridge(alpha=strength * 90).fit(z, y) for strength in STRENGTHS],
        "knn": [KNeighborsRegressor(k, metric="cosine").fit(z, y) for k in NEIGHBOURS if k <= 90],
    }
    options = {"linear": STRENGTHS, "knn": tuple(k for k in NEIGHBOURS if k <= 90)}
    for name, fitted in models.items():
        best = int(np.argmin([mean_squared_error(yv, model.predict(zv)) for model in fitted]))
        probe = fit_probe(name, x, y, validation=(xv, yv), task="regression", classes=1, seed=0)
        assert probe.chosen == (options[name][best],)
        np.testing.assert_allclose(probe.scores(xt), fitted[best].predict(zt), atol=1e-9)
        two = fit_probe(
            name, x, np.stack([y, -2 * y], axis=1), task="regression", classes=2, seed=0,
            validation=(xv, np.stack([yv, -2 * yv], axis=1)),
        )  # fmt: skip
        both = np.stack([fitted[best].predict(zt), -2 * fitted[best].predict(zt)], axis=1)
        np.testing.assert_allclose(two.scores(xt), both, atol=1e-8)


#: `logistic` is fitted on features as they are, with a fixed penalty, and of classes alone.
CHOOSING = [name for name, entry in PROBES.items() if not entry.is_raw]


def test_a_plain_regression_is_scikit_learns_and_predicts_no_number() -> None:
    (x, y), (xt, _) = classes_of(90, 3, 0), classes_of(40, 3, 1)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    x, xt = (x - mean) / spread, (xt - mean) / spread
    theirs = LogisticRegression(C=4.0, class_weight="balanced", max_iter=10_000).fit(x, y)
    ours = fit_probe(
        "logistic", x, y, validation=None, task="multiclass", classes=3, inverse_penalty=4.0
    )
    np.testing.assert_allclose(ours.scores(xt), theirs.predict_proba(xt), atol=1e-6)
    with pytest.raises(ProbeError, match="logistic predicts classes or labels, not numbers"):
        fit_probe("logistic", x, x[:, 0], validation=None, task="regression", classes=2)


@pytest.mark.parametrize("name", PROBES)
def test_several_labels_are_as_many_probes(name: str) -> None:
    (x, a), (xv, av), (xt, _) = (classes_of(n, 2, s) for s, n in enumerate((90, 60, 40)))
    b, bv = (x[:, 3] > 7).astype(int), (xv[:, 3] > 7).astype(int)
    none = np.zeros_like(a)
    labels, others = np.stack([a, b, none], axis=1), np.stack([av, bv, np.ones_like(av)], axis=1)
    probe = fit_probe(name, x, labels, validation=(xv, others), task="multilabel", classes=3)
    for at, (label, other) in enumerate(((a, av), (b, bv))):
        alone = fit_probe(name, x, label, validation=(xv, other), task="binary", classes=2)
        np.testing.assert_array_equal(probe.scores(xt)[:, at], alone.scores(xt))
        assert probe.chosen[at] == alone.chosen[0]
    assert np.ptp(probe.scores(xt)[:, 2]) == 0
    assert probe.scores(xt)[0, 2] < 0.5


# ---------------------------------------------------------------------- what a fit may see


def fitted(name: str, task: TaskKind, **changes: Part) -> tuple[Probe, Floats]:
    make = numbers_of if task == "regression" else lambda n, s: classes_of(n, 2, s)
    parts = {"train": make(80, 0), "validation": make(40, 1), "test": make(30, 2)} | changes
    probe = fit_probe(name, *parts["train"], validation=parts["validation"], task=task, classes=2)
    return probe, parts["test"][0]


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_rows_of_the_test_change_nothing_of_the_fit_nor_of_each_other(
    name: str, task: TaskKind
) -> None:
    probe, test = fitted(name, task)
    whole = probe.scores(test)
    far = test.copy()
    far[1:] = far[1:] * 1e4 - 3
    np.testing.assert_allclose(probe.scores(far)[0], probe.scores(far[:1])[0], rtol=1e-12)
    np.testing.assert_allclose(probe.scores(far)[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(probe.scores(test[::-1])[::-1], whole, rtol=1e-9)


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_validation_rows_choose_and_are_not_fitted_on(name: str, task: TaskKind) -> None:
    probe, test = fitted(name, task)
    x, _ = numbers_of(80, 0) if task == "regression" else classes_of(80, 2, 0)
    np.testing.assert_allclose(probe.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(probe.spread, x.std(axis=0), rtol=1e-12)
    # other validation rows that choose the same give the same probe, bit for bit
    make = numbers_of if task == "regression" else lambda n, s: classes_of(n, 2, s)
    for seed in range(10, 60):
        other, _ = fitted(name, task, validation=make(40, seed))
        if other.chosen == probe.chosen:
            np.testing.assert_array_equal(other.scores(test), probe.scores(test))
            return
    pytest.fail("no other validation chose the same")


@pytest.mark.parametrize("name", PROBES)
def test_classes_that_training_lacks_are_unlikely_and_do_not_fail(name: str) -> None:
    (x, y), (xv, yv), (xt, _) = (classes_of(n, 4, s) for s, n in enumerate((90, 60, 40)))
    for keep in ((0, 2), (0, 1, 3)):
        rows = np.isin(y, keep)
        probe = fit_probe(name, x[rows], y[rows], validation=(xv, yv), task="multiclass", classes=4)
        scores = probe.scores(xt)
        assert scores.shape == (40, 4)
        np.testing.assert_allclose(scores.sum(axis=1), 1)
        for lacking in set(range(4)) - set(keep):
            assert scores[:, lacking].max() < 0.25
        assert set(scores.argmax(axis=1)) == set(keep)


def test_channels_that_do_not_vary_do_no_harm() -> None:
    (x, y), (xt, _) = classes_of(80, 2, 0), classes_of(30, 2, 1)
    wide, other = (np.concatenate([part, np.full((len(part), 3), 5.0)], axis=1) for part in (x, xt))
    for name in CHOOSING:
        plain = fit_probe(name, x, y, validation=None, task="binary", classes=2).scores(xt)
        scores = fit_probe(name, wide, y, validation=None, task="binary", classes=2).scores(other)
        np.testing.assert_allclose(scores, plain, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "svm"}, "no probe 'svm'; there are linear, knn"),
        ({"y": np.zeros(6, int)}, r"all training rows \(6\) are of one class"),
        ({"y": np.arange(5)}, r"features \(6, 2\) .* labels \(5,\)"),
        ({"x": np.full((6, 2), np.nan)}, "give finite numbers"),
        ({"x": np.zeros(6)}, r"features of shape \(6,\)"),
        ({"y": np.zeros((6, 2))}, "give a row each"),
        ({"validation": (np.zeros((2, 3)), np.array([0, 1]))}, "give the same widths"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "at least one to fit on"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"name": "linear", "x": np.eye(6)[:, :2], "y": np.arange(6) % 2}
    arguments |= {"validation": None, **changes}
    with pytest.raises(ProbeError, match=message):
        fit_probe(
            arguments["name"],
            arguments["x"],
            arguments["y"],
            validation=arguments["validation"],
            task="binary",
            classes=2,
        )


def test_probes_need_no_torch() -> None:
    code = (
        "import sys, downstream.probes.fit; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
