"""Protocols of other tools as they are: task folders, folds, models, measures, by scikit-learn."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score
from sksurv.linear_model import CoxnetSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

from commands.studies import study_options
from downstream.cohorts.cohort_errors import CohortError
from downstream.kept.measured import measured_predictions
from downstream.kept.predict_patients import predict_patients
from downstream.protocols.protocol_measures import mean_over_parts
from downstream.protocols.protocols import PROTOCOLS, protocol_facts, protocol_settings
from downstream.protocols.task_folders import read_task_folder
from downstream.run import run_study as run_study_module
from downstream.run.run_study import run_study
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import FeatureOptions, LabelOptions, StudySpec
from downstream.splits.random_splits import monte_carlo_splits
from downstream.splits.split import SplitError
from featurestore import Lake
from tests.downstream.test_downstream_bags import MPP, PATIENTS, build, planted
from tests.downstream.test_downstream_runs import Inline
from tests.worlds.one_thread import one_thread
from tests.worlds.painted_lake import Page

__all__ = ["one_thread"]  # the fixture

Floats = NDArray[np.float64]
RunHere = Callable[[StudySpec], dict[str, Any]]

FOLDS = 3
CONFIG = """task_type: classification
sample_col: case_id
task_col: tumour
extra_cols: []
label_dict:
  0: wild type
  1: mutant
metrics: [macro-ovr-auc]
"""
SURVIVAL = """sample_col: case_id
task_col: OS
extra_cols: [OS_event, OS_days]
label_dict: {0: 0, 1: 1}
metrics: [cindex]
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    features = planted()
    for slide in features["good"]:  # weaker, so that not every patient is easy
        noise = features["noise"][slide]
        features["good"][slide] = (0.25 * features["good"][slide] + noise).astype(np.float16)
    return build(tmp_path_factory.mktemp("lake") / "lake", features)


@pytest.fixture(scope="module")
def pooled(lake: Lake) -> Floats:
    """Mean over slides of mean tiles, by numpy."""
    bags = {
        f"s{p:02d}{part}": lake.bag(f"s{p:02d}{part}", ["good"], mpp=MPP).features
        for p in range(PATIENTS)
        for part in "ab"
    }
    mean_of = {slide: bag.astype(np.float64).mean(axis=0) for slide, bag in bags.items()}
    return np.stack([(mean_of[f"s{p:02d}a"] + mean_of[f"s{p:02d}b"]) / 2 for p in range(PATIENTS)])


