"""Heatmaps of all slides: written once, whole, listed on a page; by runs and by predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from playwright.sync_api import Browser
from sklearn.metrics import roc_auc_score

from downstream.kept.kept_model import KeptModelError
from downstream.kept.measured import measured_predictions
from downstream.kept.predict_patients import predict_patients
from downstream.measures.weighted import auroc_folds
from downstream.report import attention_maps
from downstream.report.attention_maps import file_stem, write_attention
from downstream.report.heatmaps.all_attention import write_all_attention
from downstream.report.listing.prediction_page import write_prediction_page
from downstream.run.execution import execute
from featurestore import Lake
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import COHORT, Inline
from tests.downstream.test_predict import TRAINED, some_patients
from tests.worlds.chromium import browser
from tests.worlds.one_thread import one_thread
from tests.worlds.painted_lake import Page, painted_lake, slide_names
from tests.worlds.run_folders import write_run

__all__ = ["browser", "one_thread"]  # fixtures

ARM = "good / abmil"


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=4)
    write_run(made, patients=4)
    return made


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


@pytest.fixture(scope="module")
def run(lake: Lake) -> dict[str, Any]:
    made = some_patients(lake, models=("abmil", "linear"))
    return execute(lake, made, COHORT, Inline(lake))


def test_every_slide_has_its_files_and_a_row_on_the_page(painted: Lake, tmp_path: Path) -> None:
    written = write_all_attention(painted, "mil-binary", folder=tmp_path / "all")
    assert (written.new, written.failed) == (5, [])
    assert sorted(one.slide_id for one in written.records) == sorted(slide_names(4))
    one = write_attention(painted, "mil-binary", "s01b", arm=ARM, folder=tmp_path / "one")
    for path in one:  # the files of one slide alone
        assert (tmp_path / "all" / path.name).read_bytes() == path.read_bytes()
    for name in slide_names(4):
        stem = file_stem(name, ARM)
        with Image.open(tmp_path / "all" / f"{stem}-tiles.jpg") as tiles:
            colours = np.asarray(tiles)[::228, ::228].reshape(-1, 3)
        assert len(colours) == 8
        # the tile with the most attention is the one at the corner: neither red nor blue
        assert colours[0][[0, 2]].astype(int).sum() == min(
            c[[0, 2]].astype(int).sum() for c in colours
        )
    page = Page((tmp_path / "all" / "index.html").read_text())
    assert [link for tag, link in page.links if tag == "img"] == [
        f"{file_stem(name, ARM)}.png" for name in slide_names(4)
    ]
    for tag, link in page.links:
        assert tag in {"img", "a", "link"}
        assert link.startswith("data:") or (tmp_path / "all" / link).exists()
    assert not list((tmp_path / "all").glob(".*"))


@pytest.mark.slow
def test_what_is_there_whole_is_not_drawn_again(painted: Lake, tmp_path: Path) -> None:
    write_all_attention(painted, "mil-binary", folder=tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    picture, lost = (tmp_path / f"{file_stem(name, ARM)}.png" for name in ("s00a", "s02a"))
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    lost.unlink()
    (tmp_path / f"{file_stem('s03a', ARM)}.json").write_text('{"format": 1, "fil')
    again = write_all_attention(painted, "mil-binary", folder=tmp_path)
    assert sorted(one.slide_id for one in again.records if one.is_new) == ["s00a", "s02a", "s03a"]
    assert len(again.records) == 5
    kept = file_stem("s01b", ARM)
    assert (tmp_path / f"{kept}.png").stat().st_mtime_ns == times[f"{kept}.png"]
    with Image.open(picture) as image:
        image.load()
    # other weights of a slide are drawn, whatever lies there
    path = Path(painted.store.path("runs/mil-binary/attention/good_abmil-0-0-0.parquet"))
    whole = path.read_bytes()
    table = pl.read_parquet(path)
    table.with_columns(attention=pl.col("attention").reverse()).write_parquet(path)
    others = write_all_attention(painted, "mil-binary", folder=tmp_path)
    path.write_bytes(whole)
    assert sorted(one.slide_id for one in others.records if one.is_new) == ["s00a", "s01a", "s01b"]


def test_two_slides_never_share_a_file() -> None:
    assert file_stem("a b", ARM) != file_stem("a_b", ARM)
    assert file_stem("S-12.v2", ARM) == "S-12.v2-good_abmil"


def test_a_slide_that_is_gone_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    made = painted_lake(tmp_path / "lake", patients=4)
    write_run(made, patients=4)
    path = Path(made.store.path("runs/mil-binary/attention/good_abmil-0-0-0.parquet"))
    table = pl.read_parquet(path)
    pl.concat([table, table.with_columns(slide_id=pl.lit("gone"))]).write_parquet(path)
    written = write_all_attention(made, "mil-binary", folder=tmp_path / "maps")
    assert len(written.records) == 5
    (failed,) = written.failed
    assert failed.startswith("gone, good / abmil: slide 'gone' has no tiles")
    assert failed in Page((tmp_path / "maps" / "index.html").read_text()).words


def test_predictions_show_where_their_models_looked(
    lake: Lake, run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the pictures are those of the other tests, and take most of the time
    monkeypatch.setattr(attention_maps, "_attention_picture", lambda *_, **__: b"PNG")
    found = predict_patients(lake.uri, run["run"], arm="good / abmil", heatmaps=tmp_path)
    assert found.heatmaps is not None
    assert found.heatmaps.new == 2 * PATIENTS
    # of the run's own patients: the attention that the run kept of the fold that tests them
    path = next(iter(lake.store.names(f"runs/{run['run']}/attention")))
    kept = pl.read_parquet(lake.store.path(f"runs/{run['run']}/attention/{path}"))
    slide = kept["slide_id"][0]
    rows = pl.read_csv(tmp_path / f"{file_stem(slide, ARM)}.csv").sort("tile_id")
    expected = kept.filter(pl.col("slide_id") == slide).sort("tile_id")["attention"]
    assert rows["attention"].to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    again = predict_patients(lake.uri, run["run"], arm="good / abmil", heatmaps=tmp_path)
    assert again.heatmaps is not None
    assert (again.heatmaps.new, len(again.heatmaps.records)) == (0, 2 * PATIENTS)
    with pytest.raises(KeptModelError, match=r"no heatmaps of arm 'good / linear': its models do"):
        predict_patients(lake.uri, run["run"], arm="good / linear", heatmaps=tmp_path)


def test_rankings_of_seen_patients_are_within_folds(
    lake: Lake, run: dict[str, Any], tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"p{at:02d},{at % 2}" for at in range(PATIENTS)]
    table.write_text("\n".join(["patient_id,tumour", *rows]))
    found = predict_patients(lake.uri, run["run"], arm="good / linear")
    groups = measured_predictions(lake, found, table, ["tumour"], classes=["0", "1"])
    # as the run's own, whose models and patients are the same
    own = run["metrics"]["good / linear"]["measures"]["auroc_folds"]["estimate"]
    assert groups["seen"]["measures"]["auroc_folds"]["estimate"] == pytest.approx(own)
    assert "auroc_folds" not in groups["unseen"]["measures"]
    seen = found.rows.filter("seen")
    label = np.array([int(one[1:]) % 2 for one in seen["patient_id"]])
    folds = [seen["fold"] == name for name in ("0.0", "0.1")]
    assert sum(int(part.sum()) for part in folds) == TRAINED
    # pairs of each fold by scikit-learn, added by their numbers
    right = pairs = 0.0
    for part in folds:
        y, score = label[part.to_numpy()], seen["score"].filter(part).to_numpy()
        both = float((y == 1).sum() * (y == 0).sum())
        right, pairs = right + both * float(roc_auc_score(y, score)), pairs + both
    assert own == pytest.approx(right / pairs)
    number = seen["fold"].rank("dense").cast(pl.Int64).to_numpy()
    ours = auroc_folds(np.ones((1, TRAINED)), label, number, seen["score"].to_numpy())[0]
    assert ours == pytest.approx(right / pairs)


def test_a_student_that_saw_the_patients_is_told_and_can_be_left_out(
    lake: Lake, run: dict[str, Any], tmp_path: Path
) -> None:
    report = {"run": "distill-1", "train_slide_ids": ["s00a", "s11b"]}
    lake.write_json("students/good/report.json", report)
    try:
        found = predict_patients(lake.uri, run["run"], arm="good / linear")
        trained = found.rows.filter("student_trained")
        assert trained["patient_id"].to_list() == ["p00", "p11"]
        (note,) = found.notes
        assert f"'good' was trained on 2 of the {PATIENTS} patients that are predicted" in note
        others = predict_patients(lake.uri, run["run"], arm="good / linear", unseen_students=True)
        assert others.rows.height == PATIENTS - 2
        assert not others.rows["student_trained"].any()
        assert others.notes == ()
        assert "p11: student 'good' was trained on this patient" in others.lost
        # the run's lake knows the student where the lake of the patients does not
        same = build(tmp_path / "same", planted())
        away = predict_patients(same.uri, run["run"], run_lake=lake.uri, arm="good / linear")
        assert away.rows.filter("student_trained").height == 2
        lake.write_json("students/good/report.json", {"run": "distill-1"})
        unknown = predict_patients(lake.uri, run["run"], arm="good / linear")
        assert unknown.rows["student_trained"].is_null().all()
        assert unknown.notes == ("student 'good': nothing says which patients it was trained on",)
        with pytest.raises(KeptModelError, match="nothing says which patients good were trained"):
            predict_patients(lake.uri, run["run"], arm="good / linear", unseen_students=True)
    finally:
        Path(lake.store.path("students/good/report.json")).unlink()
    assert "student_trained" not in predict_patients(lake.uri, run["run"]).rows.columns


EVIL = "<img src=http://evil.example/x onerror=alert(1)>"


def test_a_page_of_predictions_is_sorted_by_a_click(
    lake: Lake, run: dict[str, Any], tmp_path: Path, browser: Browser
) -> None:
    found = predict_patients(lake.uri, run["run"], arm="good / linear")
    name = pl.when(pl.col("patient_id") == "p03").then(pl.lit(EVIL)).otherwise("patient_id")
    named = found.rows.with_columns(patient_id=name)
    odd = {patient: "1" for patient in found.rows["patient_id"] if int(patient[1:]) % 2}
    path = tmp_path / "new.html"
    page_of = type(found)(rows=named, task=found.task, arm=found.arm, run=found.run)
    write_prediction_page(page_of, path, csv_name="new.csv", truth=odd)
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url))
    page.goto(path.as_uri())
    column = found.rows["score"].to_list()
    for order in (sorted(column), sorted(column, reverse=True)):
        page.get_by_role("button", name="score").click()
        at = page.locator("thead button").all_inner_texts().index("score")
        cells = page.locator(f"tbody tr > :nth-child({at + 1})")
        keys = [float(str(cell.get_attribute("data-key"))) for cell in cells.all()]
        assert keys == pytest.approx(order)
    page.get_by_role("button", name="patient", exact=True).click()
    assert EVIL in page.locator("tbody th").all_inner_texts()
    assert [one for one in problems if one != path.as_uri()] == []
    page.close()
    assert json.dumps(EVIL) not in path.read_text()
