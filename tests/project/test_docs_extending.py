"""The pages on extending slidelake, run as they stand; what they add is computed by other means."""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import lance
import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from cluster import extensions
from distill.recipes.recipe_table import RECIPES
from distill.students.student_table import STUDENT_KINDS
from distill.terms.term_table import TERMS
from downstream import MilSettings
from downstream.run.model_tables import AGGREGATORS
from featurestore import open_lake
from featurestore.interop.formats import FORMATS
from ingest.readers.reader_table import READERS
from ingest.scores.fill_scores import unknown_scores
from ingest.scores.score_table import SCORES
from ingest.teachers.cards.card_table import CARDS
from tests.conftest import REAL_SLIDE, ROOT, shard_samples
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.worlds.command_lines import run_words
from tests.worlds.doc_pages import PageRun, blocks_of, run_page

PAGES = ROOT / "docs" / "extending"
TABLES: tuple[dict[str, Any], ...] = (
    AGGREGATORS, CARDS, FORMATS, READERS, RECIPES, SCORES, STUDENT_KINDS, TERMS, extensions._loaded,
)  # fmt: skip
Run = Callable[..., PageRun]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, filled: Path, cohort: Path) -> Path:
    """A folder with a lake of the demo's names, for all pages."""
    folder = tmp_path_factory.mktemp("extending")
    shutil.copytree(filled, folder / "demo-lake")
    (folder / "demo-lake" / "cohort").mkdir()
    shutil.copy(cohort, folder / "demo-lake" / "cohort" / "cohort.csv")
    shutil.copy(REAL_SLIDE, folder / "demo-lake" / "cohort")
    return folder


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the tables and modules back as they were."""
    tables, modules = [dict(table) for table in TABLES], set(sys.modules)
    yield
    for table, before in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(before)
    for name in {name for name in sys.modules if name.startswith("my_")} - modules:
        del sys.modules[name]


@pytest.fixture
def page(
    demo: Path, clean: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a page in the folder of the lake."""

    def run(name: str, folder: Path = demo) -> PageRun:
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        replaced = {"/tmp/": f"{folder}/"}
        return run_page(PAGES / name, folder, lambda words: run_words(capsys, words), replaced)

    return run


def pixels_of(lake: Path, mpp: str) -> dict[int, np.ndarray]:
    """Return the tiles of all shards as plain webdataset and Pillow read them, by key."""
    return {
        key: np.asarray(Image.open(io.BytesIO(sample["jpg"])))
        for shard in (lake / "tiles" / f"mpp{mpp}").glob("*.tar")
        for key, sample in shard_samples(str(shard)).items()
    }


def columns_of(lake: Path, mpp: str, *names: str) -> pl.DataFrame:
    table = lance.dataset(str(lake / f"features/mpp{mpp}.lance")).to_table(columns=[*names])
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def test_every_kind_has_its_page() -> None:
    text = (PAGES / "index.md").read_text()
    for path in sorted(PAGES.glob("*.md")):
        if path.name == "index.md":
            continue
        assert f"({path.name})" in text
        first = blocks_of(path)[0]
        assert first.title.startswith("my_"), f"{path.name} does not begin with its example"


@pytest.mark.slow
def test_index(page: Run, demo: Path) -> None:
    ran = page("index.md")
    assert len(ran.answers) == 2
    frame = columns_of(demo / "demo-lake", "2.0", "tile_id", "redness")
    pixels = pixels_of(demo / "demo-lake", "2.0")
    for key, red in frame.iter_rows():
        assert red == pytest.approx(pixels[key][..., 0].mean(), abs=0.3)


@pytest.mark.slow
def test_score(page: Run, demo: Path) -> None:
    page("score.md")
    frame = columns_of(demo / "demo-lake", "0.5", "tile_id", "sharpness", "eosin_share")
    pixels = pixels_of(demo / "demo-lake", "0.5")
    assert len(frame) == len(pixels) > 50
    assert not frame.null_count().sum_horizontal().item()
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    for key, sharp, _ in frame.head(20).iter_rows():
        grey = np.asarray(Image.fromarray(pixels[key]).convert("L"), np.float32)
        edges = torch.nn.functional.pad(torch.tensor(grey)[None, None], (1,) * 4, mode="reflect")
        expected = torch.nn.functional.conv2d(edges, kernel).var(correction=0).item()
        assert sharp == pytest.approx(expected, rel=0.05, abs=0.5)
    shares = frame["eosin_share"].to_list()
    assert 0 <= min(shares) < max(shares) <= 1
    known = open_lake(demo / "demo-lake").tiles(mpp=0.5).filter(pl.col("sharpness") > 50)
    assert known.collect().height == (frame["sharpness"] > 50).sum()
    del SCORES["sharpness"]  # as where a new slide is ingested without the file
    note = unknown_scores(open_lake(demo / "demo-lake")) or ""
    assert "new tiles have no sharpness" in note.replace("redness, ", "")
    assert "slidelake --extend FILE score" in note


