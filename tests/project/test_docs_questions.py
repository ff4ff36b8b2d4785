"""The page of questions, run as it stands; what comes out is computed again by other means."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet
import pytest

from featurestore import open_lake, tile_parts
from ingest.ray_ingest import ingest
from tests.conftest import CONFIG, REAL_SLIDE, ROOT, TEACHERS

PAGE = ROOT / "docs" / "questions.md"
FENCE = re.compile(r"^```(python|sql)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ONE = "P000-1"


class Answers:
    """The results of the page's blocks: Python's names, and per section an answer in SQL."""

    def __init__(self, lake: Path) -> None:
        self.lake = lake
        self.names: dict[str, Any] = {}
        self.sql: dict[int, pl.DataFrame] = {}

    def run(self, section: int, text: str) -> None:
        for kind, code in FENCE.findall(text):
            if kind == "python":
                exec(compile(code, f"{PAGE.name} {section}", "exec"), self.names)
            else:
                self.sql[section] = self.names["query"](self.names["lake"], code)

    def table(self, mpp: str = "0.5") -> dict[str, Any]:
        """The tiles as plain Lance reads them."""
        table = lance.dataset(str(self.lake / f"features/mpp{mpp}.lance")).to_table()
        return table.to_pydict()  # type: ignore[no-any-return]

    def features(self, teacher: str) -> dict[str, npt.NDArray[np.float64]]:
        """Features by slide, of the slides that have them."""
        table = self.table()
        rows_by_slide: dict[str, list[list[float]]] = {}
        for slide_id, row in zip(table["slide_id"], table[teacher], strict=True):
            if row is not None:
                rows_by_slide.setdefault(slide_id, []).append(row)
        return {slide_id: np.array(rows, np.float64) for slide_id, rows in rows_by_slide.items()}


@pytest.fixture(scope="module")
def page(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """The page run on a lake where, after a snapshot, a slide failed and one has no features."""
    folder = tmp_path_factory.mktemp("questions")
    lake = folder / "my-lake"
    shutil.copytree(filled, lake)
    open_lake(lake).snapshot("paper")
    shutil.copy(REAL_SLIDE, folder / "late.svs")
    (folder / "torn.svs").write_text("this is no slide")
    ingest(str(lake), [str(folder / "late.svs"), str(folder / "torn.svs")], CONFIG)
    answers = Answers(lake)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
        for number, text in enumerate(parts):
            answers.run(number, text)
        yield answers


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether frames hold the same rows in any order; counts may be of another integer type."""
    floats = [name for name, dtype in one.schema.items() if dtype.is_float()]
    rounded = [
        frame.with_columns(pl.col(floats).round(6), pl.selectors.integer().cast(pl.Int64))
        for frame in (one, other)
    ]
    assert one.columns == other.columns
    return rounded[0].sort(one.columns).equals(rounded[1].sort(one.columns))


@pytest.mark.parametrize(
    ("section", "name"),
    [(1, "failed"), (2, "tissue"), (3, "lacking"), (4, "patients"), (9, "children")],
)
def test_sql_answers_as_polars_does(page: Answers, section: int, name: str) -> None:
    frame = page.names[name]
    assert not frame.is_empty()
    assert same(frame.select(page.sql[section].columns), page.sql[section])


