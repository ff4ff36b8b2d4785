"""Clinical covariates: encoded by training patients alone, seen by every model, kept with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from downstream.cohorts.cohort import patient_table
from downstream.cohorts.cohort_errors import CohortError
from downstream.cohorts.covariates import CovariateEncoder, covariate_notes, covariate_rows
from downstream.cohorts.label_tables import read_labels
from downstream.kept.cox_models import kept_cox
from downstream.kept.kept_model import KeptModelError
from downstream.kept.predict_patients import predict_patients
from downstream.mil.aggregators.pooling import MeanPool
from downstream.mil.covariate_fusion import GatedFusion, LateFusion
from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel
from downstream.mil.padded_bags import MilError
from downstream.probes.fit import fit_probe
from downstream.run.cells import fit_and_store
from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.label_targets import check_covariates
from downstream.run.run_result import collect
from downstream.run.study import Study
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import FeatureOptions, LabelOptions, ModelOptions, StudySpec
from downstream.survival.pooled_models import fit_pooled
from featurestore import Lake
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import COHORT, study
from tests.downstream.test_predict import rows_of_test
from tests.worlds.one_thread import one_thread

__all__ = ["one_thread"]  # the fixture

Floats = NDArray[np.float64]
NAMES = ("age", "smoker")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


def row_of(patient: int) -> tuple[float | str | None, ...]:
    """Odd patients, who are positive and die early, are old; nobody knows of one patient."""
    age = None if patient == 4 else 40.0 + 30 * (patient % 2) + patient / 10
    return age, ("yes", "no", None)[patient % 3]


def told(lake: Lake, kind: Any = "mil", **changes: Any) -> Study:  # noqa: ANN401
    """A study whose features say nothing and whose covariates do."""
    made = study(lake, kind, features=("noise",), covariates=NAMES)
    patients = tuple(replace(one, covariates=row_of(at)) for at, one in enumerate(made.patients))
    settings = MilSettings(hidden=16, epochs=40, learning_rate=1e-3, dropout=0.0, bins=2)
    return replace(
        made, **{"patients": patients, "settings": settings, "reference": "covariates", **changes}
    )


def finished(lake: Lake, made: Study) -> dict[str, Any]:
    """Return the result of a run, without its page."""
    for cell in made.cells():
        fit_and_store(lake, cell)
    return collect(lake, made, COHORT)


def test_encoding_is_scikit_learns() -> None:
    rows = [row_of(at) for at in range(9)]
    encoder = CovariateEncoder.fit(NAMES, rows, patients="abcdefghi", categories=("smoker",))
    age = np.array([[np.nan if one is None else one] for one, _ in rows], dtype=np.float64)
    filler, scaler = SimpleImputer(strategy="median"), StandardScaler()
    expected_age = scaler.fit_transform(filler.fit_transform(age))
    texts = np.array([["?" if text is None else text] for _, text in rows], dtype=object)
    levels = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(texts)
    order = [list(levels.categories_[0]).index(level) for level in ("no", "yes", "?")]
    expected = np.hstack([expected_age, levels.transform(texts)[:, order]])
    np.testing.assert_allclose(encoder.encode(rows), expected)
    new = encoder.encode([(None, "now and then"), (100.0, None)])
    at_median = scaler.transform(filler.transform([[np.nan]]))[0, 0]
    assert new[0].tolist() == pytest.approx([at_median, 0, 0, 0])
    assert new[1, 1:].tolist() == [0, 0, 1]
    again = CovariateEncoder.from_json(encoder.to_json())
    np.testing.assert_array_equal(again.encode(rows), encoder.encode(rows))
    with pytest.raises(CohortError, match=r"'age' is '>90'; in training it was a number"):
        encoder.encode([(">90", "no")])


def test_a_column_that_training_patients_lack_is_no_error() -> None:
    rows: list[tuple[float | str | None, ...]] = [(None, None), (None, None)]
    encoder = CovariateEncoder.fit(NAMES, rows, patients="ab", categories=("smoker",))
    assert encoder.encode([(50.0, "yes")]).tolist() == [[50.0, 0.0]]
    assert encoder.encode([]).shape == (0, encoder.width) == (0, 2)


def rows_of_table(
    lake: Lake, path: Path, names: Sequence[str]
) -> list[tuple[float | str | None, ...]]:
    cohort = patient_table(lake.slides(), read_labels(path), ["tumour"], covariates=names)
    return covariate_rows(cohort.patients, names)


def test_columns_of_the_table_keep_their_gaps(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lines = ["patient_id,tumour,age,smoker,old"]
    lines += [f"p{at:02d},{at % 2},{'' if at == 4 else 40 + at},{'' if at == 5 else 'yes'},"
              for at in range(PATIENTS)]  # fmt: skip
    path.write_text("\n".join(lines))
    rows = rows_of_table(lake, path, NAMES)
    assert rows[3:6] == [(43.0, "yes"), (None, "yes"), (45.0, None)]
    age, smoker = covariate_notes(NAMES, rows)
    assert age.endswith("of 1 of 12 patients: the median of the training patients stands in")
    assert smoker.endswith("smoker is not known of 1 of 12 patients: a level of its own stands in")
    with pytest.raises(CohortError, match="covariate 'old' is empty for all 12 patients"):
        covariate_rows(
            patient_table(
                lake.slides(), read_labels(path), ["tumour"], covariates=["old"]
            ).patients,
            ["old"],
        )
    path.write_text(path.read_text().replace("p02,0,42", "p02,0,>90"))
    with pytest.raises(CohortError, match="'age' is '>90' for patient p02"):
        rows_of_table(lake, path, NAMES)


@pytest.mark.parametrize("fusion", ["late", "gated"])
def test_models_of_classes_use_them(lake: Lake, fusion: Any) -> None:  # noqa: ANN401
    made = told(
        lake, models=("abmil", "linear", "covariates"), reference="covariates",
        covariate_fusion=fusion,
    )  # fmt: skip
    result = finished(lake, made)
    assert list(result["metrics"]) == ["noise / abmil", "noise / linear", "covariates"]
    for arm, metric in result["metrics"].items():
        assert metric["measures"]["auroc"]["estimate"] > 0.9, arm
    assert result["config"]["covariates"] == list(NAMES)
    assert result["config"]["categories"] == ["smoker"]
    table = lake_table(lake)
    for arm in result["metrics"]:
        found = predict_patients(lake.uri, result["run"], arm=arm, covariates=table)
        said = rows_of_test(lake, result["run"], arm).sort("patient_id")
        assert found.rows.sort("patient_id")["score"].to_numpy() == pytest.approx(
            said["score"].to_numpy(), abs=1e-6
        )
    with pytest.raises(KeptModelError, match=r"takes covariates \(age, smoker\); give a table"):
        predict_patients(lake.uri, result["run"])


def lake_table(lake: Lake, patients: int = PATIENTS) -> Path:
    path = Path(lake.store.path("covariates.csv"))
    rows = [(f"p{at:02d}", *row_of(at)) for at in range(patients)]
    pl.DataFrame(rows, schema=["patient_id", *NAMES], orient="row").write_csv(path)
    return path


def test_models_of_survival_use_them(lake: Lake) -> None:
    models = ("cox", "abmil", "covariates")
    made = told(lake, "survival", models=models, head="cox")
    result = finished(lake, made)
    for arm, metric in result["metrics"].items():
        assert metric["measures"]["harrell_c"]["estimate"] > 0.7, arm
    found = predict_patients(
        lake.uri, result["run"], arm="noise / cox", covariates=lake_table(lake, 10)
    )
    said = rows_of_test(lake, result["run"], "noise / cox").sort("patient_id")
    assert found.rows.sort("patient_id")["score"].to_numpy() == pytest.approx(
        said["risk"].to_numpy()[:10], abs=1e-6
    )
    assert "p11: not in the table of covariates" in found.lost
    plain = study(lake, features=("noise",), models=("linear",), reference="noise")
    run = finished(lake, plain)["run"]
    with pytest.raises(KeptModelError, match="has no covariates; leave out the table"):
        predict_patients(lake.uri, run, covariates=lake_table(lake))


def test_a_test_patients_covariates_change_nobody_else(lake: Lake) -> None:
    made = told(lake, models=("linear",), reference="noise")
    fold = made.splits[0]
    changed = replace(
        made,
        patients=tuple(
            replace(one, covariates=(999.0, "never heard")) if one.patient_id == fold.test[0]
            else one
            for one in made.patients
        ),
    )  # fmt: skip
    one, other = (finished(lake, each) for each in (made, changed))
    assert one["run"] != other["run"]
    rows = [
        rows_of_test(lake, each["run"], "noise").filter(pl.col("fold") == fold.fold)
        for each in (one, other)
    ]
    apart = rows[0].filter(rows[0]["score"] != rows[1]["score"])["patient_id"].to_list()
    assert apart == [fold.test[0]]


def test_a_run_without_covariates_keeps_its_name(lake: Lake) -> None:
    made = study(lake)
    assert "covariates" not in made.config
    assert set(made.patients[0].identity) == {"patient_id", "slide_ids", "outcome"}


def wide(patients: int, features: int, seed: int) -> tuple[Floats, Floats, Floats, Any]:
    """Many features of no use, two covariates, of which one decides."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((patients, features)) * 3
    beside = rng.standard_normal((patients, 2))
    time = rng.exponential(np.exp(-1.5 * beside[:, 0]))
    return np.hstack([x, beside]), beside, time, rng.random(patients) < 0.8


