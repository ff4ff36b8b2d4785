"""An extract in units smaller than a fragment: the same columns, whatever is killed, once."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lance
import numpy as np
import polars as pl
import pytest

from featurestore import ColumnWriter, Lake, LakeConfig, Store, copy_lake, open_lake, vacuum, verify
from featurestore.tables import PartWriter
from ingest.teachers.extractor import Extractor
from ingest.teachers.ray_extract import ExtractResult, extract
from ingest.teachers.work.unit_queue import SIZES, UnitSizes
from ingest.teachers.work.units import Unit
from ingest.tile_jpeg import decode_tile, decode_tiles, encode_tile
from tests.conftest import ROOT
from tests.worlds.painted_lake import painted_lake
from tests.worlds.s3 import Bucket

OWN = str(ROOT / "examples" / "own_encoder.py")
COLUMN = "colour-moments"
#: Slides have 24 tiles: units of 16 and 8.
SMALL = UnitSizes(first=10, least=10, most=10, grain=8)


class KilledError(BaseException):
    """A kill: nothing that handles errors handles it."""


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Have an extract run in this process, though another test's Ray may be up in it."""
    for module in ("ingest.teachers.ray_extract", "cluster.local.local_map"):
        patch.setattr(f"{module}.joins_cluster", lambda _: False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake whose column was computed in one unit a fragment."""
    path = tmp_path_factory.mktemp("whole") / "lake"
    painted_lake(path, patients=3, thumbnail=False)
    shutil.copytree(path, path.with_name("bare"))
    assert run(path).teachers[COLUMN]["tiles"] == 96
    assert not (path / "parts").exists()
    return path


@pytest.fixture
def bare(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the same lake without the column; units are small."""
    monkeypatch.setitem(SIZES, "cpu", SMALL)
    without_ray(monkeypatch)
    shutil.copytree(whole.with_name("bare"), tmp_path / "lake")
    return tmp_path / "lake"


def run(path: Path) -> ExtractResult:
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        return extract(str(path), [OWN])


def column_of(lake: Lake) -> dict[str, Any]:
    """Return checksums of the catalog and bytes of the bags, by slide."""
    rows = lake.catalog().filter(pl.col("teacher") == COLUMN).collect()
    bags = {row["slide_id"]: row["crc32"] for row in rows.iter_rows(named=True)}
    assert len(bags) == rows.height
    return {
        slide: (crc, lake.bag(slide, COLUMN, mpp=0.5).features.tobytes())
        for slide, crc in bags.items()
    }


def check_whole(path: Path, whole: Path) -> None:
    lake = open_lake(path)
    assert column_of(lake) == column_of(open_lake(whole))
    assert verify(lake).ok


def test_many_units_make_the_column_that_one_unit_makes(bare: Path, whole: Path) -> None:
    seen: list[tuple[int, int]] = []
    fill = Extractor._fill

    def noting(self: Extractor, outcome: Any, teachers: Any) -> None:  # noqa: ANN401
        seen.append((outcome.unit.first, outcome.unit.end))
        fill(self, outcome, teachers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "_fill", noting)
        extracted = extract(str(bare), [OWN])
    assert extracted.teachers[COLUMN]["tiles"] == 96
    assert not extracted.failed
    assert seen == [(0, 16), (16, 24), (24, 40), (40, 48), (48, 64), (64, 72), (72, 88), (88, 96)]
    check_whole(bare, whole)
    assert not list(bare.glob("parts/*"))


def test_chosen_tiles_are_the_same_in_many_units(bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "other")
    choice = {"where": "grid_x % 3 < 2 AND grid_y <> 1", "share": 0.6}
    extract(str(bare), [OWN], **choice)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "cpu", UnitSizes(first=512, least=256, most=512, grain=32))
        extract(str(tmp_path / "other"), [OWN], **choice)  # type: ignore[arg-type]
    check_whole(bare, tmp_path / "other")


