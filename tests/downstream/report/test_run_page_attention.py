"""Tiles and slides on a run's page: which are shown, by which rule, what is told instead."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from downstream.report.cases import cases, groups
from downstream.report.finished_run import read_run
from downstream.report.kept_attention import attention_files, owners, read_tiles
from downstream.report.run_page import attention_view
from downstream.report.tile_pictures import MOST_OF_PATIENT, MOST_TILES, strips
from featurestore import Lake
from tests.downstream.report.test_run_page import ARMS, page_of
from tests.worlds.painted_lake import ACROSS, DOWN, painted_lake
from tests.worlds.run_folders import FOLDS, parquet, predictions, write_run


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=32)


def test_tiles_are_those_that_were_weighed_most(lake: Lake) -> None:
    run = read_run(lake, write_run(lake, run="mil-tiles", patients=32))
    files = attention_files(lake, run.name)
    assert {(file.arm, file.fold) for file in files} == {(ARMS[0], fold) for fold in range(FOLDS)}
    strip_of = {part.title: part for part in strips(lake, run, ARMS[0], files, owners(lake, files))}
    assert list(strip_of) == [
        f"{name}, {which} weighed" for name in ("no", "yes") for which in ("most", "least")
    ]
    weight = np.array([1 / (1 + y + x) for y in range(DOWN) for x in range(ACROSS)])
    times = weight / weight.mean()
    most, least = strip_of["yes, most weighed"], strip_of["yes, least weighed"]
    assert most.tiles[0]["times"] == pytest.approx(times.max(), rel=1e-5)
    assert least.tiles[0]["times"] == pytest.approx(times.min(), rel=1e-5)
    for part, corner in ((most, (0, 0)), (least, (DOWN - 1, ACROSS - 1))):
        patients = [tile["patient"] for tile in part.tiles]
        assert len(patients) == MOST_TILES
        assert all(int(patient[1:]) % 2 for patient in patients)
        assert max(patients.count(patient) for patient in patients) <= MOST_OF_PATIENT
        jpeg = base64.b64decode(part.tiles[0]["src"].partition(",")[2])
        with Image.open(io.BytesIO(jpeg)) as image:
            rgb = np.asarray(image).mean(axis=(0, 1))
        down, across = corner
        assert np.abs(rgb - (30 + 40 * across, 60, 90 + 40 * down)).max() < 4


def test_patients_are_those_of_the_run_and_not_of_the_lake(lake: Lake) -> None:
    """A table of labels may say whose slides these are."""
    renamed = pl.col("patient_id").str.replace("p", "case-")
    rows = predictions("binary", ARMS, 32, 1, 1).with_columns(renamed)
    name = write_run(lake, run="mil-renamed", patients=32, rows=rows)
    files = attention_files(lake, name)
    for file in files:
        table = pl.read_parquet(io.BytesIO(lake.read_bytes(file.path))).with_columns(renamed)
        lake.write_bytes(file.path, parquet(table))
    run = read_run(lake, name)
    for part in strips(lake, run, ARMS[0], files, owners(lake, files)):
        assert len(part.tiles) == MOST_TILES
        assert all(tile["patient"].startswith("case-") for tile in part.tiles)
    view = attention_view(lake, run)
    assert view["pictures"]
    assert not view["notes"]


def test_who_is_shown_follows_the_rule(lake: Lake) -> None:
    rows = predictions("binary", ARMS, 32, 2, 1)
    run = read_run(lake, write_run(lake, run="mil-who", patients=32, rows=rows))
    arm_rows = rows.filter(
        (pl.col("arm") == ARMS[1])
        & (pl.col("part") == "test")
        & (pl.col("repeat") == 0)
        & (pl.col("label") == "yes")
    )
    right, wrong = cases(run, ARMS[1])
    assert right.patient == arm_rows.sort("score")["patient_id"][-1]
    assert wrong.patient == arm_rows.sort("score")["patient_id"][0]
    assert f"{arm_rows['score'].to_numpy().min():.3f}" in wrong.text
    missed = int((arm_rows["score"] < 0.5).sum())
    assert f"Of {missed} yes patients missed, the surest." in wrong.text
    view = attention_view(lake, run)
    shown = cases(run, ARMS[0])[0]
    number = int(shown.patient[1:])
    assert f"slide s{number:02d}a of patient {shown.patient}" in view["pictures"][0].text
    assert f"of fold {number // 2 % FOLDS}, in which" in view["pictures"][0].text
    with_two = groups(run, ARMS[0])
    assert with_two["no"][:2] == ["p00", "p02"]


def test_a_patient_with_two_slides_is_shown_on_both(lake: Lake) -> None:
    rows = predictions("binary", ARMS, 32, 1, 1)
    sure = pl.when(pl.col("patient_id") == "p01").then(0.999).otherwise(pl.col("score") * 0.9)
    rows = rows.with_columns(score=sure)
    rows = rows.with_columns(probabilities=pl.concat_list(1 - pl.col("score"), pl.col("score")))
    run = read_run(lake, write_run(lake, run="mil-two", patients=32, rows=rows))
    texts = [picture.text for picture in attention_view(lake, run)["pictures"]]
    assert "s01a" in texts[0]
    assert "s01b" in texts[1]
    assert "50% of the patient's attention is on it" in texts[0]


def test_attention_that_says_nothing(lake: Lake) -> None:
    run = read_run(lake, write_run(lake, run="mil-none", attention=()))
    view = attention_view(lake, run)
    assert (view["arm"], view["strips"], view["pictures"]) == (None, [], [])
    assert view["notes"] == ["No model of this run says which tiles it weighs."]
    arms = ("good / mean", "good / abmil")
    run = read_run(lake, write_run(lake, run="mil-mean", arms=arms, attention=arms, patients=32))
    for file in attention_files(lake, run.name):
        if file.arm == arms[0]:
            key = {"arm": pl.lit(file.arm), "fold": pl.lit(file.fold, pl.Int32)}
            same = read_tiles(lake, file).with_columns(attention=pl.lit(1 / 24, pl.Float32), **key)
            lake.write_bytes(file.path, parquet(same))
    view = attention_view(lake, run)
    assert view["notes"] == [
        "good / mean weighs all tiles of a slide alike: there is nothing to rank."
    ]
    assert view["arm"] == arms[1]
    assert len(view["pictures"]) == 2


def test_a_lake_without_pictures(tmp_path: Path) -> None:
    lake = painted_lake(tmp_path / "lake", patients=12, mpps=(0.5, 1.0), thumbnail=False)
    run = write_run(lake, patients=12)
    for shard in (tmp_path / "lake" / "tiles").rglob("*.tar"):
        shard.unlink()
    words = page_of(lake, run).words
    assert words.count("no pixels") == 4 * MOST_TILES
    assert re.search(
        r"Some tiles are not shown: slide \w+: shard tiles/mpp0\.5/\S+ can't be read", words
    )
    assert re.search(r"The surest right: the lake has no thumbnail of slide s\d\da\.", words)


def test_damaged_pictures_and_slides_that_were_cut_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = painted_lake(tmp_path / "lake", patients=12)
    run = read_run(lake, write_run(lake, patients=12))
    monkeypatch.setattr(lake, "pictures", lambda _: {"thumbnail": b"no picture"})
    notes = attention_view(lake, run)["notes"]
    assert re.match(
        r"The surest right: slide s\d\da is not shown, a slide's picture of 10", notes[0]
    )
    monkeypatch.undo()
    monkeypatch.setattr(lake, "tiles_of", lambda **_: pl.DataFrame({"shard": []}))
    view = attention_view(lake, run)
    assert "has no tiles at mpp 0.5: it was scanned or cut again" in view["notes"][0]
    assert all(re.match("the lake has no pixels of slide", part.damage) for part in view["strips"])