@pytest.mark.parametrize("name", ["cox", "coxnet", "forest", "boosting"])
def test_many_features_do_not_shrink_few_covariates(name: str) -> None:
    x, _, time, event = wide(90, 200, 0)
    test_x, _, test_time, test_event = wide(200, 200, 1)
    model = fit_pooled(
        name, x[:60], time[:60], event[:60], validation=(x[60:], time[60:], event[60:]),
        settings=SurvivalSettings(), seed=0, covariates=2,
    )  # fmt: skip
    risk = model.risk(test_x)
    assert concordance_index_censored(test_event, test_time, risk)[0] > 0.7
    kept = kept_cox(model)
    if kept is not None:
        at_once = test_x @ kept.arrays["weight"] + kept.fields["constant"]
        np.testing.assert_allclose(at_once, risk, atol=1e-9)


def test_covariates_are_linear_terms_of_cox() -> None:
    x, beside, time, event = wide(90, 20, 0)
    settings = SurvivalSettings(components=4, alpha=0.1)
    model = fit_pooled(
        "cox", x, time, event, validation=None, settings=settings, seed=0, covariates=2
    )
    features = x[:, :20]
    variance = features.var(axis=0).sum()
    directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][:4]
    inputs = np.hstack([(features - features.mean(axis=0)) @ directions.T,
                        beside * variance**0.5])  # fmt: skip
    cox = CoxPHSurvivalAnalysis(alpha=0.1 * variance).fit(inputs, Surv.from_arrays(event, time))
    np.testing.assert_allclose(model.risk(x), cox.predict(inputs), atol=1e-8)


