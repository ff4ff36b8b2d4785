"""A whole evaluation on a real small lake, its comparators, and what it refuses."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from markupsafe import escape

from distill.errors import DistillError
from distill.evaluate.compared_students import best_single, evaluation_splits, find_student
from distill.evaluate.embeddings import run_student, run_teacher, run_undistilled
from distill.evaluate.evaluation import evaluate
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.sampled_tiles import sample_labelled_tiles, sample_tiles
from distill.evaluate.tile_labels import read_labels
from featurestore import Lake, open_lake, patient_of
from tests.conftest import TEACHERS
from tests.featurestore.interop.test_interop_tables import write_frame
from tests.worlds.small_lake import add_teacher
from tests.worlds.student_files import ARCHITECTURE, held_out, write_student


@pytest.fixture(scope="module")
def studied(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with students: two seeds of both teachers, two of one teacher, one of another split.

    Its tiles of 2.0 mpp are too few for neighbours, so that paths without numbers are walked.
    """
    folder = tmp_path_factory.mktemp("studied") / "lake"
    shutil.copytree(filled, folder)
    torch.set_num_threads(1)
    lake = open_lake(folder)
    write_student(lake, "both-s0", TEACHERS, seed=0)
    write_student(lake, "both-s1", TEACHERS, seed=1)
    write_student(lake, "weak", TEACHERS[:1], epochs=0, cosine=0.7)
    write_student(lake, "strong", TEACHERS[1:], epochs=0, cosine=0.8)
    write_student(lake, "elsewhere", TEACHERS, epochs=0, split=other_split(lake))
    return folder


def other_split(lake: Lake) -> int:
    return next(seed for seed in range(1, 50) if held_out(lake, seed) != held_out(lake, 0))


@pytest.fixture
def lake_of(studied: Path) -> Lake:
    return open_lake(studied)


@pytest.fixture(scope="module")
def label_file(studied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write each 0.5 mpp tile's class: whether it lies in the upper half of its slide."""
    tiles = open_lake(studied).tiles(mpp=0.5).select("slide_id", "x", "y").collect()
    half = pl.col("y") < pl.col("y").median().over("slide_id")
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    tiles.with_columns(where=pl.when(half).then(pl.lit("up")).otherwise(pl.lit("down"))).write_csv(
        path
    )
    return path


@pytest.fixture(scope="module")
def report(studied: Path, label_file: Path) -> dict[str, Any]:
    spec = EvaluationSpec(labels=str(label_file), robust_tiles=4, threads=1)
    return evaluate(str(studied), ["both-s0", "both-s1"], spec)


def entry(report: dict[str, Any], name: str) -> dict[str, Any]:
    (embedding,) = [e for e in report["embeddings"] if e["name"] == name]
    return embedding  # type: ignore[no-any-return]


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict):
        for key, part in tree.items():
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, tree


@pytest.mark.slow
def test_all_comparators_stand_beside_the_students(report: dict[str, Any]) -> None:
    kinds = [(e["kind"], e["name"], e["runs"]) for e in report["embeddings"]]
    assert kinds == [
        ("student", "both", 2),
        ("single_teacher", "strong", 1),
        ("undistilled", f"undistilled {ARCHITECTURE}", 2),
        ("pca", "PCA 256 of 2 teachers", 1),
        ("teacher", TEACHERS[0], 1),
        ("teacher", TEACHERS[1], 1),
    ]
    assert entry(report, "both")["members"] == ["both-s0", "both-s1"]
    assert entry(report, "both")["seeds"] == [0, 1]
    keys = {frozenset(e) for e in report["embeddings"]}
    assert len(keys) == 1, "every embedding has the same keys"


