"""Tile probes on a real lake: which tiles labels are of, whose tiles train, what is measured."""

import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student_t
from scipy.stats import ttest_rel
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from downstream import CohortError
from downstream.probes.fit import fit_probe
from downstream.probes.probe_folds import tile_splits
from downstream.probes.probe_labels import _match_places, read_tile_labels, sample_labels
from downstream.probes.probe_result import metrics_of
from downstream.probes.probe_spec import ProbeError, ProbeOptions
from downstream.probes.tile_probe import run_probe
from downstream.report.finished_run import read_run
from downstream.report.mistakes import mistakes
from downstream.report.views.views_classes import confusion_counts
from downstream.run.study_errors import StudyError
from downstream.splits.split import SplitError
from downstream.splits.split_tables import from_table
from featurestore import Lake, ResultDict, open_lake
from tests.downstream.test_downstream_bags import MPP, PATIENTS, WIDTH, Features, build, slide_names

ROOT = Path(__file__).resolve().parents[2]
TILES = 8


def label_of(slide: int) -> NDArray[np.int64]:
    """Labels of a slide's tiles; three in four are those of half of the patients."""
    rng = np.random.default_rng(slide)
    usual = slide // 2 % 2
    return np.where(rng.random(TILES) < 0.75, usual, 1 - usual)


