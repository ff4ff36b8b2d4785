"""Models that a run keeps say of its own patients what the run said, and can be used elsewhere."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from downstream.cohorts.covariates import CovariateRow
from downstream.kept.cox_models import kept_cox
from downstream.kept.kept_model import KeptModel, KeptModelError, restored
from downstream.kept.measured import measured_predictions
from downstream.kept.predict_patients import predict_patients
from downstream.report.finished_run import RunError
from downstream.run.execution import execute
from downstream.run.feature_bags import PatientBag
from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.study import Study, arm_name
from downstream.splits.folds import nested_folds
from downstream.survival.pooled_models import fit_pooled
from featurestore import DamageError, Lake, verify
from tests.downstream import test_downstream_bags
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import COHORT, Inline, study
from tests.worlds.one_thread import one_thread

__all__ = ["one_thread"]  # the fixture

Floats = NDArray[np.float64]

TRAINED = 8
"""Patients of the run; the others of the lake are new to it."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


def some_patients(lake: Lake, kind: Any = "mil", **changes: Any) -> Study:  # noqa: ANN401
    """A study of the first patients of the lake."""
    made = study(lake, kind)
    patients = made.patients[:TRAINED]
    ids, label = [one.patient_id for one in patients], [at % 2 for at in range(TRAINED)]
    splits = tuple(nested_folds(ids, label, folds=2, inner=2, seed=0))
    settings = MilSettings(hidden=16, epochs=3, learning_rate=3e-3, bins=2)
    return study(
        lake, kind, patients=patients, splits=splits, features=("good",), settings=settings,
        reference=arm_name("good", changes["models"][0], changes["models"]), **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def classes(lake: Lake) -> dict[str, Any]:
    models = ("abmil", "linear", "knn")
    made = some_patients(lake, models=models, seeds=2)
    return execute(lake, made, COHORT, Inline(lake))


@pytest.fixture(scope="module")
def survival(lake: Lake) -> dict[str, Any]:
    made = some_patients(lake, "survival", models=("cox", "abmil", "forest"))
    return execute(lake, made, COHORT, Inline(lake))


def rows_of_test(lake: Lake, run: str, arm: str) -> pl.DataFrame:
    content = lake.read_bytes(f"runs/{run}/predictions.parquet")
    rows = pl.read_parquet(io.BytesIO(content))
    return rows.filter((pl.col("arm") == arm) & (pl.col("part") == "test"))


@pytest.mark.parametrize("model", ["abmil", "linear", "knn"])
def test_of_its_own_patients_it_says_what_the_run_said(
    lake: Lake, classes: dict[str, Any], model: str
) -> None:
    found = predict_patients(lake.uri, classes["run"], arm=f"good / {model}")
    seen = found.rows.filter("seen").sort("patient_id")
    said = rows_of_test(lake, classes["run"], f"good / {model}")
    said = said.group_by("patient_id").agg(pl.col("score").mean()).sort("patient_id")
    assert seen["patient_id"].to_list() == said["patient_id"].to_list()
    assert seen["score"].to_numpy() == pytest.approx(said["score"].to_numpy(), abs=1e-6)
    # two inner splits and two seeds of the one fold that tests the patient; all folds of others
    assert set(seen["models"]) == {4}
    new = found.rows.filter(~pl.col("seen"))
    assert new.height == PATIENTS - TRAINED
    assert set(new["models"]) == {8}
    assert new["slide_ids"].list.len().min() == 2
    both = found.rows.select(pl.col("low") <= pl.col("score"), pl.col("score") <= pl.col("high"))
    assert both.to_numpy().all()
    assert found.rows.select(pl.col("p_0") + pl.col("p_1")).to_numpy() == pytest.approx(1)
    assert found.rows["predicted"].is_in(["0", "1"]).all()


@pytest.mark.parametrize("model", ["cox", "abmil"])
def test_risks_are_the_runs_risks(lake: Lake, survival: dict[str, Any], model: str) -> None:
    found = predict_patients(lake.uri, survival["run"], arm=f"good / {model}")
    seen = found.rows.filter("seen").sort("patient_id")
    said = rows_of_test(lake, survival["run"], f"good / {model}").sort("patient_id")
    assert seen["score"].to_numpy() == pytest.approx(said["risk"].to_numpy(), abs=1e-6)


class PooledRows:
    """Patients whose pooled features are known."""

    def __init__(self, x_PD: Floats) -> None:
        self.x = x_PD

    def bag(self, patient_id: str) -> PatientBag:
        raise NotImplementedError(patient_id)

    def pooled(self, ids: Sequence[str]) -> Floats:
        return self.x[: len(ids)]

    def covariates(self, names: Sequence[str], ids: Sequence[str]) -> list[CovariateRow]:
        raise NotImplementedError(names, ids)


@pytest.mark.parametrize("name", ["cox", "coxnet", "coxnet_fixed"])
def test_a_kept_regression_has_the_risks_of_the_fitted_one(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 6)) * np.arange(1, 7) + 3
    time, event = rng.exponential(np.exp(-x[:, 0] / 2)), rng.random(80) < 0.8
    model = fit_pooled(
        name, x[:50], time[:50], event[:50], validation=(x[50:], time[50:], event[50:]),
        settings=SurvivalSettings(), seed=0,
    )  # fmt: skip
    kept = kept_cox(model)
    assert kept is not None
    again = restored(KeptModel.from_bytes(kept.to_bytes()))
    risk = again(PooledRows(x), [f"p{at}" for at in range(80)]).outcome
    assert risk == pytest.approx(model.risk(x), abs=1e-9)