@pytest.mark.slow
def test_fidelity_is_of_held_out_tiles_and_in_the_order_that_must_be(
    report: dict[str, Any],
) -> None:
    for teacher in TEACHERS:
        cosine = {e["name"]: e["fidelity"][teacher]["0.5"]["cosine"] for e in report["embeddings"]}
        assert cosine[teacher]["mean"] == max(c["mean"] for c in cosine.values())
        assert cosine["PCA 256 of 2 teachers"]["mean"] > cosine["both"]["mean"]
        assert cosine["both"]["min"] < cosine["both"]["mean"] < cosine["both"]["max"]
        untrained = cosine[f"undistilled {ARCHITECTURE}"]["mean"]
        assert cosine["both"]["mean"] > untrained
        both = entry(report, "both")["fidelity"][teacher]
        assert both["0.5"]["cosine"]["mean"] > both["0.5"]["baseline"]["mean"]
        assert both["0.5"]["baseline"]["min"] == both["0.5"]["baseline"]["max"]
        assert both["2.0"]["knn_overlap"] == {"mean": None, "min": None, "max": None}
        same = entry(report, teacher)["fidelity"][teacher]["0.5"]
        assert same["knn_overlap"]["mean"] == same["cka"]["mean"] == 1


@pytest.mark.slow
def test_labels_are_probed_on_the_trunk_and_searched(report: dict[str, Any]) -> None:
    """Failure 22: a head may mimic a teacher where the trunk is poor, so the trunk is measured."""
    trunk = timm.create_model(ARCHITECTURE, num_classes=0).num_features
    assert entry(report, "both")["width"]["mean"] == trunk
    assert report["classes"] == ["down", "up"]
    for embedding in report["embeddings"]:
        assert set(embedding["probe"]) == {"0.5"}
        for way in ("linear", "knn1", "knn10", "knn20"):
            score = embedding["probe"]["0.5"][way]["balanced_accuracy"]
            assert 0 <= score["min"] <= score["mean"] <= score["max"] <= 1
        search = embedding["retrieval"]["0.5"]
        assert search["acc@1"]["mean"] <= search["acc@3"]["mean"] <= search["acc@5"]["mean"]
        tiles = report["splits"][0]["tiles"]["0.5"]["labelled_held_out"]
        assert 0 < search["queries"]["mean"] <= tiles
    assert report["left_out"] == []


@pytest.mark.slow
def test_robustness_and_speed_are_of_all_that_runs_on_pixels(report: dict[str, Any]) -> None:
    for embedding in report["embeddings"]:
        ran = embedding["kind"] != "pca"
        assert (embedding["robustness"] is not None) == ran
        if ran:
            assert embedding["robustness"]["all"]["pairs"]["mean"] == 120
            assert 0 < embedding["robustness"]["board"]["score"]["mean"] <= 1
    fast = entry(report, "both")["throughput"]["0.5"]
    slow = entry(report, TEACHERS[0])["throughput"]["network"]
    assert fast["network_tiles_s"]["mean"] > slow["network_tiles_s"]["mean"]
    plain = timm.create_model(ARCHITECTURE, num_classes=0)
    assert fast["parameters"]["mean"] == sum(p.numel() for p in plain.parameters())
    per_slide = fast["tiles_per_slide"]["mean"]
    rate = 60 * fast["end_to_end_tiles_s"]["min"] / per_slide
    assert fast["slides_min"]["min"] == pytest.approx(rate, rel=1e-4)


@pytest.mark.slow
def test_caching_is_accounted_for(report: dict[str, Any]) -> None:
    amortised = report["amortisation"]
    assert set(amortised["teacher_seconds_per_tile"]) == set(TEACHERS)
    assert 1 < amortised["break_even_passes"] < 2
    assert amortised["cached_s"][-1] < amortised["recomputed_s"][-1]
    ratio = amortised["recomputed_s"][-1] / amortised["cached_s"][-1]
    assert 1 < ratio < amortised["most_saved"]


@pytest.mark.slow
def test_report_is_strict_json_of_numbers_and_the_page_needs_no_network(
    report: dict[str, Any], studied: Path
) -> None:
    folder = studied / "runs" / report["run"]
    text = (folder / "report.json").read_text()
    assert not re.search(r"\b(NaN|Infinity)\b", text)
    kept = json.loads(text)
    assert kept == report
    for embedding in kept["embeddings"]:
        numbers = {
            key: number
            for key, number in embedding.items()
            if key not in ("name", "kind", "members")
        }
        wrong = [
            path
            for path, number in leaves(numbers)
            if not (number is None or isinstance(number, (int, float, list)))
        ]
        assert not wrong
    page = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "http" not in page
    assert page.count("data:image/png") == 4
    for text in ("both-s0", "strong", "PCA 256 of 2 teachers", "balanced accuracy"):
        assert text in page
    assert [v["teacher"] for v in kept["verdicts"]] == list(TEACHERS)
    for verdict in kept["verdicts"]:
        assert f"{escape(verdict['text'])}." in page


