"""Scores that a lake lacks: from stored JPEGs, in one commit, as a fresh ingest has them."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from featurestore import (
    DamageError,
    Lake,
    LakeConfig,
    LakeError,
    ShardReader,
    annotate,
    compact,
    create_lake,
    drop,
    open_lake,
    repair,
    verify,
)
from featurestore.commits.lance_ledger import Ledger
from featurestore.edits.score_columns import score_versions
from featurestore.tables.schema import SCORE_FIELDS, features_table
from ingest.cut import cut_slide
from ingest.errors import InputError
from ingest.readers.open_slide import open_slide
from ingest.scores.fill_scores import fill_scores, keep_scores
from ingest.scores.score_table import SCORES, Score, haematoxylin, slide_scores
from ingest.select.slides_to_cut import dry_run
from ingest.select.sources import fingerprint
from ingest.stain import STAIN_UNMIXING
from ingest.tile_jpeg import decode_tile
from tests.conftest import REAL_SLIDE, ROOT
from tests.worlds.small_lake import cut

MPPS = (0.5, 2.0)
NAME = "haematoxylin"
RgbArray = npt.NDArray[np.uint8]


def add(lake: Lake, paths: Sequence[Path]) -> Lake:
    """Cut slides into a lake, each in a commit and so a fragment of its own."""
    for path in paths:
        size, mark = fingerprint(str(path))
        row = {"slide_id": path.stem, "uri": str(path), "bytes": size, "fingerprint": mark}
        for registered in lake.committer.register([row]):
            lake.committer.commit_slides([cut_slide(lake.store, lake.config, registered)])
    return lake.refreshed()


@pytest.fixture(scope="module")
def paths(cohort: Path) -> list[Path]:
    return [REAL_SLIDE, *sorted((cohort.parent / "slides").glob("*.svs"))[:2]]


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory, paths: list[Path]) -> Path:
    """A lake of two slides without the score. Not to be changed."""
    folder = tmp_path_factory.mktemp("scores") / "lake"
    add(create_lake(folder, LakeConfig(mpps=MPPS)), paths[:2])
    return folder


@pytest.fixture
def lake(without: Path, tmp_path: Path) -> Lake:
    shutil.copytree(without, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def scores(lake: Lake, mpp: float, name: str = NAME) -> dict[int, float | None]:
    table = lake.refreshed().tiles(mpp=mpp).select("tile_id", name).collect()
    return dict(table.iter_rows())


# ---------------------------------------------------------------------- the table


def test_scores_of_slides_are_the_columns_of_format_1() -> None:
    assert set(slide_scores()) == {field.name for field in SCORE_FIELDS}
    for name, score in slide_scores().items():
        field = next(field for field in SCORE_FIELDS if field.name == name)
        assert (str(field.type), score.of_pixels) == ("float", None)
        assert score.slide_map is not None
        assert score.type == "float32"


def test_docs_list_the_scores_of_the_table() -> None:
    text = (ROOT / "docs" / "tissue.md").read_text()
    part = text.partition("## Scores of a tile")[2].partition("\n\n| ")[2].partition("\n\n")[0]
    rows = [line.replace("|  |", "| |") for line in part.splitlines() if line.startswith("| `")]
    expected = [
        f"| `{name}` | {score.measures} | {score.direction} | {score.missing} |"
        for name, score in SCORES.items()
    ]
    assert rows == [row.replace("|  |", "| |") for row in expected]
    spec = (ROOT / "docs" / "format.md").read_text()
    assert all(f"`{field.name}`" in spec for field in SCORE_FIELDS)
    kinds = spec.partition("**Scores.**")[2].partition("\n\n")[0]
    assert {n for n in SCORES if f"`{n}`" in kinds} == set(SCORES) - set(slide_scores())


def test_haematoxylin_is_the_density_along_its_stain() -> None:
    assert haematoxylin(np.full((8, 8, 3), 255, np.uint8)) == pytest.approx(0, abs=1e-9)
    stains = np.linalg.inv(STAIN_UNMIXING)
    tile = np.empty((32, 32, 3), np.uint8)
    tile[:16] = np.round(255 * 10 ** -(0.6 * stains[0] + 0.2 * stains[1]))
    tile[16:] = np.round(255 * 10 ** -(0.2 * stains[1]))
    assert haematoxylin(tile) == pytest.approx(0.3, abs=0.01)


# ---------------------------------------------------------------------- filled


def test_a_lake_without_a_score_gets_it_in_one_commit(lake: Lake, paths: list[Path]) -> None:
    before = lake.version
    assert NAME not in lake.tiles(mpp=0.5).collect_schema().names()
    counted = fill_scores(lake.uri, [NAME], dry_run=True)
    assert (counted.version, counted.tiles) == (
        before,
        {NAME: sum(lake.info()["tiles"].values())},
    )
    filled = fill_scores(lake.uri, [NAME])
    assert filled.tiles == counted.tiles
    assert filled.version == lake.refreshed().version == before + 1
    assert NAME not in open_lake(lake.uri, version=before).tiles(mpp=0.5).collect_schema().names()
    verdict = verify(lake.refreshed())
    assert verdict.ok, verdict.damage
    for mpp in MPPS:
        column = scores(lake, mpp)
        for row in lake.tiles_of(mpp=mpp).iter_rows(named=True):
            with ShardReader.of(lake.store, row) as shard:
                for tile_id, jpeg in shard:
                    assert column.pop(tile_id) == np.float32(haematoxylin(decode_tile(jpeg)))
        assert not column
    again = fill_scores(lake.uri, [NAME])
    assert (again.tiles, again.version) == ({NAME: 0}, before + 1)
    assert lake.refreshed().info()["features"] == []


def test_scores_of_jpegs_are_near_those_of_the_slides_own_pixels(lake: Lake) -> None:
    """Quality 90 without subsampling moves the score by 0.007 at most, of 0.02 to 0.50."""
    fill_scores(lake.uri, [NAME])
    tiles = lake.refreshed().tiles(mpp=0.5).filter(pl.col("slide_id") == REAL_SLIDE.stem)
    with open_slide(str(REAL_SLIDE)) as slide:
        for row in tiles.collect().sample(20, seed=0).iter_rows(named=True):
            inside = row["x"] + 256 <= slide.size_px[0] and row["y"] + 256 <= slide.size_px[1]
            pixels = slide.region(0, row["x"], row["y"], 256, 256)
            if inside:
                assert row[NAME] == pytest.approx(haematoxylin(pixels), abs=0.01)


def test_new_slides_get_the_scores_that_a_lake_keeps(
    lake: Lake, paths: list[Path], tmp_path: Path
) -> None:
    fill_scores(lake.uri, [NAME])
    old = scores(lake, 0.5)
    lake = add(lake.refreshed(), paths[2:])
    assert verify(lake).ok
    assert sum(value is None for value in scores(lake, 0.5).values()) == len(
        scores(lake, 0.5)
    ) - len(old)
    new = lake.tiles_of(mpp=0.5)["tiles"][2] + lake.tiles_of(mpp=2.0)["tiles"][2]
    assert keep_scores(lake.uri).tiles == {NAME: new}
    assert verify(lake.refreshed()).ok
    fresh = add(create_lake(tmp_path / "fresh", LakeConfig(mpps=MPPS)), paths)
    assert keep_scores(fresh.uri).tiles == {}
    fill_scores(fresh.uri, [NAME])
    for mpp in MPPS:
        assert scores(fresh, mpp) == scores(lake, mpp)
    assert scores(lake, 0.5).items() >= old.items()


def test_a_score_that_is_added_to_the_table_is_filled_beside_others(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def redness(tile: RgbArray) -> float:
        return float(tile[..., 0].mean()) / 255

    fill_scores(lake.uri, [NAME])
    kept = scores(lake, 2.0)
    score = Score(measures="mean red, 0 to 1", of_pixels=redness)
    monkeypatch.setitem(SCORES, "redness", score)
    both = fill_scores(lake.uri, ["redness", NAME])
    assert both.tiles[NAME] == 0
    assert both.tiles["redness"] == sum(lake.info()["tiles"].values())
    assert all(0 < (value or 0) < 1 for value in scores(lake, 0.5, "redness").values())
    assert scores(lake, 2.0) == kept
    newer = Score(measures="twice the mean red", of_pixels=lambda t: 2 * redness(t), version=2)
    monkeypatch.setitem(SCORES, "redness", newer)
    halves = scores(lake, 2.0, "redness")
    assert fill_scores(lake.uri, ["redness"]).tiles == {"redness": both.tiles["redness"]}
    assert scores(lake, 2.0, "redness") == pytest.approx(
        {key: 2 * (value or 0) for key, value in halves.items()}
    )
    assert verify(lake.refreshed()).ok
    assert score_versions(lake.refreshed()) == {NAME: 1, "redness": 2}


# ---------------------------------------------------------------------- kept


def test_a_kill_before_the_catalogs_commit_changes_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lake.version

    class KilledError(BaseException):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "apply", killed)
        with pytest.raises(KilledError):
            fill_scores(lake.uri, [NAME])
    assert open_lake(lake.uri).version == before
    assert NAME not in open_lake(lake.uri).tiles(mpp=0.5).collect_schema().names()
    assert fill_scores(lake.uri, [NAME]).tiles[NAME] > 0
    assert verify(lake.refreshed()).ok
    assert None not in scores(lake, 0.5).values()
    assert None not in scores(lake, 2.0).values()


def test_scores_live_through_compaction_a_rescan_and_a_dropped_slide(
    lake: Lake, paths: list[Path], tmp_path: Path
) -> None:
    fill_scores(lake.uri, [NAME])
    lake = add(lake.refreshed(), paths[2:])
    before = scores(lake, 2.0)
    compact(lake)
    lake = lake.refreshed()
    assert len(lake.table(features_table(2.0)).get_fragments()) == 1
    assert verify(lake).ok
    assert scores(lake, 2.0) == before
    keep_scores(lake.uri)
    assert None not in scores(lake, 2.0).values()
    drop(lake.refreshed(), "slide", [paths[1].stem])
    assert verify(lake.refreshed()).ok
    assert keep_scores(lake.uri).tiles == {NAME: 0}
    row = lake.refreshed().tiles_of(mpp=2.0).row(0, named=True)
    other = shutil.copy(paths[2], tmp_path / REAL_SLIDE.name)
    size, mark = fingerprint(str(other))
    slide = {"slide_id": row["slide_id"], "uri": str(other), "bytes": size, "fingerprint": mark}
    (registered,) = lake.committer.register([slide])
    lake.committer.commit_slides([cut_slide(lake.store, lake.config, registered)])
    assert keep_scores(lake.uri).tiles[NAME] > 0
    assert verify(lake.refreshed()).ok
    assert None not in scores(lake, 2.0).values()


def test_a_damaged_score_is_found_and_filled_again(lake: Lake) -> None:
    fill_scores(lake.uri, [NAME])
    lake = lake.refreshed()
    whole = scores(lake, 0.5)
    table = lake.table(features_table(0.5))
    field = next(f.id() for f in table.lance_schema.fields() if f.name() == NAME)
    (path,) = [file.path for file in table.get_fragment(0).metadata.files if field in file.fields]
    place = Path(lake.store.path(f"{features_table(0.5)}/data/{path}"))
    data = bytearray(place.read_bytes())
    data[2] ^= 1
    place.write_bytes(data)
    verdict = verify(open_lake(lake.uri))
    assert [(one.teacher, one.mpp) for one in verdict.damage] == [(NAME, 0.5)]
    repair(open_lake(lake.uri), verdict, yes=True)
    assert keep_scores(lake.uri).tiles[NAME] > 0
    assert scores(lake, 0.5) == whole
    assert verify(lake.refreshed()).ok


# ---------------------------------------------------------------------- refused


def test_what_can_not_be_filled_is_refused_with_the_reason(lake: Lake, tmp_path: Path) -> None:
    before = lake.version
    with pytest.raises(InputError, match=r"'focus' is made from the slide while it is cut"):
        fill_scores(lake.uri, ["focus"])
    with pytest.raises(InputError, match=r"no score of tiles is called 'sharp'; there are tissue"):
        fill_scores(lake.uri, [NAME, "sharp"])
    row = lake.tiles_of(mpp=2.0).row(0, named=True)
    shard = Path(lake.store.path(row["shard"]))
    data = bytearray(shard.read_bytes())
    data[700] ^= 255
    shard.write_bytes(data)
    with pytest.raises(DamageError, match=r"at mpp 2.*is not what was written"):
        fill_scores(lake.uri, [NAME])
    assert lake.refreshed().version == before


def test_a_column_of_the_users_with_the_name_of_a_score_stays(lake: Lake) -> None:
    frame = lake.tiles(mpp=0.5).select("tile_id", pl.lit(1.0).alias(NAME)).collect()
    annotate(lake, frame, NAME)
    with pytest.raises(LakeError, match=rf"'{NAME}' is a column of annotation kind at mpp 0.5"):
        fill_scores(lake.uri, [NAME])


def test_slides_without_pixels_are_named(lake: Lake, tmp_path: Path) -> None:
    empty = create_lake(tmp_path / "imported", LakeConfig(mpps=MPPS))
    for target in (lake, empty):
        slide = {"slide_id": "imported", "uri": "imported", "bytes": 1, "fingerprint": "x"}
        (row,) = target.committer.register([slide])
        whole = cut(target, row["slide"], "imported", 3)
        grids = {mpp: replace(grid, shard=None) for mpp, grid in whole.grids.items()}
        target.committer.commit_slides([replace(whole, row={**row, **whole.row}, grids=grids)])
    filled = fill_scores(lake.uri, [NAME])
    assert filled.no_pixels == ["imported"]
    assert filled.tiles[NAME] > 0
    tiles = lake.refreshed().tiles(mpp=0.5).select("slide_id", NAME).collect()
    assert set(tiles.filter(pl.col(NAME).is_null())["slide_id"]) == {"imported"}
    assert verify(lake.refreshed()).ok
    assert fill_scores(lake.uri, [NAME]).tiles == {NAME: 0}
    with pytest.raises(InputError, match="holds no pixels, since its features were imported"):
        fill_scores(empty.uri, [NAME])


def test_a_dry_run_of_ingest_names_the_scores_that_tiles_get(lake: Lake, paths: list[Path]) -> None:
    inputs = [str(paths[0])]
    plan = dry_run(lake.uri, inputs, lake.config, {}, cores=2)
    assert plan.scores == list(slide_scores())
    fill_scores(lake.uri, [NAME])
    plan = dry_run(lake.uri, inputs, lake.config, {}, cores=2)
    assert plan.scores == [*slide_scores(), NAME]
