"""Classes in an order: one score with thresholds, measures of grades, refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.stats import logistic
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from downstream.cohorts.cohort import Cohort, patient_table
from downstream.cohorts.label_tables import read_labels
from downstream.kept.predict_patients import predict_patients
from downstream.measures.class_measures import class_distance_measure
from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel, make_aggregator
from downstream.mil.objective import LabelObjective
from downstream.mil.ordinal import OrdinalLink
from downstream.mil.padded_bags import MilError
from downstream.mil.predict import predict
from downstream.mil.train import Examples, train_mil
from downstream.probes.ordinal_head import fit_ordinal, fit_proportional_odds
from downstream.run.fit_settings import MilSettings
from downstream.run.label_targets import check_ordered, read_target
from downstream.run.study import Study
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import FeatureOptions, LabelOptions, ModelOptions, StudySpec
from downstream.splits.folds import nested_folds
from featurestore import Lake
from tests.downstream.mil.test_downstream_mil import bag_of
from tests.downstream.test_covariates import finished
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import study
from tests.downstream.test_predict import rows_of_test
from tests.worlds.one_thread import one_thread

__all__ = ["one_thread"]  # the fixture

Floats = NDArray[np.float64]
GRADES = ("low", "middle", "high")
ORDERED = BagTask(kind="multiclass", outputs=4, is_ordered=True)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two slides a patient; tiles are shifted by the patient's grade."""
    features = planted()
    rng = np.random.default_rng(5)
    for name, x in features["good"].items():
        wide = rng.standard_normal(x.shape)
        wide[:, 0] += 3.0 * (int(name[1:3]) % 3)
        features["good"][name] = wide.astype(np.float16)
    return build(tmp_path_factory.mktemp("lake") / "lake", features)