@pytest.mark.slow
def test_the_same_call_gives_the_same_numbers(studied: Path, label_file: Path) -> None:
    spec = EvaluationSpec(
        labels=str(label_file), tiles=64, robust_tiles=2, teacher_seconds=0.0, threads=1
    )
    first, again = (evaluate(str(studied), ["both-s0"], spec) for _ in range(2))
    assert again["run"] == first["run"]
    for one, other in zip(first["embeddings"], again["embeddings"], strict=True):
        for key in ("fidelity", "probe", "retrieval", "robustness"):
            assert one[key] == other[key]


# ---------------------------------------------------------------------- comparators


def test_seeds_with_other_held_out_patients_are_each_evaluated_on_their_own(
    lake_of: Lake,
) -> None:
    both_splits, _ = evaluation_splits(lake_of, ["both-s0", "elsewhere"])
    assert [[s.name for s in split.students] for split in both_splits] == [
        ["both-s0"],
        ["elsewhere"],
    ]
    slides = patient_of(lake_of.slides().collect())
    for split in both_splits:
        assert set(split.held_out) == split.students[0].held_out
        held = slides.filter(pl.col("slide_id").is_in(split.held_out))["patient"].to_list()
        trained = slides.filter(pl.col("slide_id").is_in(split.train))["patient"].to_list()
        assert not set(held) & set(trained)
        assert len(split.held_out) + len(split.train) == slides.height
    assert both_splits[1].single is None


def test_the_best_student_of_one_teacher_is_found_or_named(lake_of: Lake) -> None:
    students = [find_student(lake_of, name) for name in ("both-s0", "both-s1")]
    others = [find_student(lake_of, name) for name in ("weak", "strong", "elsewhere")]
    best = best_single(students, others)
    assert best is not None
    assert best.name == "strong"
    assert best.gain == pytest.approx((0.8 - 0.5) / (1 - 0.5))
    wider = [
        replace(other, card=replace(other.card, architecture="resnet18"))
        for other in others
        if other.card is not None
    ]
    assert best_single(students, wider) is None
    ((split,), _) = evaluation_splits(lake_of, ["both-s0"], single="weak")
    assert split.single is not None
    assert split.single.name == "weak"
    with pytest.raises(DistillError, match=r"'elsewhere' was trained on \d+ of the held-out"):
        evaluation_splits(lake_of, ["both-s0"], single="elsewhere")


def test_unknown_and_unfinished_students_are_refused(lake_of: Lake) -> None:
    with pytest.raises(DistillError, match=r"no finished student 'nobody'.*both-s0"):
        evaluation_splits(lake_of, ["nobody"])
    with pytest.raises(DistillError, match="no student given"):
        evaluate(lake_of.uri, [])
    with pytest.raises(DistillError, match="tiles=3"):
        evaluate(lake_of.uri, ["both-s0"], EvaluationSpec(tiles=3))