@contextmanager
def killed_at(point: int) -> Iterator[list[int]]:
    """Die before (even points) or right after (odd ones) a step that changes files.

    What a kill leaves is left: unfinished parts are not removed.
    """
    count = [0]

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            count[0] += 1
            here = count[0]
            if 2 * here - 2 == point:
                raise KilledError
            done = step(*args, **kwargs)
            if 2 * here - 1 == point:
                raise KilledError
            return done

        return stepping

    steps = [
        (PartWriter, "append"),
        (Store, "publish"),
        (ColumnWriter, "finish"),
        (lance.LanceDataset, "commit"),
        (Store, "remove"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in steps:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        patch.setattr(PartWriter, "discard", lambda self: self._file.close())
        yield count


def check_killed_at(point: int, bare: Path, whole: Path, folder: Path) -> bool:
    """Kill an extract at a point, and let another end the work; whether there was such a point."""
    path = folder / f"lake{point}"
    shutil.copytree(bare, path)
    with killed_at(point):
        try:
            extract(str(path), [OWN])
        except KilledError:
            killed = True
        else:
            killed = False
    assert verify(open_lake(path)).ok, point
    assert not extract(str(path), [OWN]).failed
    check_whole(path, whole)
    vacuum(open_lake(path))
    check_whole(path, whole)
    assert not list(path.glob("parts/*"))
    shutil.rmtree(path)
    return killed


def test_killed_at_some_steps_it_goes_on(bare: Path, whole: Path, tmp_path: Path) -> None:
    assert all(check_killed_at(point, bare, whole, tmp_path) for point in (1, 9, 38))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_step_it_goes_on(bare: Path, whole: Path, tmp_path: Path) -> None:
    for point in itertools.count():
        if not check_killed_at(point, bare, whole, tmp_path):
            break
    assert point > 2 * 8 * 2  # a step in each unit, and its end


def test_a_resumed_run_computes_only_what_is_missing(bare: Path, whole: Path) -> None:
    with killed_at(9), pytest.raises(KilledError):
        extract(str(bare), [OWN])
    parts = len(list(bare.glob("parts/*.part")))
    assert 0 < parts < 8
    extracted = extract(str(bare), [OWN])
    assert 0 < extracted.teachers[COLUMN]["tiles"] <= 96 - 8 * parts
    check_whole(bare, whole)


def test_a_damaged_part_of_an_earlier_run_is_computed_again(bare: Path, whole: Path) -> None:
    with killed_at(9), pytest.raises(KilledError):
        extract(str(bare), [OWN])
    first, *_ = sorted(bare.glob("parts/*.part"))
    content = bytearray(first.read_bytes())
    content[3] ^= 255
    first.write_bytes(content)
    assert not extract(str(bare), [OWN]).failed
    check_whole(bare, whole)


def test_a_unit_that_fails_fails_its_fragment_once(bare: Path) -> None:
    shard = sorted(bare.glob("tiles/mpp0.5/*.tar"))[1]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    extracted = extract(str(bare), [OWN])
    (failure,) = extracted.failed
    assert "checksum" in failure["reason"]
    assert failure["slide"].count(",") == 3  # all four slides of the fragment lack the column
    assert not column_of(open_lake(bare))


@pytest.mark.slow
def test_units_in_a_bucket(bare: Path, whole: Path, bucket: Bucket) -> None:
    """Killed and gone on with on S3, where parts are objects."""
    copy_lake(str(bare), bucket.uri)
    with killed_at(9), pytest.raises(KilledError):
        extract(bucket.uri, [OWN])
    assert open_lake(bucket.uri).store.names("parts")
    assert not extract(bucket.uri, [OWN]).failed
    lake = open_lake(bucket.uri)
    assert column_of(lake) == column_of(open_lake(whole))
    assert not lake.store.names("parts")


@pytest.mark.slow
def test_a_slide_in_two_units_is_fetched_in_two_parts(
    bare: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each unit reads the bytes of its own tiles, by one request."""
    copy_lake(str(bare), bucket.uri)
    lake = open_lake(bucket.uri)
    ranges: list[tuple[int, int]] = []
    read = Store.read_range

    def noting(self: Store, rel: str, start: int, size: int) -> bytes:
        ranges.append((start, size))
        return read(self, rel, start, size)

    monkeypatch.setattr(Store, "read_range", noting)
    row = lake.tiles_of(mpp=0.5).sort("row_start").row(0, named=True)
    from ingest.teachers.work.tile_feed import tile_feed

    pixels = []
    for first, stop in ((0, 16), (16, 24)):
        unit = Unit(
            mpp=0.5,
            fragment=row["fragment"],
            fields=(),
            slides=(row,),
            rows=96,
            tile_px=256,
            first=first,
            stop=stop,
        )
        view = unit.view_of({})
        with tile_feed(lake.store, unit, [view], threads=2, batch_tiles=4) as feed:
            pixels += [seen[view].pixels for _, seen in feed]
    assert sum(len(tiles) for tiles in pixels) == 24
    assert len(ranges) == 2
    assert ranges[0][0] + ranges[0][1] <= ranges[1][0]


def test_tiles_are_decoded_as_one_by_one() -> None:
    config = LakeConfig()
    chance = np.random.default_rng(0)
    tiles = [chance.integers(0, 255, (64, 48, 3), np.uint8) for _ in range(3)]
    jpegs = [encode_tile(tile, config) for tile in tiles]
    views = [memoryview(jpeg) for jpeg in jpegs]
    np.testing.assert_array_equal(decode_tiles(views), np.stack(list(map(decode_tile, jpegs))))
    for other in (tiles[0][:32], np.concatenate([tiles[0], tiles[0]])):
        with pytest.raises(ValueError, match="a tile has 48 x"):
            decode_tiles([*jpegs, encode_tile(np.ascontiguousarray(other), config)])