def test_the_link_is_the_difference_of_two_sigmoids() -> None:
    link = OrdinalLink(4).double()
    torch.nn.init.normal_(link.gaps, std=2.0)
    scores = torch.tensor([[-30.0], [-1.0], [0.3], [40.0]], dtype=torch.float64)
    cuts = link.thresholds().detach().numpy()
    assert (np.diff(cuts) > 0).all()
    upto = logistic.cdf(cuts - scores.numpy())
    expected = np.diff(np.pad(upto, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1)
    logs = link(scores)
    np.testing.assert_allclose(logs.exp().detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(torch.softmax(logs, 1).sum(1).detach().numpy(), 1, atol=1e-6)
    assert logs.isfinite().all()
    even = OrdinalLink(5)(torch.zeros(1, 1)).exp()
    torch.testing.assert_close(even, torch.full((1, 5), 0.2))


def test_a_model_has_one_score_and_its_classes_are_in_order() -> None:
    net = MilModel(make_aggregator("abmil", 6, ORDERED, hidden=8), ORDERED)
    assert net.head.out_features == 1
    logits = net(torch.randn(5, 6)).logits
    assert logits.shape == (1, 4)
    loss = net.loss(net(torch.randn(5, 6)), torch.tensor([3]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert net.link.first.grad is not None
    with pytest.raises(MilError, match="4 branches for classes in an order"):
        MilModel(make_aggregator("clam_mb", 6, ORDERED, hidden=8), ORDERED)
    with pytest.raises(MilError, match="an order is of classes"):
        BagTask(kind="regression", is_ordered=True)


def test_grades_are_learnt() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 4
    bags = rng.standard_normal((60, 12, 8))
    bags[:, :, 0] += 2.0 * label[:, None]
    train = Examples(bags=[bag_of(bag) for bag in bags[:40]], target=label[:40].astype(np.float64))
    objective = LabelObjective.fit(ORDERED, train.target, weighted=True)
    settings = MilSettings(hidden=16, epochs=25, learning_rate=2e-3, dropout=0.0)
    model = train_mil("mean", train, None, objective, settings, widths=(8,), seed=0).model
    outcome = objective.outcome(predict(model, [bag_of(bag) for bag in bags[40:]])[0])
    np.testing.assert_allclose(outcome.sum(axis=1), 1)
    assert cohen_kappa_score(label[40:], outcome.argmax(axis=1), weights="quadratic") > 0.9


def test_two_classes_are_scikit_learns_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((80, 5))
    label = (z[:, 0] + rng.standard_normal(80) > 0.7).astype(int)
    head = fit_proportional_odds(z, label, 2, 0.1)
    model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10).fit(z, label)
    np.testing.assert_allclose(head.weight, model.coef_[0], atol=1e-4)
    np.testing.assert_allclose(head.outputs(z), model.predict_proba(z), atol=1e-4)


def test_three_classes_are_at_the_least_of_the_penalised_likelihood() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((90, 3))
    label = np.digitize(z @ [1.5, -1.0, 0.0] + rng.logistic(size=90), [-1.0, 1.5])
    head = fit_proportional_odds(z, label, 3, 2.0)
    weight = len(label) / (3 * np.bincount(label)[label])

    def loss(point: Floats) -> float:
        cuts = np.concatenate([[-np.inf], point[3:], [np.inf]])
        upto = logistic.cdf(cuts[None] - (z @ point[:3])[:, None])
        likely = np.diff(upto, axis=1)[np.arange(90), label]
        return float(-(weight * np.log(likely)).sum() + (point[:3] ** 2).sum() / 4)

    slope = approx_fprime(np.append(head.weight, head.thresholds), loss, 1e-6)
    assert np.abs(slope).max() < 5e-3
    assert head.weight[0] > 0 > head.weight[1]


def test_the_penalty_is_chosen_on_validation_rows() -> None:
    rng = np.random.default_rng(2)
    z = rng.standard_normal((120, 4))
    label = np.digitize(z[:, 0] + rng.logistic(size=120) / 3, [-0.5, 0.5])
    head, penalty = fit_ordinal(z[:80], label[:80], z[80:], label[80:], 3, 0)
    assert penalty > 1e-2
    weak = fit_ordinal(z[:80], label[:80], z[:0], label[:0], 3, 0)
    assert weak[1] == 1e-2
    assert cohen_kappa_score(label[80:], head.outputs(z[80:]).argmax(1), weights="quadratic") > 0.6


def test_steps_between_classes_are_scikit_learns_absolute_error() -> None:
    rng = np.random.default_rng(0)
    label, probability = rng.integers(0, 4, 50), rng.random((50, 4))
    measure = class_distance_measure()
    expected = mean_absolute_error(label, probability.argmax(axis=1))
    assert measure.value(label, probability) == pytest.approx(expected)
    twice = rng.integers(0, 3, (3, 50)).astype(float)
    assert measure.resampled is not None
    many = measure.resampled(twice, label, probability)
    for row, value in zip(twice.astype(int), many, strict=True):
        repeated = np.repeat(np.arange(50), row)
        assert value == pytest.approx(measure.value(label[repeated], probability[repeated]))


def graded(lake: Lake, **changes: Any) -> Study:  # noqa: ANN401
    made = study(lake, features=("good",), models=("abmil", "linear"), reference="good / abmil")
    patients = tuple(replace(one, outcome=(float(at % 3),)) for at, one in enumerate(made.patients))
    ids = [one.patient_id for one in patients]
    splits = tuple(nested_folds(ids, [at % 3 for at in range(PATIENTS)], folds=2, inner=1, seed=0))
    settings = MilSettings(hidden=16, epochs=30, learning_rate=3e-3, dropout=0.0)
    return replace(
        made, task="multiclass", classes=GRADES, patients=patients, splits=splits,
        settings=settings, is_ordered=True, **changes,
    )  # fmt: skip


def test_a_run_of_grades_leads_with_quadratic_kappa(lake: Lake) -> None:
    made = graded(lake)
    result = finished(lake, made)
    assert result["config"]["is_ordered"]
    for arm, metric in result["metrics"].items():
        assert metric["metric"] == "kappa_quadratic"
        rows = rows_of_test(lake, result["run"], arm)
        truth = [GRADES.index(name) for name in rows["label"]]
        said = np.array(rows["probabilities"].to_list()).argmax(axis=1)
        expected = cohen_kappa_score(truth, said, weights="quadratic")
        assert metric["estimate"] == pytest.approx(expected)
        assert metric["low"] <= expected <= metric["high"]
        assert metric["measures"]["class_distance"]["estimate"] == pytest.approx(
            mean_absolute_error(truth, said)
        )
        assert expected > (0.6 if arm.endswith("abmil") else 0.0), arm
        found = predict_patients(lake.uri, result["run"], arm=arm).rows.sort("patient_id")
        again = rows_of_test(lake, result["run"], arm).sort("patient_id")
        assert found.select(f"p_{name}" for name in GRADES).to_numpy() == pytest.approx(
            np.array(again["probabilities"].to_list()), abs=1e-6
        )
    assert "is_ordered" not in study(lake).config


@pytest.fixture
def cohort(lake: Lake, tmp_path: Path) -> Cohort:
    path = tmp_path / "labels.csv"
    rows = [f"p{at:02d},{GRADES[at % 3]},{at % 3 + 8},{at % 2}" for at in range(PATIENTS)]
    path.write_text("\n".join(["patient_id,grade,gleason,dead", *rows]))
    return patient_table(lake.slides(), read_labels(path), ["grade", "gleason", "dead"])


def test_the_order_is_given_or_that_of_numbers(cohort: Cohort) -> None:
    task, classes, outcome = read_target(cohort, ["grade"], "auto", order=GRADES)
    assert (task, classes) == ("multiclass", list(GRADES))
    assert outcome[:4, 0].tolist() == [0, 1, 2, 0]
    task, classes, outcome = read_target(cohort, ["gleason"], "ordinal")
    assert classes == ["8", "9", "10"]
    assert outcome[:4, 0].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("columns", "task", "order", "message"),
    [
        (["grade"], "ordinal", (), "the order of texts is not known; give it from the lowest"),
        (["grade"], "auto", ("low", "high"), "name each once, from the lowest to the highest"),
        (["grade"], "auto", ("low", "low", "high"), "name each once"),
        (["grade"], "regression", GRADES, "its task is ordinal"),
        (["grade", "dead"], "ordinal", (), "it is for one column"),
        (["dead"], "ordinal", (), "two classes; their task is binary"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(
    cohort: Cohort, columns: list[str], task: str, order: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        read_target(cohort, columns, task, order=order)


def test_models_without_a_place_for_an_order_are_refused() -> None:
    labels = LabelOptions(table="t", target=("grade",), order=GRADES)
    features = FeatureOptions(names=("good",))
    check_ordered(StudySpec(labels=labels, features=features))
    branched = ModelOptions(names=("clam_mb",))
    with pytest.raises(StudyError, match="'clam_mb', with a branch for each class"):
        check_ordered(StudySpec(labels=labels, features=features, models=branched))
    with pytest.raises(StudyError, match="experts and classes in an order"):
        check_ordered(StudySpec(labels=labels, features=features, fit=MilSettings(experts=True)))