def test_covariates_are_terms_of_a_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x, beside = rng.standard_normal((80, 30)), rng.standard_normal((80, 2))
    label = (beside[:, 0] + rng.standard_normal(80) / 2 > 0).astype(int)
    probe = fit_probe(
        "linear", np.hstack([x, beside]), label, validation=None, task="binary", classes=2,
        covariates=2,
    )  # fmt: skip
    z = np.hstack([StandardScaler().fit_transform(x), beside * 30**0.5])
    fitted = LogisticRegression(C=probe.chosen[0], class_weight="balanced", tol=1e-8).fit(z, label)
    expected = fitted.predict_proba(z)[:, 1]
    np.testing.assert_allclose(probe.scores(np.hstack([x, beside])), expected, atol=2e-3)
    assert roc_auc_score(label, expected) > 0.9


def test_fusions_by_hand() -> None:
    torch.manual_seed(0)
    task, x, beside = BagTask(kind="multiclass", outputs=3), torch.randn(4, 5), torch.randn(1, 2)
    late = MilModel(MeanPool(5), task, covariates=LateFusion(2, 3))
    plain = late.head(x.mean(dim=0))
    torch.testing.assert_close(late(x, None, None, beside).logits[0], plain)  # it starts at 0
    assert isinstance(late.covariates, LateFusion)
    torch.nn.init.normal_(late.covariates.linear.weight)
    expected = plain + late.covariates.linear.weight @ beside[0]
    torch.testing.assert_close(late(x, None, None, beside).logits[0], expected)
    gated = MilModel(MeanPool(5), task, covariates=GatedFusion(2, 5, 3))
    part = gated.covariates
    assert isinstance(part, GatedFusion)
    mean, z = x.mean(dim=0), torch.relu(part.embed[0](beside[0]))
    both = torch.cat([mean, z])
    expected = gated.head(part.tile_gate(both).sigmoid() * mean)
    expected = expected + part.linear(part.covariate_gate(both).sigmoid() * z)
    torch.testing.assert_close(gated(x, None, None, beside).logits[0], expected)
    with pytest.raises(MilError, match="no covariates for a model that takes its covariates"):
        late(x)
    with pytest.raises(MilError, match="covariates for a model that takes no covariates"):
        MilModel(MeanPool(5), task)(x, None, None, beside)


def spec(**changes: Any) -> StudySpec:  # noqa: ANN401
    labels = LabelOptions(table="t", target=("grade",), covariates=changes.pop("covariates", ()))
    features = FeatureOptions(names=("good",))
    models = ModelOptions(names=changes.pop("models", ("abmil",)))
    return StudySpec(labels=labels, features=features, models=models, **changes)


def test_what_does_not_fit_is_refused() -> None:
    for wrong in (("grade",), ("age", "age")):
        with pytest.raises(StudyError, match="name each once, and none of the columns that are"):
            spec(covariates=wrong)
    with pytest.raises(StudyError, match="covariate_fusion 'early'; it is late or gated"):
        ModelOptions(covariate_fusion="early")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="model 'covariates' without covariates"):
        check_covariates(spec(models=("covariates",)))
    with pytest.raises(StudyError, match="'knn' takes no covariates"):
        check_covariates(spec(models=("knn",), covariates=("age",)))
    with pytest.raises(StudyError, match="experts take no covariates"):
        check_covariates(spec(covariates=("age",), fit=MilSettings(experts=True)))
