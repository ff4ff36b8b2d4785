"""Runs on a real lake: what a fold may see, what is stored, what a killed run does again.

Cells run in this process, without Ray.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from sksurv.metrics import concordance_index_censored

import downstream
from downstream import (
    Cohort,
    CohortError,
    LeakageError,
    MilSettings,
    StudyError,
    SurvivalSettings,
    nested_folds,
    run_mil,
    run_study,
    run_survival,
    saved_spec,
)
from downstream.cells.cell_models import fit_member
from downstream.cells.cell_patients import CellPatients
from downstream.cells.trials import trials_of
from downstream.report.finished_run import read_run
from downstream.run.cells import fit_and_store
from downstream.run.execution import execute
from downstream.run.label_targets import check_models
from downstream.run.model_tables import (
    AGGREGATORS,
    CLINICAL,
    POOLED,
    PROBES,
    AggregatorEntry,
    PooledEntry,
    load,
    models_of,
    trainer_of,
)
from downstream.run.run_result import find_result
from downstream.run.run_table import run_table
from downstream.run.study import Cell, Patient, Study, check_features
from downstream.run.study_spec import Kind
from downstream.splits.split_tables import from_table
from featurestore import DamageError, Lake, LakeError, verify
from tests.downstream.test_downstream_bags import MPP, PATIENTS, build, planted
from tests.worlds.one_thread import one_thread

__all__ = ["one_thread"]  # the fixture


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    rows = [f"p{p:02d},{p % 2},{20 - 10 * (p % 2) + p / 10},{int(p > 1)}" for p in range(PATIENTS)]
    path.write_text("\n".join(["patient_id,tumour,months,dead", *rows, "p99,1,3,1\n"]))
    return path


def study(lake: Lake, kind: Kind = "mil", **changes: Any) -> Study:  # noqa: ANN401
    label = np.arange(PATIENTS) % 2
    outcomes = [
        (float(y),) if kind == "mil" else (20.0 - 10 * y + p / 10, 1.0) for p, y in enumerate(label)
    ]
    patients = tuple(
        Patient(patient_id=f"p{p:02d}", slide_ids=(f"s{p:02d}a", f"s{p:02d}b"), outcome=outcome)
        for p, outcome in enumerate(outcomes)
    )
    made = Study(
        kind=kind,
        task="binary" if kind == "mil" else "survival",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=("good", "noise", "good+noise"),
        models=("abmil",) if kind == "mil" else ("cox",),
        mpps=(MPP,),
        splits=tuple(
            nested_folds([p.patient_id for p in patients], label.tolist(), folds=3, inner=1, seed=0)
        ),
        seeds=1,
        seed=0,
        columns=("tumour",) if kind == "mil" else ("months", "dead"),
        classes=("0", "1") if kind == "mil" else (),
        head="" if kind == "mil" else "hazards",
        reference="good",
        margin=None,
        tune=0,
        accuracy=0.95,
        labels_sha256="0",
        identities={},
        settings=MilSettings(hidden=16, epochs=10, learning_rate=3e-3, bins=2),
        pooled=SurvivalSettings(components=4) if kind == "survival" else None,
        patients=patients,
    )
    return replace(made, **changes)


COHORT = Cohort(patients=pl.DataFrame(), missing=["p99"], surplus=[], notes=("as it was",))


class Inline:
    """Runs tasks here, and stops as a killed run does after `most` of them."""

    def __init__(self, lake: Lake, most: int = 99) -> None:
        self.lake, self.most = lake, most
        self.calls: list[tuple[int, int]] = []

    def __call__(
        self, run: Callable[[Any], float], tasks: Sequence[Any], *, title: str, finished: int
    ) -> None:
        assert title in {"tune", "mil", "survival"}
        self.calls.append((len(tasks), finished))
        for task in tasks[: self.most]:
            run(task)
        if self.most < len(tasks):
            raise KeyboardInterrupt


def table(lake: Lake, run: str, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{run}/{name}.parquet")))


def rows(lake: Lake, cell: Cell) -> list[dict[str, Any]]:
    fit_and_store(lake, cell)
    answer: list[dict[str, Any]] = json.loads(lake.read_bytes(cell.path))["rows"]
    return answer


@pytest.mark.parametrize(
    ("kind", "model"), [("mil", "abmil"), ("mil", "linear"), ("survival", "cox"),
                        ("survival", "abmil")],
)  # fmt: skip
def test_a_test_patient_changes_nobody_elses_prediction(
    lake: Lake, tmp_path: Path, kind: Kind, model: str
) -> None:
    """Statistics, bins, thresholds and training see no test patient: poisoning one shows it."""
    cell = study(lake, kind, models=(model,)).cells()[0]
    victim = cell.study.patients[int(cell.splits[0].test[0][1:])]
    features = planted()
    for slide in victim.slide_ids:
        features["good"][slide][:] = 50.0
    poisoned = build(tmp_path / "lake", features)
    clean, changed = (rows(one_lake, cell) for one_lake in (lake, poisoned))
    assert [row for row in changed if row["patient_id"] != victim.patient_id] == [
        row for row in clean if row["patient_id"] != victim.patient_id
    ]
    assert changed != clean


def test_labels_of_test_patients_change_no_prediction(lake: Lake) -> None:
    """Not even through thresholds, class weights or early stopping."""
    cell = study(lake).cells()[0]
    test = set(cell.splits[0].test)
    flipped = tuple(
        replace(p, outcome=(1 - p.outcome[0],)) if p.patient_id in test else p
        for p in cell.study.patients
    )
    other = replace(cell, study=replace(cell.study, patients=flipped))
    columns = ("score", "threshold", "probabilities")
    one, two = ([[row[key] for key in columns] for row in rows(lake, c)] for c in (cell, other))
    assert one == two


def test_a_slide_of_two_patients_is_refused(lake: Lake) -> None:
    made = study(lake)
    leaking = replace(made.patients[1], slide_ids=made.patients[0].slide_ids)
    with pytest.raises(LeakageError, match="slides belong to more than one patient"):
        replace(made, patients=(made.patients[0], leaking, *made.patients[2:]))


def test_a_run_that_knows_the_sites_is_another_run(lake: Lake) -> None:
    """Else naming the sites would find the run without them, and say nothing of them."""
    assert study(lake).run != study(lake, sites="hospital").run


def test_mil_run(lake: Lake) -> None:
    made = study(lake, margin=0.1)
    study_result = execute(lake, made, COHORT, Inline(lake))
    assert set(study_result["metrics"]) == {"good", "noise", "good+noise"}
    assert study_result["metrics"]["good"]["metric"] == "auroc_folds"
    assert (study_result["patients"], study_result["slides"], study_result["missing"]) == (
        12,
        24,
        ["p99"],
    )
    assert json.loads(lake.read_bytes(f"runs/{made.run}/result.json")) == study_result
    predictions = table(lake, made.run, "predictions")
    tested = predictions.filter(pl.col("part") == "test")
    assert tested.height == 36
    assert tested.select("arm", "patient_id").is_duplicated().sum() == 0
    areas: dict[str, list[float]] = {}
    for name in made.features:
        part = tested.filter(pl.col("arm") == name)
        area = roc_auc_score(part["label"].cast(pl.Int64), part["score"])
        pooled = study_result["metrics"][name]["measures"]["auroc"]["estimate"]
        assert pooled == pytest.approx(area, abs=1e-12)
        areas[name] = [
            roc_auc_score(fold["label"].cast(pl.Int64), fold["score"])
            for _, fold in sorted(part.group_by("fold"), key=lambda fold: fold[0])
        ]
        # the folds have equally many pairs: the measure over them is their mean
        assert study_result["metrics"][name]["estimate"] == pytest.approx(np.mean(areas[name]))
    for row in study_result["comparisons"]:
        gain = np.subtract(areas[row["one"]], areas["good"])
        assert row["estimate"] == pytest.approx(gain.mean())
        assert row["parts"] == len(gain)
    assert study_result["metrics"]["good"]["estimate"] > 0.9
    assert {row["one"] for row in study_result["comparisons"]} == {"noise", "good+noise"}
    assert all(row["other"] == "good" for row in study_result["comparisons"])
    rows = run_table(lake).filter(pl.col("run") == made.run)
    assert rows.height == sum(len(m["measures"]) for m in study_result["metrics"].values())
    (first,) = rows.filter((pl.col("arm") == "good") & pl.col("main")).to_dicts()
    assert first["estimate"] == study_result["metrics"]["good"]["estimate"]
    assert (first["measure"], first["model"], first["seed"]) == ("auroc_folds", "abmil", 0)
    assert first["lake_version"] == lake.version
    coverage = study_result["coverage"]["good"]
    assert coverage["target"] == 0.95
    assert 0 <= coverage["coverage"] <= 1
    assert coverage["aurc"] >= coverage["optimal_aurc"]
    assert from_table(table(lake, made.run, "splits")) == list(made.splits)
    # every test patient's threshold is its fold's, from validation patients alone
    folds = predictions.group_by("arm", "fold").agg(pl.col("threshold").n_unique())
    assert set(folds["threshold"]) == {1}
    assert "<html" in lake.read_bytes(f"runs/{made.run}/report.html").decode()
    names = lake.store.names(f"runs/{made.run}/attention")
    attention = pl.concat(
        table(lake, made.run, f"attention/{name.removesuffix('.parquet')}") for name in names
    )
    assert attention.height == 3 * PATIENTS * 11
    sums = attention.with_columns(pl.col("slide_id").str.head(3)).group_by("slide_id", "arm")
    assert np.allclose(sums.agg(pl.col("attention").sum())["attention"], 1, atol=1e-5)
    assert attention["x"].max() == 5 * 256


def test_survival_run(lake: Lake) -> None:
    made = study(lake, "survival", models=("cox", "abmil"), reference="good / cox")
    study_result = execute(lake, made, COHORT, Inline(lake))
    assert study_result["kind"] == "survival"
    assert set(study_result["metrics"]) == {
        f"{f} / {m}" for f in made.features for m in made.models
    }
    good = study_result["metrics"]["good / cox"]
    assert good["estimate"] > 0.6
    assert {"uno_c", "integrated_brier", "auc_t"} <= set(good["measures"])
    predictions = table(lake, made.run, "predictions").filter(pl.col("part") == "test")
    part = predictions.filter(pl.col("arm") == "good / cox")
    event, time, rank, risk = (part[name].to_numpy() for name in ("event", "time", "rank", "risk"))
    pooled = concordance_index_censored(event, time, rank)[0]
    assert good["measures"]["harrell_c"]["estimate"] == pytest.approx(pooled)
    counts = [
        concordance_index_censored(*(fold[name].to_numpy() for name in ("event", "time", "risk")))
        for _, fold in part.group_by("fold")
    ]
    counted = np.sum([found[1:4] for found in counts], axis=0)  # right, wrong, tied
    within = (counted[0] + counted[2] / 2) / counted.sum()
    assert good["estimate"] == pytest.approx(within)
    # odd patients die early, and higher is worse
    odd = part.filter(pl.col("patient_id").str.tail(1).cast(pl.Int32) % 2 == 1)
    assert np.mean(odd["rank"].to_numpy()) > np.mean(rank)
    assert part["high"].sum() == pytest.approx(6, abs=3)
    curves = np.array(predictions["curve"].to_list())
    assert curves.shape == (6 * PATIENTS, len(study_result["curve_times"]))
    assert (np.diff(curves, axis=1) <= 1e-9).all()
    assert curves.min() >= 0
    assert curves.max() <= 1
    # within a fold a greater risk is a lower curve
    fold = part["fold"].to_numpy() == 0
    order = np.argsort(risk[fold])
    middle = np.array(part["curve"].to_list())[fold][order].mean(axis=1)
    assert (np.diff(middle) <= 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["hazards", "cox"])
def test_heads_of_survival_find_the_signal(lake: Lake, head: str) -> None:
    made = study(
        lake,
        "survival",
        features=("good",),
        models=("abmil",),
        head=head,
        settings=MilSettings(hidden=16, epochs=30, learning_rate=3e-3, bins=2),
    )
    study_result = execute(lake, made, COHORT, Inline(lake))
    assert study_result["metrics"]["good"]["estimate"] > 0.65


@pytest.mark.slow
def test_models_and_probes_side_by_side(lake: Lake) -> None:
    models = ("mean", "transmil", "knn", "linear")
    ids, label = [f"p{p:02d}" for p in range(PATIENTS)], [p % 2 for p in range(PATIENTS)]
    splits = tuple(nested_folds(ids, label, folds=6, inner=1, seed=0))
    made = study(lake, features=("good",), models=models, reference="good / linear", splits=splits)
    study_result = execute(lake, made, COHORT, Inline(lake))
    assert set(study_result["arms"]) == {f"good / {model}" for model in models}
    predictions = table(lake, made.run, "predictions").filter(pl.col("part") == "test")
    for model in ("linear", "knn"):
        # by fold: with eight training patients the folds' scores are not on one scale
        part = predictions.filter(pl.col("model") == model).sort("fold", "label")
        pairs = part["score"].to_numpy().reshape(6, 2)
        assert np.mean(np.sign(pairs[:, 1] - pairs[:, 0])) >= 0.5, model


@pytest.mark.slow
def test_inner_splits_are_an_ensemble(lake: Lake) -> None:
    """Every patient of the other folds validates once; the test is the mean of the members."""
    label = [p % 2 for p in range(PATIENTS)]
    ids = [f"p{p:02d}" for p in range(PATIENTS)]
    splits = tuple(nested_folds(ids, label, folds=2, inner=3, seed=0))
    made = study(lake, features=("good",), splits=splits, seeds=2)
    study_result = execute(lake, made, COHORT, Inline(lake))
    assert (study_result["folds"], study_result["inner"], study_result["seeds"]) == (2, 3, 2)
    predictions = table(lake, made.run, "predictions")
    test = predictions.filter(pl.col("part") == "test")
    assert test.height == PATIENTS * 2
    validation = predictions.filter((pl.col("part") == "validation") & (pl.col("seed") == 0))
    assert validation.height == PATIENTS
    assert validation["patient_id"].n_unique() == PATIENTS


@pytest.mark.slow
def test_a_search_takes_the_settings_with_the_least_validation_loss(lake: Lake) -> None:
    made = study(lake, features=("good",), models=("abmil", "linear"), reference="good / abmil",
                 tune=3)  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        execute(lake, made, COHORT, Inline(lake, most=4))
    second = Inline(lake)
    execute(lake, made, COHORT, second)
    # three draws on three folds of the one model that has settings, four of them done before
    assert second.calls == [(5, 4), (6, 0)]
    for cell in made.cells():
        used = json.loads(lake.read_bytes(cell.path))["settings"]
        if cell.is_mil:
            tried = [json.loads(lake.read_bytes(trial.path)) for trial in trials_of([cell])]
            assert len({json.dumps(one["settings"]) for one in tried}) == 3
            assert tried[0]["settings"] == asdict(made.settings)
            assert used == min(tried, key=lambda one: one["loss"])["settings"]
    assert replace(made, tune=0).run != made.run


def test_soft_labels_are_of_models_that_have_not_seen_the_patient(lake: Lake) -> None:
    """The models that are trained on soft labels are other ones, too."""
    ids, label = [f"p{p:02d}" for p in range(PATIENTS)], [p % 2 for p in range(PATIENTS)]
    splits = tuple(nested_folds(ids, label, folds=2, inner=2, seed=0))
    made = study(lake, features=("good",), splits=splits)
    cell = made.cells()[0]
    patients = CellPatients(lake, cell, settings=made.settings)
    members = [fit_member(patients, split) for split in cell.splits]
    patients.soften(members, 0.4)
    for member in members:
        soft = patients.examples(member.split.validation, soft=True).target
        hard = np.eye(2)[patients.target(member.split.validation).astype(int)]
        np.testing.assert_allclose(soft, 0.4 * member.validation + 0.6 * hard)
        assert not set(member.split.validation) & set(member.split.train)
    again = replace(cell, study=replace(made, settings=replace(made.settings, soft_labels=0.4)))
    plain, softened = rows(lake, cell), rows(lake, again)
    assert [r["score"] for r in plain] != [r["score"] for r in softened]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_other_tasks(lake: Lake, task: str) -> None:
    made = study(lake, features=("good",), task=task)
    outcomes: dict[str, list[tuple[float, ...]]] = {
        "multiclass": [(float(p % 3),) for p in range(PATIENTS)],
        "multilabel": [(float(p % 2), float(p % 3 == 0)) for p in range(PATIENTS)],
        "regression": [(10.0 * (p % 2) + p / 10,) for p in range(PATIENTS)],
    }
    classes = {"multiclass": ("a", "b", "c"), "multilabel": ("a", "b"), "regression": ()}
    patients = tuple(
        replace(patient, outcome=outcome)
        for patient, outcome in zip(made.patients, outcomes[task], strict=True)
    )
    ids = [patient.patient_id for patient in patients]
    strata = [int(p.outcome[0]) if task == "multiclass" else 0 for p in patients]
    splits = tuple(nested_folds(ids, strata, folds=2, inner=2, seed=0))
    made = replace(made, patients=patients, classes=classes[task], splits=splits)
    study_result = execute(lake, made, COHORT, Inline(lake))
    main = {"multiclass": "auroc_folds", "multilabel": "auroc_folds", "regression": "r2"}[task]
    assert study_result["metrics"]["good"]["metric"] == main
    assert len(study_result["metrics"]["good"]["measures"]) >= 2
    predictions = table(lake, made.run, "predictions")
    assert set(predictions["part"]) == {"test", "validation"}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_a_finished_one_is_read(lake: Lake) -> None:
    made = study(lake, seed=1, features=("good",))
    with pytest.raises(KeyboardInterrupt):
        execute(lake, made, COHORT, Inline(lake, most=1))
    second, third = Inline(lake), Inline(lake)
    study_result = execute(lake, made, COHORT, second)
    assert second.calls == [(2, 1)]
    assert execute(lake, made, COHORT, third) == study_result
    assert third.calls == []
    unbroken = execute(lake, replace(made, labels_sha256="1"), COHORT, Inline(lake))
    assert unbroken["metrics"] == study_result["metrics"]
    assert unbroken["run"] != study_result["run"]


@pytest.mark.slow
def test_each_file_of_a_finished_run_is_checked(lake: Lake) -> None:
    made = study(lake, models=("abmil",), features=("good",), seed=77)
    execute(lake, made, COHORT, Inline(lake))
    assert not [part for part in verify(lake).damage if made.run in (part.path or "")]
    folder = Path(lake.store.path(f"runs/{made.run}"))
    files = [path for path in folder.rglob("*") if path.suffix in {".json", ".parquet"}]
    assert {path.parent.name for path in files} >= {made.run, "cells", "attention"}
    for path in files:
        whole = path.read_bytes()
        # not a digit: the last of a long number may change without changing the number
        at = next(at for at in range(len(whole) // 2, len(whole)) if chr(whole[at]).isalpha())
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        named = [part.path for part in verify(lake).damage]
        assert named == [str(path.relative_to(folder.parent.parent))]
        if path.name == "result.json":
            with pytest.raises(DamageError, match=r"result\.json"):
                find_result(lake, made.run)
        path.write_bytes(whole)
    (folder / "predictions.parquet").unlink()
    with pytest.raises(DamageError, match=r"predictions\.parquet"):
        read_run(lake, made.run)


def test_everything_that_decides_a_result_is_in_the_name_of_the_run(lake: Lake) -> None:
    made = study(lake)
    patients = (replace(made.patients[0], slide_ids=("s00a",)), *made.patients[1:])
    others: list[dict[str, Any]] = [
        {"features": ("good",)},
        {"mpps": (1.0,)},
        {"models": ("mean",)},
        {"seeds": 2},
        {"splits": made.splits[:2]},
        {"seed": 1},
        {"labels_sha256": "1"},
        {"identities": {"good": "1"}},
        {"settings": MilSettings(epochs=3)},
        {"columns": ("grade",)},
        {"patients": patients},
    ]
    names = {made.run, *(replace(made, **change).run for change in others)}
    assert len(names) == 1 + len(others)
    assert replace(made, lake_uri="elsewhere").run == made.run


@pytest.mark.parametrize("features", [[], ["a", "a"], ["a+"], [""]])
def test_feature_sets_are_checked(features: list[str]) -> None:
    with pytest.raises(StudyError, match="feature set"):
        check_features(features)


def test_models_are_checked() -> None:
    check_models(["abmil", "linear"], (*AGGREGATORS, *PROBES), [0.5])
    check_models(["hierarchical"], AGGREGATORS, [0.5, 2.0])
    for names, mpps in ((["abmill"], [0.5]), ([], [0.5]), (["abmil"] * 2, [0.5])):
        with pytest.raises(StudyError, match="name each once, of abmil"):
            check_models(names, AGGREGATORS, mpps)
    for name, mpps in (("hierarchical", [0.5]), ("abmil", [0.5, 2.0])):
        with pytest.raises(StudyError, match="hierarchical takes several"):
            check_models([name], AGGREGATORS, mpps)


def test_every_model_of_the_tables_is_there() -> None:
    entries: list[AggregatorEntry | PooledEntry] = [*AGGREGATORS.values()]
    entries += [*PROBES.values(), *POOLED.values(), *CLINICAL.values()]
    for entry in entries:
        assert callable(load(entry.loader))
        assert entry.summary
    assert models_of("mil").keys() == {*AGGREGATORS, *PROBES, *CLINICAL}
    assert models_of("survival").keys() == {*AGGREGATORS, *POOLED, *CLINICAL}
    assert trainer_of("mil", "knn") != trainer_of("mil", "abmil")
    with pytest.raises(StudyError, match="a mil study has abmil, acmil"):
        trainer_of("mil", "cox")


def test_options_are_checked_before_ray_starts(
    lake: Lake, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.ray_session", None)
    with pytest.raises(CohortError, match="did you mean 'tumour'"):
        run_mil(lake.uri, labels, "tumor", ["good"], mpps=[MPP])
    with pytest.raises(LakeError, match=r"no tiles at mpp 2\.0"):
        run_mil(lake.uri, labels, "tumour", ["good"], mpps=[2.0])
    with pytest.raises(LakeError, match="no features of 'uni'"):
        run_mil(lake.uri, labels, "tumour", ["good", "uni"], mpps=[MPP])


def test_a_run_keeps_the_settings_that_start_another(
    lake: Lake, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(lake: Lake, study: Study, cohort: Cohort, run_tasks: Any) -> dict[str, Any]:  # noqa: ANN401
        return {"run": study.run}

    monkeypatch.setattr("downstream.run.run_study.execute", name)
    ids = {"patient_column": "patient_id"}
    trained = run_mil(lake.uri, labels, "tumour", ["good"], mpps=[MPP], ids=ids, tune=2)
    first = trained["run"]
    assert repr(trained) == f"mil(run='{first}')"
    spec = saved_spec(lake, first)
    assert (spec.labels.table, spec.labels.patient_column) == (str(labels), "patient_id")
    assert (spec.labels.target, spec.models.tune) == (("tumour",), 2)
    assert run_study(lake.uri, spec)["run"] == first
    second = run_survival(lake.uri, labels, "months", "dead", ["good"], mpps=[MPP])["run"]
    assert run_study(lake.uri, saved_spec(lake, second))["run"] == second
    with pytest.raises(StudyError, match="name a run"):
        saved_spec(lake, "mil-none")


def test_the_door_is_sorted_and_light() -> None:
    assert downstream.__all__ == sorted(downstream.__all__)
    assert all(hasattr(downstream, name) for name in downstream.__all__)
    code = (
        "import sys, downstream, downstream.run.study_spec; heavy = {'torch', 'ray', "
        "'lance', 'sklearn', 'sksurv', 'matplotlib', 'scipy', 'polars', 'numpy'} & "
        "set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(downstream.__path__[0]).parent
    )