def test_an_untrained_network_takes_its_statistics_from_training_tiles(lake_of: Lake) -> None:
    ((split,), _) = evaluation_splits(lake_of, ["both-s0"])
    tiles = sample_tiles(lake_of, split, split.train, mpp=0.5, most=64)
    card = split.students[0].card
    assert tiles is not None
    assert card is not None
    zero, again, one = (
        run_undistilled(card, tiles, seed=seed, device="cpu", threads=1).embed(tiles)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(zero, again)
    assert not np.allclose(zero, one)
    spread = zero.std(axis=0)
    assert np.median(spread) > 0.05, "neither vanished nor constant"
    assert spread.max() < 100
    trained = run_student(lake_of, "both-s0", device="cpu", threads=1).embed(tiles)
    assert trained.shape == zero.shape


def test_a_teacher_without_weights_or_with_others_is_not_run(
    lake_of: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DistillError, match="uni2_h: weights not here"):
        run_teacher(lake_of, "uni2_h", mpp=0.5, device="cpu", threads=1)
    monkeypatch.setattr(Lake, "identity", lambda *_, **__: {"weights_sha256": "other"})
    with pytest.raises(DistillError, match="weights here are others"):
        run_teacher(lake_of, TEACHERS[0], mpp=0.5, device="cpu", threads=1)


# ---------------------------------------------------------------------- tiles and labels


def test_a_sample_is_bounded_the_same_each_time_and_of_its_slides(lake_of: Lake) -> None:
    ((split,), _) = evaluation_splits(lake_of, ["both-s0"])
    drawn = [sample_tiles(lake_of, split, split.train, mpp=0.5, most=30, seed=s) for s in (0, 0, 1)]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert drawn[2] is not None
    assert len(drawn[0]) == len(set(drawn[0].tile_id.tolist())) == 30
    np.testing.assert_array_equal(drawn[0].tile_id, drawn[1].tile_id)
    assert set(drawn[0].tile_id.tolist()) != set(drawn[2].tile_id.tolist())
    rows = lake_of.tiles(mpp=0.5).collect()
    slide_of_tile = dict(rows.select("tile_id", "slide_id").iter_rows())
    assert {slide_of_tile[key] for key in drawn[0].tile_id.tolist()} <= set(split.train)
    features = dict(zip(rows["tile_id"], rows[TEACHERS[1]].to_list(), strict=True))
    for key, row in zip(drawn[0].tile_id.tolist(), drawn[0].features[TEACHERS[1]], strict=True):
        np.testing.assert_array_equal(row, np.asarray(features[key], np.float16))


def test_labels_meet_their_tiles(lake_of: Lake, label_file: Path) -> None:
    ((split,), _) = evaluation_splits(lake_of, ["both-s0"])
    table, classes = read_labels(str(label_file), lake_of)
    tiles = sample_labelled_tiles(lake_of, split, split.held_out, table, mpp=0.5, most=1000)
    assert tiles is not None
    assert tiles.label is not None
    rows = pl.read_csv(label_file).join(
        lake_of.tiles(mpp=0.5).select("slide_id", "x", "y", "tile_id").collect(),
        on=["slide_id", "x", "y"],
    )
    expected = dict(rows.select("tile_id", "where").iter_rows())
    named = [classes[number] for number in tiles.label.tolist()]
    assert named == [expected[key] for key in tiles.tile_id.tolist()]
    assert len(tiles) == rows.filter(pl.col("slide_id").is_in(split.held_out)).height
    few = sample_labelled_tiles(lake_of, split, split.train, table, mpp=0.5, most=7)
    assert few is not None
    assert len(few) == 7


def test_a_student_of_a_coarse_mpp_is_held_against_the_mean_of_the_tiles_under(
    lake_copy: Path,
) -> None:
    lake = open_lake(lake_copy)
    write_student(lake, "coarse", TEACHERS, epochs=0, levels=2, mpps=[2.0, 0.5])
    ((split,), _) = evaluation_splits(lake, ["coarse"])
    assert (split.mpps, split.under, split.columns) == ((2.0,), 0.5, ())
    tiles = sample_tiles(lake, split, split.train, mpp=2.0, most=100)
    assert tiles is not None
    features = dict(zip(tiles.tile_id.tolist(), tiles.features[TEACHERS[0]], strict=True))
    compared = 0
    for slide in split.train:
        pairs = lake.pairs(slide, coarse=2.0, fine=0.5, teachers=TEACHERS[0])
        fine = pairs.fine.features.astype(np.float64)
        for key, under in zip(pairs.coarse.tile_id.tolist(), pairs.children, strict=True):
            kept = under[under >= 0]
            if len(kept):
                np.testing.assert_allclose(features[key], fine[kept].mean(axis=0), atol=2e-3)
                compared += 1
    assert compared == len(tiles) > 3
    report = evaluate(str(lake_copy), ["coarse"], EvaluationSpec(robust_tiles=2, threads=1))
    names = [e["name"] for e in report["embeddings"] if e["kind"] == "teacher"]
    assert names == [f"{teacher} under" for teacher in TEACHERS]
    assert entry(report, "coarse")["fidelity"].keys() == set(TEACHERS)
    assert report["settings"]["mpps"] == [2.0]
    assert report["amortisation"] is None
    assert any("mean over the tiles of 0.5 mpp" in text for text in report["left_out"])


@pytest.mark.slow
def test_a_student_of_features_is_evaluated_by_its_column(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    write_student(lake, "fused", TEACHERS, epochs=0, mpps=[0.5])
    (lake_copy / "students/fused/card.json").rename(lake_copy / "students/fused/features.json")
    with pytest.raises(DistillError, match=r"no features of fused .*extract .* --teacher fused"):
        evaluate(str(lake_copy), ["fused"])
    add_teacher(lake, "fused", 12)
    report = evaluate(str(lake_copy), ["fused"], EvaluationSpec(robust_tiles=2, threads=1))
    kinds = [e["kind"] for e in report["embeddings"]]
    assert kinds == ["student", "pca", "teacher", "teacher"]
    fused = entry(report, "fused")
    assert fused["width"]["mean"] == 12
    assert fused["robustness"] is None
    for numbers in fused["fidelity"].values():
        assert abs(numbers["0.5"]["centred"]["mean"]) < 0.2, "its numbers say nothing of tiles"
    assert any("fused sees features" in text for text in report["left_out"])


def write(table: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    else:
        write_frame(table.cast({"x": pl.Float64, "y": pl.Float64}), path)


@pytest.mark.parametrize("ending", ["csv", "parquet", "xlsx"])
def test_label_tables_are_read_with_and_without_mpp(
    lake_of: Lake, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"labels.{ending}"
    table = pl.DataFrame(
        {
            "slide_id": ["007", "007", "b", "b"],
            "x": [0, 256, 0, 0],
            "y": [0, 0, 0, 0],
            "mpp": [0.5, 0.5, 2.0, 2.0],
            "tissue": ["stroma", None, "tumour", "tumour"],
        }
    )
    write(table, path)
    rows, classes = read_labels(str(path), lake_of)
    assert classes == ["stroma", "tumour"]
    assert rows.rows() == [("007", 0, 0, 0.5, 0), ("b", 0, 0, 2.0, 1)]
    write(table.drop("mpp").with_columns(x=pl.Series([0, 1, 2, 3])), path)
    assert read_labels(str(path), lake_of)[0]["mpp"].unique().to_list() == [0.5]


def test_labels_that_can_not_be_used_are_refused(lake_of: Lake, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"

    def message_of(text: str, **options: Any) -> str:  # noqa: ANN401
        path.write_text(text)
        with pytest.raises(DistillError) as caught:
            read_labels(str(path), lake_of, **options)
        return str(caught.value)

    assert "lacks y" in message_of("slide_id,x,label\na,1,t\n")
    assert "name the column of classes: a, b" in message_of("slide_id,x,y,a,b\ns,1,1,t,u\n")
    assert "there is no 'c'" in message_of("slide_id,x,y,a\ns,1,1,t\n", column="c")
    torn = message_of("slide_id,x,y,a\ns,1,2,t\ns,1,2,u\n")
    assert "two classes: slide s, x 1, y 2, mpp 0.5 is t and u" in torn
    (tmp_path / "labels.json").touch()
    with pytest.raises(DistillError, match=r"ends in '.json'; allowed are .csv"):
        read_labels(str(tmp_path / "labels.json"), lake_of)
    with pytest.raises(DistillError, match="there is no table"):
        read_labels(str(tmp_path / "none.csv"), lake_of)
    path.write_text("slide_id,x,y,a\ns,1,2,t\ns,5,2,u\n")
    with pytest.raises(DistillError, match=r"none of 2 labels is of a tile.*top-left"):
        evaluate(lake_of.uri, ["both-s0"], EvaluationSpec(labels=str(path)))