def tile_features() -> Features:
    """Teacher "good" sees a tile's label, "patient" only whose it is, "noise" nothing."""
    rng = np.random.default_rng(0)
    features: Features = {"good": {}, "patient": {}, "noise": {}}
    who = 3 * rng.standard_normal((PATIENTS, WIDTH))
    for number, name in enumerate(slide_names()):
        x = rng.standard_normal((3, TILES, WIDTH))
        x[0, :, 0] += 2 * label_of(number)
        x[1] += who[number // 2]
        for at, teacher in enumerate(features):
            features[teacher][name] = x[at].astype(np.float16)
    return features


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", tile_features())


def truth_of(lake: Lake) -> pl.DataFrame:
    """The table of labels, as somebody would make it from the lake's tiles."""
    tiles = lake.tiles(mpp=MPP).select("slide_id", "tile_id", "x", "y").collect()
    tiles = tiles.sort("slide_id", "tile_id")
    label = np.concatenate([label_of(n) for n in range(len(slide_names()))])
    kinds = pl.Series("tissue", ["tumour" if is_tumour else "stroma" for is_tumour in label])
    return tiles.with_columns(kinds)


@pytest.fixture(scope="module")
def truth(lake: Lake) -> pl.DataFrame:
    return truth_of(lake)


@pytest.fixture(scope="module")
def table(truth: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "tiles.csv"
    truth.select("slide_id", "tile_id", "tissue").write_csv(path)
    return path


@pytest.fixture(scope="module")
def probe_result(lake: Lake, table: Path) -> dict[str, Any]:
    return run_probe(lake.uri, table, "tissue", ["good", "patient"], mpp=MPP)


def stored(lake: Lake, run: str, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{run}/{name}.parquet")))


# ---------------------------------------------------------------------- labels


def test_places_within_a_tile_are_its_labels(
    lake: Lake, truth: pl.DataFrame, tmp_path: Path
) -> None:
    by_key = read_tile_labels(lake, save(truth.drop("x", "y"), tmp_path), "tissue", mpp=MPP)
    assert by_key.classes == ("stroma", "tumour")
    assert by_key.rows["tile_id"].to_list() == truth["tile_id"].to_list()
    assert by_key.rows["label"].to_list() == [int(t == "tumour") for t in truth["tissue"]]
    assert set(by_key.rows["patient_id"]) == {f"p{n:02d}" for n in range(PATIENTS)}
    for shift in (0, 100.5, 255.9):
        named = truth.with_columns(pl.col("slide_id") + ".svs", pl.col("x", "y") + shift).drop(
            "tile_id"
        )
        labels = read_tile_labels(lake, save(named, tmp_path), "tissue", mpp=MPP)
        assert labels.rows.equals(by_key.rows)
        assert any("matched without folder and file ending" in note for note in labels.notes)


def save(table: pl.DataFrame, folder: Path) -> Path:
    path = folder / "tiles.csv"
    table.write_csv(path)
    return path


def test_labels_of_no_tile_are_listed(lake: Lake, truth: pl.DataFrame, tmp_path: Path) -> None:
    strangers = pl.DataFrame(
        {"slide_id": ["s00a", "s00a", "gone", "s01a"], "x": [300, -1, 0, 5], "y": [0, -1, 0, 5],
         "tissue": ["tumour", "stroma", "tumour", None]}
    )  # fmt: skip
    places = truth.drop("tile_id").cast({"x": pl.Float64, "y": pl.Float64})
    rows = pl.concat([places, strangers.cast({"x": pl.Float64, "y": pl.Float64})])
    labels = read_tile_labels(lake, save(rows, tmp_path), "tissue", mpp=MPP)
    assert labels.rows.height == truth.height
    assert labels.missing == ["gone", "s00a at -1.0, -1.0", "s00a at 300.0, 0.0"]
    keys = pl.DataFrame({"slide_id": ["s00a"], "tile_id": [7], "tissue": ["tumour"]})
    more = pl.concat([truth.drop("x", "y"), keys])
    assert read_tile_labels(lake, save(more, tmp_path), "tissue", mpp=MPP).missing == [
        "s00a tile 7"
    ]


def test_of_overlapping_tiles_the_nearest_middle_covers_a_place() -> None:
    """Against all pairs by hand, with tiles that lie anywhere and overlap."""
    rng = np.random.default_rng(0)
    xy, places = rng.integers(0, 900, (60, 2)), rng.integers(-50, 1100, (400, 2))
    side = 200
    tiles = pl.DataFrame({"slide_id": "s", "tile_id": range(60), "x": xy[:, 0].astype(float),
                          "y": xy[:, 1].astype(float), "side": float(side)})  # fmt: skip
    query_places = pl.DataFrame({"slide_id": "s", "x": places[:, 0].astype(float),
                          "y": places[:, 1].astype(float)})  # fmt: skip
    covering = _match_places(query_places, tiles)["tile_id"].to_list()
    apart = places[:, None] - xy[None]
    covers = ((apart >= 0) & (apart < side)).all(axis=2)
    far = np.where(covers, ((apart - side / 2) ** 2).sum(axis=2), np.inf)
    nearest = [int(row.argmin()) if np.isfinite(row).any() else None for row in far]
    assert covering == nearest
    assert 0 < nearest.count(None) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tissue": "grade"}, "it lacks tissue: give the slide, tile_id or x and y"),
        ({"slide_id": "image"}, "none is called as ids are"),
        ({"tile_id": "number"}, "it lacks x, y"),
    ],
)
def test_tables_that_lack_a_column_are_refused(
    lake: Lake, truth: pl.DataFrame, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    path = save(truth.drop("x", "y").rename(change), tmp_path)
    with pytest.raises(CohortError, match=message):
        read_tile_labels(lake, path, "tissue", mpp=MPP)


def test_contradictions_are_refused(lake: Lake, truth: pl.DataFrame, tmp_path: Path) -> None:
    keys = truth.drop("x", "y")

    def refused(frame: pl.DataFrame, message: str, **ids: str) -> None:
        with pytest.raises(CohortError, match=message):
            read_tile_labels(lake, save(frame, tmp_path), "tissue", mpp=MPP, ids=ids)

    other = keys.head(1).with_columns(tissue=pl.lit("fat"))
    refused(pl.concat([keys, other]), r"gives 1 tile two labels: s00a tile \d+: \['fat', ")
    refused(keys.with_columns(tissue=pl.lit("fat")), "are 'fat' in 'tissue'; a probe needs two")
    refused(keys.with_columns(tissue=pl.int_range(pl.len()) / 2), "tiles are classified")
    refused(truth.drop("tile_id").with_columns(x=-5), "none of 192 labels is of a tile; the first")
    refused(
        truth.drop("tile_id").with_columns(x=pl.lit("a")), "row 2, column 'x': 'a' is no number"
    )
    patients = pl.Series("patient_id", ["p00", "p99"] + ["p00"] * 190)
    refused(keys.with_columns(patients), "s00a: p99 in the labels, p00 in the lake")
    shared = "1 slide belongs to more than one patient: s00a"
    refused(keys.with_columns(patients), shared, patients_from="labels")


def test_at_most_takes_of_every_class(lake: Lake, table: Path) -> None:
    tile_labels = read_tile_labels(lake, table, "tissue", mpp=MPP)
    less = sample_labels(tile_labels, 40, seed=0)
    whole, part = (Counter(labels.rows["label"]) for labels in (tile_labels, less))
    assert all(abs(part[c] - whole[c] * 40 / 192) <= 1 for c in (0, 1))
    assert set(less.rows["tile_id"]) < set(tile_labels.rows["tile_id"])
    assert less.rows["tile_id"].is_sorted()
    assert less.notes[-1] == f"{less.rows.height} of 192 labelled tiles are used, drawn at random"
    assert sample_labels(tile_labels, 192, seed=0) is tile_labels


# ---------------------------------------------------------------------- folds


def test_predictions_are_of_probes_that_saw_no_tile_of_the_patient(
    lake: Lake, truth: pl.DataFrame, probe_result: dict[str, Any]
) -> None:
    splits = from_table(stored(lake, probe_result["run"], "splits"))
    tested = [patient for split in splits for patient in split.test]
    assert sorted(tested) == [f"p{n:02d}" for n in range(PATIENTS)]
    predictions = stored(lake, probe_result["run"], "predictions")
    features = tile_features()
    x = np.concatenate([features["good"][name] for name in slide_names()])
    y = (truth["tissue"] == "tumour").to_numpy().astype(int)
    owner = np.array([f"p{name[1:3]}" for name in truth["slide_id"]])
    arm_rows = predictions.filter(pl.col("arm") == "good / linear")
    assert arm_rows["tile_id"].to_list() == truth["tile_id"].to_list()
    for split in splits:
        parts = (split.train, split.validation, split.test)
        train, validation, test = (np.isin(owner, part) for part in parts)
        probe = fit_probe("linear", x[train], y[train], task="binary", classes=2,
                          validation=(x[validation], y[validation]))  # fmt: skip
        probabilities = np.array(arm_rows["probabilities"].to_list())[test]
        np.testing.assert_allclose(probabilities[:, 1], probe.scores(x[test]), rtol=1e-9)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert set(arm_rows.filter(pl.Series(test))["fold"]) == {split.fold}


def test_a_teacher_that_only_knows_the_patient_knows_nothing(probe_result: dict[str, Any]) -> None:
    """Were tiles of a patient on two sides, its usual label would be found: AUROC about 0.75."""
    metrics = probe_result["metrics"]
    for model in ("linear", "knn"):
        assert metrics[f"good / {model}"]["low"] > 0.7
        assert metrics[f"patient / {model}"]["estimate"] < 0.65
    features = tile_features()["patient"]
    x = np.concatenate([features[name] for name in slide_names()])
    y = np.concatenate([label_of(n) for n in range(len(slide_names()))])
    odd = np.arange(len(y)) % 2 == 1
    leaky = fit_probe("knn", x[~odd], y[~odd], validation=None, task="binary", classes=2)
    assert roc_auc_score(y[odd], leaky.scores(x[odd])) > 0.7


def test_measures_are_scikit_learns(
    lake: Lake, truth: pl.DataFrame, probe_result: dict[str, Any]
) -> None:
    y = (truth["tissue"] == "tumour").to_numpy().astype(int)
    predictions = stored(lake, probe_result["run"], "predictions")
    for arm, arm_metrics in probe_result["metrics"].items():
        arm_rows = predictions.filter(pl.col("arm") == arm)
        score = np.array(arm_rows["probabilities"].to_list())[:, 1]
        measures = arm_metrics["measures"]
        assert arm_metrics["metric"] == "auroc_folds"
        assert arm_metrics["estimate"] == measures["auroc_folds"]["estimate"]
        assert measures["auroc"]["estimate"] == pytest.approx(roc_auc_score(y, score))
        accuracy = balanced_accuracy_score(y, score >= 0.5)
        assert measures["balanced_accuracy"]["estimate"] == pytest.approx(accuracy)
        for measure in measures.values():
            assert measure["low"] <= measure["estimate"] <= measure["high"]
            assert (measure["method"], measure["resamples"]) == ("bca", 2000)
    assert (probe_result["patients"], probe_result["slides"], probe_result["tiles"]) == (
        12,
        24,
        192,
    )
    assert sum(probe_result["tiles_of_class"].values()) == 192


def test_arms_are_compared_on_the_same_tiles(lake: Lake, probe_result: dict[str, Any]) -> None:
    rows = {row["one"]: row for row in probe_result["comparisons"]}
    assert set(rows) == {"good / knn", "patient / linear", "patient / knn"}
    predictions = stored(lake, probe_result["run"], "predictions")
    areas: dict[str, list[float]] = {}
    for arm in probe_result["metrics"]:
        folds = sorted(
            predictions.filter(pl.col("arm") == arm).group_by("fold"), key=lambda f: f[0]
        )
        areas[arm] = [roc_auc_score(part["label"] == "tumour", part["score"]) for _, part in folds]
    parts = len(areas["good / linear"])
    splits = from_table(stored(lake, probe_result["run"], "splits"))
    overlap = np.mean([len(one.test) / len(one.train + one.validation) for one in splits])
    for arm, row in rows.items():
        plain = ttest_rel(areas[arm], areas["good / linear"])
        # tested over trained patients stand beside 1 / J in the variance
        statistic = plain.statistic / np.sqrt(1 + parts * overlap)
        assert row["other"] == "good / linear"
        assert row["parts"] == parts
        assert row["p_value"] == pytest.approx(2 * student_t.sf(abs(statistic), parts - 1))
        assert row["p_holm"] >= row["p_value"]
        fitted = row["fitted_models"]
        assert fitted["low"] <= fitted["estimate"] <= fitted["high"]
    assert rows["patient / linear"]["high"] < 0


def test_a_reference_and_a_margin(lake: Lake, table: Path) -> None:
    options = ProbeOptions(models=("knn",))
    both = ["good", "patient"]
    answer = run_probe(
        lake.uri, table, "tissue", both, mpp=MPP, options=options, reference="patient / knn",
        margin=0.1,
    )  # fmt: skip
    (row,) = answer["comparisons"]
    assert (row["one"], row["other"], row["margin"]) == ("good / knn", "patient / knn", 0.1)
    assert row["not_inferior"]
    with pytest.raises(StudyError, match="the arms are good / knn, patient / knn"):
        run_probe(lake.uri, table, "tissue", both, mpp=MPP, options=options, reference="other")


def test_a_run_has_a_page_with_what_it_got_wrong(
    lake: Lake, table: Path, probe_result: dict[str, Any]
) -> None:
    page = lake.read_bytes(f"runs/{probe_result['run']}/report.html").decode()
    assert isinstance(probe_result, ResultDict)
    assert f"{lake.uri}/runs/{probe_result['run']}/report.html" in probe_result._repr_html_()
    assert repr(probe_result).startswith(f"probe(run='{probe_result['run']}', target='tissue'")
    assert "192 labelled tiles" in page
    assert "tumour, predicted as another class" in page
    assert "Attention" not in page.partition("How to read it")[0]
    run = read_run(lake, probe_result["run"])
    assert int(confusion_counts(run, "good / linear").sum()) == 192
    rows = run.rows("good / linear")
    for strip in mistakes(lake, run):
        name = strip.title.partition(",")[0]
        wrong = rows.filter(
            (pl.col("label") == name) & ((pl.col("score") >= 0.5) != (name == "tumour"))
        )
        surest = float((wrong["score"] - 0.5).abs().to_numpy().max())
        assert strip.tiles[0]["text"].endswith(f"{0.5 + surest:.2f}")
        patients = [tile["patient"] for tile in strip.tiles]
        assert max(patients.count(one) for one in patients) <= 2
        assert set(patients) <= set(wrong["patient_id"])
    # taken away, it is written again without probing anew
    path = Path(lake.uri) / "runs" / probe_result["run"] / "report.html"
    path.unlink()
    run_probe(lake.uri, table, "tissue", ["good", "patient"], mpp=MPP)
    assert path.exists()


def test_an_interval_is_over_patients_not_tiles() -> None:
    """A patient's tiles copied a hundred times are no hundred patients."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    score = np.stack([-(y + rng.standard_normal(40)), y + rng.standard_normal(40)], axis=1)
    patients = [f"p{n // 2}" for n in range(40)]
    fold = np.arange(len(y)) // 2 % 2
    one = metrics_of(y, fold, score[:, None], patients, seed=0, spread=False)
    many = metrics_of(
        y.repeat(100), fold.repeat(100), score[:, None].repeat(100, axis=0),
        np.repeat(patients, 100).tolist(), seed=0, spread=False,
    )  # fmt: skip
    for name, measure in one["measures"].items():
        for key in ("estimate", "low", "high"):
            assert many["measures"][name][key] == pytest.approx(measure[key], abs=1e-9)


def test_rare_strata_go_together() -> None:
    labels = [0] * 12 + [1, 1, 1, 2, 3]
    rows = pl.DataFrame({"patient_id": [f"p{n:02d}" for n in range(17)], "label": labels})
    splits = tile_splits(rows, ProbeOptions(folds=5))
    rare = {f"p{n:02d}" for n in range(12, 17)}
    assert [len(rare & set(split.test)) for split in splits] == [1] * 5
    with pytest.raises(SplitError, match="5 folds with 4 patients"):
        tile_splits(rows.head(4), ProbeOptions(folds=5))


# ---------------------------------------------------------------------- few shots, runs


@pytest.mark.slow
def test_few_shots_are_drawn_again_and_again(lake: Lake, table: Path) -> None:
    options = ProbeOptions(shots=2, draws=6, models=("linear",))
    few = run_probe(lake.uri, table, "tissue", ["good"], mpp=MPP, options=options)
    many = run_probe(
        lake.uri, table, "tissue", ["good"], mpp=MPP, options=replace(options, shots=30)
    )
    auroc = few["metrics"]["good / linear"]["measures"]["auroc"]
    assert auroc["draws"] == 6
    assert auroc["least"] < auroc["estimate"] < auroc["most"]
    assert auroc["sd"] > 0.005
    assert auroc["estimate"] < many["metrics"]["good / linear"]["estimate"]
    assert (few["config"]["shots"], few["run"] == many["run"]) == (2, False)
    with pytest.raises(SplitError, match=r"shots=90, but fold 0 has \d+ tiles of class 0"):
        run_probe(lake.uri, table, "tissue", ["good"], mpp=MPP, options=replace(options, shots=90))


def test_a_finished_result_is_found_again(
    lake: Lake, table: Path, probe_result: dict[str, Any]
) -> None:
    path = Path(lake.uri) / "runs" / probe_result["run"] / "result.json"
    before = path.stat().st_mtime_ns
    again = run_probe(lake.uri, table, "tissue", ["good", "patient"], mpp=MPP)
    assert again == json.loads(path.read_text()) == probe_result
    assert path.stat().st_mtime_ns == before
    other = run_probe(
        lake.uri, table, "tissue", ["noise"], mpp=MPP, options=ProbeOptions(models=("knn",), seed=1)
    )
    assert other["run"] != probe_result["run"]
    assert list(other["metrics"]) == ["noise / knn"]


@pytest.mark.parametrize(
    "options", [{"models": ("svm",)}, {"models": ()}, {"shots": 0}, {"draws": 0}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match="models are linear, knn, logistic, the numbers"):
        ProbeOptions(**options)


def test_the_command(lake: Lake, table: Path, probe_result: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slidelake", "probe", lake.uri, "--labels", str(table), "--target",
         "tissue", "--features", "good", "--features", "patient", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == probe_result
    assert open_lake(lake.uri).version == lake.version