def test_each_question_is_answered(page: Answers) -> None:
    titles = re.findall(r"^## (\d+)\. (.*\?)$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, 15))


def test_failed_slides(page: Answers) -> None:
    [(slide_id, reason)] = page.names["failed"].rows()
    assert slide_id == "torn"
    assert "torn.svs" in reason


def test_tiles_and_tissue(page: Answers) -> None:
    table = page.table()
    expected: dict[str, list[float]] = {}
    for slide_id, tissue in zip(table["slide_id"], table["tissue"], strict=True):
        expected.setdefault(slide_id, []).append(tissue)
    mpp = dict(page.names["lake"].slides().select("slide_id", "mpp").collect().iter_rows())
    for slide_id, tiles, mm2 in page.names["tissue"].iter_rows():
        side_mm = 256 * mpp[slide_id] / 1000
        assert tiles == len(expected[slide_id])
        assert mm2 == pytest.approx(sum(expected[slide_id]) * side_mm**2, rel=1e-5)
    assert page.names["tissue"].height == len(expected) == 8


def test_slides_that_lack_a_teacher(page: Answers) -> None:
    assert page.names["lacking"]["slide_id"].to_list() == ["late"]
    assert set(page.table()["slide_id"]) - set(page.features(TEACHERS[0])) == {"late"}


def test_slides_per_patient_and_label(page: Answers, cohort: Path) -> None:
    manifest = pl.read_csv(cohort)
    per_patient = manifest.group_by("patient_id").agg(slides=pl.len())
    with_patient = page.names["patients"].drop_nulls("patient_id")
    assert same(with_patient, per_patient)
    [unknown] = page.names["patients"].filter(pl.col("patient_id").is_null())["slides"]
    assert unknown == 3
    per_label = manifest.group_by("label").agg(
        slides=pl.len(), patients=pl.col("patient_id").n_unique()
    )
    assert same(page.names["labels"], per_label)


def test_mean_embeddings(page: Answers) -> None:
    features = page.features(TEACHERS[0])
    means = dict(page.names["means"].iter_rows())
    assert set(means) == set(features)
    for slide_id, x in features.items():
        np.testing.assert_allclose(means[slide_id], x.mean(axis=0), rtol=1e-4, atol=1e-6)


def cosines(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    cosine: npt.NDArray[np.float64] = x @ y / np.linalg.norm(x, axis=1) / np.linalg.norm(y)
    return cosine


def test_similar_and_atypical_tiles(page: Answers) -> None:
    table = page.table()
    rows = [n for n, slide_id in enumerate(table["slide_id"]) if slide_id == ONE]
    keys = np.array(table["tile_id"])[rows]
    x = page.features(TEACHERS[0])[ONE]
    _, _, grid_y, grid_x = tile_parts(keys)
    [this] = np.flatnonzero((grid_y == 1) & (grid_x == 2))
    to_this, to_mean = cosines(x, x[this]), cosines(x, x.mean(axis=0))
    similar, atypical = page.names["similar"], page.names["atypical"]
    assert similar["tile_id"].to_list() == keys[np.argsort(-to_this)].tolist()
    np.testing.assert_allclose(similar["cosine"], np.sort(to_this)[::-1], atol=1e-5)
    assert atypical["tile_id"].to_list() == keys[np.argsort(to_mean)[:10]].tolist()
    np.testing.assert_allclose(atypical["cosine"], np.sort(to_mean)[:10], atol=1e-5)


def test_teachers_agree(page: Answers) -> None:
    agreement = page.names["agreement"]
    for slide_id in (ONE, "P002-1"):
        # The same number from the covariances of features instead of those of tiles.
        a, b = (page.features(teacher)[slide_id] for teacher in TEACHERS)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        norm = np.linalg.norm
        expected = norm(a.T @ b) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
        assert agreement[slide_id] == pytest.approx(expected, rel=1e-4)
        assert 0 < agreement[slide_id] < 1


def test_children_lie_in_their_parents(page: Answers) -> None:
    fine, coarse = page.table(), page.table("2.0")
    side = 1024  # level-0 pixels of a coarse tile: all slides are scanned at about 0.5
    expected = {
        key: sorted(
            child
            for child, other, cy, cx in zip(
                *(fine[name] for name in ("tile_id", "slide_id", "y", "x")), strict=True
            )
            if other == slide_id and 0 <= cy - y < side and 0 <= cx - x < side
        )
        for key, slide_id, y, x in zip(
            *(coarse[name] for name in ("tile_id", "slide_id", "y", "x")), strict=True
        )
    }
    children = {key: sorted(child) for key, child, _ in page.names["children"].iter_rows()}
    assert children == {key: child for key, child in expected.items() if child}
    assert max(map(len, children.values())) == 16


def test_changes_since_a_snapshot(page: Answers) -> None:
    assert sorted(page.names["changed"].rows()) == [("late", "ready"), ("torn", "failed")]
    tiles = dict(page.names["came"].select("mpp", "tiles").iter_rows())
    of_late = {mpp: page.table(str(mpp))["slide_id"].count("late") for mpp in (0.5, 2.0)}
    assert tiles == of_late
    assert page.names["came"]["teacher"].is_null().all()


def test_storage(page: Answers) -> None:
    storage = page.names["storage"]
    assert same(storage.select("teacher", "mpp", "tiles"), page.sql[11])
    reported_bytes = storage.filter(pl.col("mpp") == 0.5)["gb"].sum() * 1e9
    features = sum(x.size * 2 for t in TEACHERS for x in page.features(t).values())
    assert round(reported_bytes) == features
    files = (page.lake / "features/mpp0.5.lance/data").glob("*.lance")
    assert reported_bytes < sum(path.stat().st_size for path in files) < 1.1 * reported_bytes


def test_export_opens_without_slidelake(page: Answers) -> None:
    table = pyarrow.parquet.read_table(page.lake.parent / "mostly-tissue.parquet")
    tiles = page.table()
    expected = [
        key
        for key, tissue, row in zip(
            tiles["tile_id"], tiles["tissue"], tiles[TEACHERS[0]], strict=True
        )
        if tissue > 0.8 and row is not None
    ]
    assert table["tile_id"].to_pylist() == expected
    rows = dict(zip(tiles["tile_id"], tiles[TEACHERS[0]], strict=True))
    assert table[TEACHERS[0]].to_pylist() == [rows[key] for key in expected]