def test_what_cannot_be_kept_without_pickle_is_said(lake: Lake, survival: dict[str, Any]) -> None:
    with pytest.raises(KeptModelError, match=r"forest and boosting cannot be kept without pickle"):
        predict_patients(lake.uri, survival["run"], arm="good / forest")
    with pytest.raises(RunError, match="has no arm 'other'; it has good / cox, good / abmil"):
        predict_patients(lake.uri, survival["run"], arm="other")


def test_patients_that_the_labels_named_are_known_by_their_slides(
    lake: Lake, tmp_path: Path
) -> None:
    """Else a model would predict a patient that it was trained on, under the lake's name."""
    made = some_patients(lake, models=("linear",))
    named = {one.patient_id: f"x{one.patient_id[1:]}" for one in made.patients}
    patients = tuple(replace(one, patient_id=named[one.patient_id]) for one in made.patients)
    splits = tuple(
        replace(
            split,
            train=tuple(named[one] for one in split.train),
            validation=tuple(named[one] for one in split.validation),
            test=tuple(named[one] for one in split.test),
        )
        for split in made.splits
    )
    made = replace(made, patients=patients, splits=splits)
    run = execute(lake, made, COHORT, Inline(lake))["run"]
    found = predict_patients(lake.uri, run)
    seen = found.rows.filter("seen").sort("patient_id")
    assert seen["patient_id"].to_list() == sorted(named.values())
    assert set(seen["models"]) == {2}  # the inner splits of the fold that tests the patient
    said = rows_of_test(lake, run, "good").sort("patient_id")
    assert seen["score"].to_numpy() == pytest.approx(said["score"].to_numpy(), abs=1e-6)
    other = build(tmp_path / "other", planted())  # which has the same slides, by its own names
    found = predict_patients(other.uri, run, run_lake=lake.uri)
    seen = found.rows.filter("seen").sort("patient_id")
    assert seen["patient_id"].to_list() == sorted(named)
    assert set(seen["models"]) == {2}
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,patient_id,tumour\ns00a,z,1\ns01a,y,0\n")
    labels = {"patients_from": "labels"}
    with pytest.raises(KeptModelError, match=r"none of 2 labelled patients is among those"):
        measured_predictions(other, found, table, ["tumour"], classes=["0", "1"], ids=labels)


def test_another_lake_of_the_same_encoder_is_predicted_and_of_another_refused(
    lake: Lake, classes: dict[str, Any], tmp_path: Path
) -> None:
    same = build(tmp_path / "same", planted())
    found = predict_patients(same.uri, classes["run"], run_lake=lake.uri, arm="good / linear")
    assert found.rows.height == PATIENTS
    # the same name, and other weights behind it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_downstream_bags, "IDENTITY", {"weights": "others"})
        other = build(tmp_path / "other", planted())
    with pytest.raises(KeptModelError, match=r"is not what the run has seen: weights is 'others'"):
        predict_patients(other.uri, classes["run"], run_lake=lake.uri, arm="good / linear")


def test_measures_of_seen_and_of_new_patients_stand_apart(
    lake: Lake, classes: dict[str, Any], tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"p{at:02d},{at % 2}" for at in range(PATIENTS)]
    table.write_text("\n".join(["patient_id,tumour", *rows]))
    found = predict_patients(lake.uri, classes["run"], arm="good / linear")
    groups = measured_predictions(lake, found, table, ["tumour"], classes=["0", "1"])
    assert {name: part["patients"] for name, part in groups.items()} == {
        "seen": TRAINED, "unseen": PATIENTS - TRAINED,
    }  # fmt: skip
    new = found.rows.filter(~pl.col("seen"))
    truth = [int(one[1:]) % 2 for one in new["patient_id"]]
    area = roc_auc_score(truth, new["score"])
    assert groups["unseen"]["measures"]["auroc"]["estimate"] == pytest.approx(area)
    table.write_text("\n".join(["patient_id,tumour", *rows[:-1], "p11,2"]))
    with pytest.raises(KeptModelError, match="column 'tumour' has 2; the run's classes are 0, 1"):
        measured_predictions(lake, found, table, ["tumour"], classes=["0", "1"])


def test_a_flipped_bit_in_a_model_is_found(lake: Lake, classes: dict[str, Any]) -> None:
    folder = Path(lake.store.path(f"runs/{classes['run']}/models"))
    paths = [path for path in folder.iterdir() if "linear" in path.name]
    wholes = [path.read_bytes() for path in paths]
    for path, whole in zip(paths, wholes, strict=True):
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        named = {part.path for part in verify(lake).damage}
        assert {f"runs/{classes['run']}/models/{path.name}" for path in paths} <= named
        with pytest.raises(DamageError):
            predict_patients(lake.uri, classes["run"], arm="good / linear")
    finally:
        for path, whole in zip(paths, wholes, strict=True):
            path.write_bytes(whole)


def test_a_file_that_is_no_model_is_refused() -> None:
    whole = KeptModel(kind="cox", fields={"constant": 1.0}, arrays={"weight": np.ones(3)})
    assert KeptModel.from_bytes(whole.to_bytes()).fields == {"constant": 1.0}
    for content in (b"", b"pickle", whole.to_bytes()[:40]):
        with pytest.raises(KeptModelError, match="holds no model of a run"):
            KeptModel.from_bytes(content)