@pytest.fixture
def run_here(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> RunHere:
    """Run a study in this process."""
    monkeypatch.setattr(run_study_module, "on_ray", lambda _: Inline(lake))
    return lambda spec: run_study(lake.uri, spec)


def side(patient: int, fold: int) -> str:
    return "test" if (patient // 2) % FOLDS == fold else "train"


def write_task(folder: Path, patients: range = range(PATIENTS), *, survival: bool = False) -> Path:
    """Write a task as Patho-Bench's splits hold it: a row a slide."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(SURVIVAL if survival else CONFIG)
    columns = ["OS", "OS_event", "OS_days"] if survival else ["tumour"]
    lines = ["\t".join(["case_id", "slide_id", *columns, *(f"fold_{k}" for k in range(FOLDS))])]
    for p in patients:
        label = [p % 4, int(p % 3 > 0), 20 - 10 * (p % 2) + p / 10] if survival else [p % 2]
        folds = [side(p, k) for k in range(FOLDS)]
        lines += [
            "\t".join(map(str, [f"p{p:02d}", f"s{p:02d}{part}", *label, *folds])) for part in "ab"
        ]
    (folder / "k=all.tsv").write_text("\n".join([*lines, ""]))
    return folder


def spec_of(folder: Path | str, kind: str = "mil", /, **given: object) -> StudySpec:
    """Settings of a command line with a task folder and a protocol."""
    template = {
        "mil": study_options.MIL_TEMPLATE, "survival": study_options.SURVIVAL_TEMPLATE,
    }[kind]  # fmt: skip
    options = study_options.StudyOptions(
        lake="unused",
        settings={},
        task_folder=str(folder),
        resources=study_options.ResourceOptions(),
    )
    settings = {"features.names": ("good",), "features.mpps": (MPP,), **given}
    return study_options.study_spec(template, settings, options, ())


def predictions_on_test_parts(lake: Lake, run: str) -> pl.DataFrame:
    rows = pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{run}/predictions.parquet")))
    return rows.filter(pl.col("part") == "test").sort("fold", "patient_id")


def test_a_task_folder_gives_patho_benchs_probabilities(
    lake: Lake, pooled: Floats, run_here: RunHere, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "cohort_a" / "tumour")
    spec = spec_of(task, protocol="patho-bench")
    result = run_here(spec)
    assert result["config"]["classes"] == ["wild type", "mutant"]
    assert result["config"]["models"] == ["logistic"]
    rows = predictions_on_test_parts(lake, result["run"])
    table = pl.read_csv(task / "k=all.tsv", separator="\t").unique("case_id").sort("case_id")
    label, values = table["tumour"].to_numpy(), []
    for fold in range(FOLDS):
        is_test = (table[f"fold_{fold}"] == "test").to_numpy()
        probe = LogisticRegression(
            C=0.5, class_weight="balanced", max_iter=10_000, random_state=0
        ).fit(pooled[~is_test], label[~is_test])
        share = probe.predict_proba(pooled[is_test])
        ours = rows.filter(pl.col("fold") == fold)
        assert ours["patient_id"].to_list() == table["case_id"].filter(is_test).to_list()
        assert np.array(ours["probabilities"].to_list()) == pytest.approx(share, abs=1e-6)
        truth, called = label[is_test], share.argmax(axis=1)
        values.append(
            {
                "macro-ovr-auc": roc_auc_score(truth, share[:, 1]),
                "bacc": balanced_accuracy_score(truth, called),
                "weighted_kappa": cohen_kappa_score(truth, called, weights="quadratic"),
                "macro-f1": f1_score(truth, called, average="macro"),
            }
        )
    measures = result["protocol"]["measures"]["good"]
    for name in values[0]:
        column = np.array([one[name] for one in values])
        assert measures[name]["mean"] == pytest.approx(column.mean())
        assert measures[name]["se"] == pytest.approx(column.std() / FOLDS**0.5)
        assert measures[name]["sd"] == pytest.approx(column.std(ddof=1))
        assert (measures[name]["parts"], measures[name]["left_out"]) == (FOLDS, 0)
    own = result["metrics"]["good"]["measures"]["auroc"]["folds"]
    assert own["mean"] == pytest.approx(measures["macro-ovr-auc"]["mean"])
    page = Page(lake.read_bytes(f"runs/{result['run']}/report.html").decode())
    assert "Protocol: Patho-Bench: linear probe" in page.words
    assert f"{measures['bacc']['mean']:.3f} ± {measures['bacc']['se']:.3f} (standard" in page.words
    assert "Mean and standard deviation over test parts" in page.words
    assert "Set otherwise in this run" not in page.words
    assert page.loads_nothing


def test_predictions_of_named_classes_are_measured_by_the_tables_values(
    lake: Lake, run_here: RunHere, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "tumour")
    spec = spec_of(task, protocol="patho-bench")
    result = run_here(spec)
    found = predict_patients(lake.uri, result["run"])
    classes, names = ["wild type", "mutant"], spec.labels.class_names
    groups = measured_predictions(
        lake, found, spec.labels.table, ["tumour"], classes=classes, class_names=names
    )
    ours = groups["seen"]["measures"]["auroc_folds"]["estimate"]
    assert ours == pytest.approx(result["metrics"]["good"]["estimate"])


def test_what_is_set_otherwise_than_the_protocol_is_told(
    lake: Lake, run_here: RunHere, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "tumour")
    changed = {"protocol": "patho-bench", "fit.inverse_penalty": 4.0}
    result = run_here(spec_of(task, **changed))
    (sentence,) = result["protocol"]["changed"]
    assert sentence == "fit.inverse_penalty is 4.0, Patho-Bench's is 0.5"
    page = Page(lake.read_bytes(f"runs/{result['run']}/report.html").decode())
    assert f"Set otherwise in this run: {sentence}." in page.words
    # a name alone sets nothing, and says so
    bare = StudySpec(
        labels=LabelOptions(table="t", target=("a",)), features=FeatureOptions(names=("good",)),
        protocol="stamp",
    )  # fmt: skip
    told = protocol_facts(bare)["changed"]
    assert "models.names is (), STAMP's is ('transformer',)" in told


@pytest.mark.slow
def test_trained_on_one_source_and_tested_on_another(
    lake: Lake, pooled: Floats, run_here: RunHere, tmp_path: Path
) -> None:
    write_task(tmp_path / "a" / "tumour", range(8))
    write_task(tmp_path / "b" / "tumour", range(8, PATIENTS))
    spec = spec_of(tmp_path / "a==b--tumour", protocol="patho-bench")
    result = run_here(spec)
    rows = predictions_on_test_parts(lake, result["run"])
    assert rows["patient_id"].to_list() == [f"p{p:02d}" for p in range(8, PATIENTS)]
    label = np.arange(PATIENTS) % 2
    probe = LogisticRegression(C=0.5, class_weight="balanced", max_iter=10_000, random_state=0)
    share = probe.fit(pooled[:8], label[:8]).predict_proba(pooled[8:])
    assert np.array(rows["probabilities"].to_list()) == pytest.approx(share, abs=1e-6)
    assert "4 patients of the other table are tested by models of 8 patients" in " ".join(
        result["notes"]
    )
    assert not any("in no test part" in note for note in result["notes"])  # as it is meant
    page = Page(lake.read_bytes(f"runs/{result['run']}/report.html").decode())
    assert "one split of patients" in page.words
    # without the protocol a part of the training patients decides, and nobody leaks
    inner = run_here(spec_of(tmp_path / "a==b--tumour", **{"models.names": ("linear",)}))
    splits = pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{inner['run']}/splits.parquet")))
    parts = {part: set(rows["patient_id"]) for (part,), rows in splits.group_by("part")}
    assert parts["test"] == {f"p{p:02d}" for p in range(8, PATIENTS)}
    assert parts["validation"]
    assert not parts["validation"] & parts["train"]
    write_task(tmp_path / "c" / "tumour", range(7, PATIENTS))
    with pytest.raises(CohortError, match="1 patient is both in the labels and in the table of"):
        run_here(spec_of(tmp_path / "a==c--tumour", protocol="patho-bench"))
    with pytest.raises(SplitError, match="all of it is tested; leave split 'site' out"):
        run_here(spec_of(tmp_path / "a==b--tumour", **{"folds.split": "site"}))


def test_survival_of_a_task_folder_is_scikit_survivals(
    lake: Lake, pooled: Floats, run_here: RunHere, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "OS", survival=True)
    result = run_here(spec_of(task, "survival", protocol="patho-bench"))
    rows, values = predictions_on_test_parts(lake, result["run"]), []
    time = np.array([20 - 10 * (p % 2) + p / 10 for p in range(PATIENTS)])
    event = np.arange(PATIENTS) % 3 > 0
    for fold in range(FOLDS):
        is_test = np.array([side(p, fold) == "test" for p in range(PATIENTS)])
        net = CoxnetSurvivalAnalysis(alphas=[0.07], l1_ratio=0.5, max_iter=100_000)
        net.fit(pooled[~is_test], Surv.from_arrays(event[~is_test], time[~is_test]))
        risk = net.predict(pooled[is_test])
        ours = rows.filter(pl.col("fold") == fold)["risk"].to_numpy()
        assert ours - ours.mean() == pytest.approx(risk - risk.mean(), abs=1e-6)
        values.append(concordance_index_censored(event[is_test], time[is_test], risk)[0])
    measured = result["protocol"]["measures"]["good"]["cindex"]
    assert measured["mean"] == pytest.approx(np.mean(values))
    assert measured["se"] == pytest.approx(np.std(values) / FOLDS**0.5)
    with pytest.raises(CohortError, match=r"task 'OS' .* is one of `slidelake survival`"):
        spec_of(task)
    with pytest.raises(CohortError, match=r"task 'tumour' .* is one of `slidelake mil`"):
        spec_of(write_task(tmp_path / "tumour"), "survival")


def test_folders_that_are_no_task(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"has no config.yaml beside a k=all.tsv"):
        read_task_folder(str(tmp_path))
    task = write_task(tmp_path / "a" / "tumour")
    assert read_task_folder(str(tmp_path / "a--tumour")).table == str(task / "k=all.tsv")
    with pytest.raises(CohortError, match="is trained and tested on 'a'; write a--tumour"):
        read_task_folder(str(tmp_path / "a==a--tumour"))
    other = write_task(tmp_path / "b" / "tumour")
    (other / "config.yaml").write_text(CONFIG.replace("mutant", "other"))
    with pytest.raises(CohortError, match="both must be the same task"):
        read_task_folder(str(tmp_path / "a==b--tumour"))
    for wrong in (
        "[1, 2",
        "task_col: 3\nsample_col: case_id\nextra_cols: []",
        "!!python/object:x.Y {}",
    ):
        (other / "config.yaml").write_text(wrong)
        with pytest.raises(CohortError, match=r"config.yaml: "):
            read_task_folder(str(other))


def test_protocols_set_what_is_not_given(tmp_path: Path) -> None:
    task = write_task(tmp_path / "tumour")
    spec = spec_of(task, protocol="clam", **{"folds.file": None, "fit.epochs": 3})
    assert (spec.folds.split, spec.folds.folds, spec.models.names) == (
        "monte-carlo",
        10,
        ("clam_sb",),
    )
    assert (spec.fit.epochs, spec.fit.weight_decay) == (3, 1e-5)
    assert protocol_facts(spec)["changed"] == ["fit.epochs is 3, CLAM's is 200"]
    with pytest.raises(StudyError, match="of `slidelake survival` there are patho-bench, stamp"):
        protocol_settings("clam", "survival")
    bare = replace(spec, protocol="patho-bench", folds=replace(spec.folds, file=None))
    with pytest.raises(StudyError, match="takes the folds that come with a task"):
        protocol_facts(bare)
    for protocol in PROTOCOLS.values():  # every field is one of the settings
        for kind, settings in protocol.settings.items():
            spec_of(write_task(tmp_path / kind / protocol.title[:4], survival=kind == "survival"),
                    kind, **settings)  # fmt: skip


def test_random_splits_are_clams() -> None:
    """The sizes of CLAM's own script: a rounded tenth of each class twice, the others train."""
    patients = [f"p{at:02d}" for at in range(50)]
    labels = [int(at < 17) for at in range(50)]
    splits = monte_carlo_splits(patients, labels, count=10, seed=0)
    label_of = dict(zip(patients, labels, strict=True))
    for split in splits:
        for part in (split.validation, split.test):
            counts = np.bincount([label_of[one] for one in part])
            assert counts.tolist() == [round(33 * 0.1), round(17 * 0.1)]
        assert sorted((*split.train, *split.validation, *split.test)) == patients
    assert [split.repeat for split in splits] == list(range(10))
    assert len({split.test for split in splits}) > 5
    again = monte_carlo_splits(patients[::-1], labels[::-1], count=10, seed=0)
    assert again == splits
    with pytest.raises(SplitError, match="with 4 patients in the rarest class"):
        monte_carlo_splits(patients[:30], [int(at < 4) for at in range(30)], count=3, seed=0)


def test_mean_and_spread_over_parts() -> None:
    values = np.array([0.5, 0.7, np.nan, 0.9])
    ours, known = mean_over_parts(values), values[[0, 1, 3]]
    low, high = stats.t.interval(0.95, 2, loc=known.mean(), scale=stats.sem(known))
    assert (ours["low"], ours["high"]) == pytest.approx((low, high))
    assert (ours["parts"], ours["left_out"]) == (3, 1)
    assert mean_over_parts(np.array([np.nan]))["mean"] is None
    one = mean_over_parts(np.array([0.8]))
    assert (one["mean"], one["sd"], one["low"]) == (0.8, None, None)


def test_too_many_time_bins_are_refused_before_anything_is_trained(
    lake: Lake, run_here: RunHere, tmp_path: Path
) -> None:
    task = write_task(tmp_path / "OS", survival=True)
    hazards = {"models.names": ("abmil",), "models.head": "hazards", "fit.bins": 9}
    before = lake.store.names("runs")
    with pytest.raises(StudyError, match=r"fold 0: 9 bins from \d .* ask for fewer bins"):
        run_here(spec_of(task, "survival", **hazards))
    assert lake.store.names("runs") == before