def test_export(page: Run, demo: Path) -> None:
    first, second = page("export.md").answers
    assert "7 slides written in 7 files" in first.stdout
    assert "0 slides written in 0 files, 7 were there already" in second.stdout
    text = (demo / "jsonl-out" / "P000-1.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    frame = columns_of(demo / "demo-lake", "0.5", "slide_id", "x", "y", "efficientnet_lite0")
    expected = frame.filter(pl.col("slide_id") == "P000-1").drop("slide_id").to_dicts()
    assert lines[1:] == expected


@pytest.mark.slow
def test_reader(page: Run, demo: Path) -> None:
    page("reader.md")
    [row] = open_lake(demo / "array-lake").slides().collect().to_dicts()
    assert (row["slide_id"], row["reader"], row["mpp_source"]) == ("region", "numpy", "file")
    ours, theirs = pixels_of(demo / "array-lake", "0.5"), pixels_of(demo / "demo-lake", "0.5")
    svs = open_lake(demo / "demo-lake").tiles(mpp=0.5)
    svs_rows = svs.filter(pl.col("slide_id") == "CMU-1-Small-Region").collect()
    at = {(y, x): key for key, y, x in svs_rows.select("tile_id", "grid_y", "grid_x").iter_rows()}
    rows = open_lake(demo / "array-lake").tiles(mpp=0.5).collect()
    shared = [
        (ours[key], theirs[at[y, x]])
        for key, y, x in rows.select("tile_id", "grid_y", "grid_x").iter_rows()
        if (y, x) in at
    ]
    assert len(shared) > 0.9 * len(at)
    for one, other in shared:
        assert np.abs(one.astype(int) - other).mean() < 2


@pytest.mark.slow
def test_aggregator(
    page: Run, tmp_path: Path, ray_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = planted()
    build(tmp_path / "demo-lake", {"good": features["good"], "student": features["good"]})
    (tmp_path / "demo-lake" / "cohort").mkdir()
    rows = [f"p{p:02d},{'high' if p % 2 else 'low'}" for p in range(PATIENTS)]
    table = "\n".join(["patient_id,label", *rows]) + "\n"
    (tmp_path / "demo-lake" / "cohort" / "cohort.csv").write_text(table)
    defaults = cast("dict[str, Any]", MilSettings.__init__.__kwdefaults__)
    monkeypatch.setitem(defaults, "epochs", 4)
    [answer] = page("aggregator.md", tmp_path).answers
    run = answer.stdout.strip().splitlines()[-1]
    result = json.loads((tmp_path / "demo-lake" / run).with_name("result.json").read_text())
    assert list(result["arms"]) == ["student / top16", "student / abmil"]
    text = (tmp_path / "my_aggregator.py").read_bytes()
    assert result["config"]["extensions"] == {"top16": hashlib.sha256(text).hexdigest()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["card.md", "encoder.md"])
def test_encoders(page: Run, name: str) -> None:
    assert len(page(name).answers) == 2  # the page compares the column with the network


@pytest.mark.slow
def test_slide_encoder(page: Run, demo: Path) -> None:
    assert len(page("slide_encoder.md").answers) == 2  # the page compares vectors with the network
    [encoding] = open_lake(demo / "demo-lake").slide_encodings()
    assert (encoding.name, encoding.dim) == ("ours.efficientnet_lite0", 16)


@pytest.mark.slow
def test_recipe(page: Run, demo: Path) -> None:
    page("recipe.md")
    lake = open_lake(demo / "demo-lake")
    report = lake.read_json("students/related/report.json")
    assert report["recipe"]["name"] == "relational"
    metrics = lake.read_bytes(f"runs/{report['run']}/metrics.jsonl").decode().splitlines()
    assert "distance" in str(json.loads(metrics[0]))


@pytest.mark.slow
def test_student(page: Run, demo: Path) -> None:
    page("student.md")
    rows = columns_of(
        demo / "demo-lake", "0.5", "short", "efficientnet_lite0", "efficientnet_lite1"
    )
    short = np.array(rows["short"].to_list(), np.float64)
    assert short.shape == (len(rows), 16)
    assert np.linalg.matrix_rank(short) == 16
