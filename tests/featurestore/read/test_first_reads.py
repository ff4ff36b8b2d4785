"""What was damaged on disk is refused by every reader, and told by slide, teacher and mpp."""

import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from downstream.retrieval.search_query import find_query, pooled_features
from downstream.run.feature_bags import PatientBag, PatientBags
from featurestore import (
    AccessError,
    DamageError,
    Lake,
    LakeError,
    ShardReader,
    create_lake,
    fit_stats,
    open_lake,
    verify,
)
from featurestore.interop.lake_tiles import tile_places
from featurestore.read.selection import Selection
from featurestore.read.torch_bags import Bags, TorchBag
from featurestore.tables.lance_flat import FlatColumn
from featurestore.tables.schema import features_table
from ingest.teachers.work.tile_feed import tile_feed
from ingest.teachers.work.units import Unit
from tests.worlds.training_lake import CONFIG, DIMS, add_features, cut, make, register

PLAIN, PACKED = DIMS  # read in place, and by Lance's file reader
SLIDE, OTHER = "e", "c"  # both in the second fragment
MPP = 0.5
COMMAND = "run slidelake verify, then slidelake repair"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Return a lake of six slides with two teachers. Not to be changed."""
    return make(tmp_path_factory.mktemp("reads") / "lake")


@pytest.fixture
def copied(whole: Lake, tmp_path: Path) -> Lake:
    """Return a copy of the lake that a test may damage."""
    shutil.copytree(whole.uri, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def flip_in(lake: Lake, stored_bytes: bytes, column: str, fragment: int = 1) -> None:
    """Flip a bit of stored bytes in the data file of a column in a fragment."""
    table = lake.table(features_table(MPP))
    field = {f.name(): f.id() for f in table.lance_schema.fields()}[column]
    (path,) = (f.path for f in table.get_fragment(fragment).metadata.files if field in f.fields)
    file = Path(lake.store.path(f"{features_table(MPP)}/data/{path}"))
    file_bytes = bytearray(file.read_bytes())
    file_bytes[file_bytes.index(stored_bytes) + len(stored_bytes) // 2] ^= 4
    file.write_bytes(file_bytes)


def flip_features(lake: Lake, teacher: str) -> None:
    """Flip a bit of the features of the tenth tile of a slide."""
    flip_in(lake, open_lake(lake.uri).bag(SLIDE, teacher, mpp=MPP).features[9].tobytes(), teacher)


def flip_tiles(lake: Lake) -> None:
    """Flip a bit of the left edges of a slide's tiles, which no reader could notice."""
    flip_in(lake, open_lake(lake.uri).bag(SLIDE, PLAIN, mpp=MPP).x[38:90].tobytes(), "x")


def streamed(lake: Lake, teacher: str, **more: Any) -> None:  # noqa: ANN401
    for _ in lake.stream(teacher, mpp=MPP, batch_tiles=8, block_tiles=4, **more):
        pass


def every(bags: Bags) -> list[TorchBag]:
    return [bags[at] for at in range(len(bags))]


def of_patient(lake: Lake, teacher: str) -> PatientBag:
    return PatientBags(lake, [[OTHER, SLIDE]], teacher, mpps=[MPP])[0]


def placed(lake: Lake, _: str) -> None:
    lake.to_anndata(SLIDE, [], mpp=MPP)


def exported(lake: Lake, _: str) -> None:
    tile_places(lake, lake.tiles_of(mpp=MPP, slide_ids=[SLIDE]).row(0, named=True))


READERS: dict[str, Callable[[Lake, str], object]] = {
    "bag": lambda lake, teacher: lake.bag(SLIDE, teacher, mpp=MPP),
    "bags of slides": lambda lake, teacher: every(lake.bags(teacher, mpp=MPP)),
    "bags of patients": lambda lake, t: every(
        lake.bags(["plain", "packed"], mpp=MPP, by="patient")
    ),
    "bags of mil": of_patient,
    "stream": streamed,
    "stream in order": lambda lake, t: streamed(lake, t, shuffle=False, threads=1),
    "statistics": lambda lake, t: fit_stats(lake, t, mpp=MPP, slide_ids=[OTHER, SLIDE]),
    "search": lambda lake, teacher: find_query(lake, SLIDE, teacher, mpp=MPP),
    "search of slides": lambda lake, t: pooled_features(lake, [OTHER, SLIDE], t, mpp=MPP),
    "means of slides": lambda lake, teacher: lake.slide_means(teacher, mpp=MPP),
    "anndata": lambda lake, teacher: lake.to_anndata(SLIDE, teacher, mpp=MPP),
    "webdataset": lambda lake, teacher: list(lake.webdataset(teacher, mpp=MPP, shuffle=False)),
    "webdataset, shuffled": lambda lake, teacher: list(lake.webdataset(teacher, mpp=MPP)),
}


@pytest.mark.parametrize("teacher", [PLAIN, PACKED])
def test_every_reader_refuses_damaged_features(copied: Lake, teacher: str) -> None:
    flip_features(copied, teacher)
    text = f"slide {SLIDE} at mpp 0.5: features of '{teacher}' are not what was written (checksum)"
    for name, read in READERS.items():
        with pytest.raises(DamageError) as error:
            read(open_lake(copied.uri), teacher)
        assert str(error.value) == f"{text}; {COMMAND}", name
    lake = open_lake(copied.uri)
    assert lake.bag(OTHER, teacher, mpp=MPP).features.shape[0] == 5
    streamed(lake, teacher, slide_ids=["a", "b", "c"])
    other = PACKED if teacher == PLAIN else PLAIN
    assert lake.bag(SLIDE, other, mpp=MPP).features.shape[0] == 90


def test_each_mpp_is_compared_by_itself_and_fine_tiles_too(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", CONFIG)
    cells = {MPP: np.argwhere(np.ones((8, 8))), 1.0: np.argwhere(np.ones((4, 4)))}
    lake.committer.commit_slides([cut(lake, register(lake, ["a"])["a"], "a", cells)])
    for mpp in CONFIG.mpps:
        add_features(lake, {PLAIN: DIMS[PLAIN]}, mpp=mpp)
    lake = lake.refreshed()
    stored = open_lake(lake.uri).bag("a", PLAIN, mpp=MPP).features[9].tobytes()
    flip_in(lake, stored, PLAIN, fragment=0)
    assert lake.bag("a", PLAIN, mpp=1.0).features.shape[0] == 16
    text = f"slide a at mpp 0.5: features of '{PLAIN}' are not what was written"
    with pytest.raises(DamageError, match=text):
        lake.bag("a", PLAIN, mpp=MPP)
    with pytest.raises(DamageError, match=text):
        list(open_lake(lake.uri).stream([], mpp=1.0, under={MPP: PLAIN}))


def test_rows_of_another_slide_are_refused(whole: Lake) -> None:
    rows = whole.tiles_of(mpp=MPP, slide_ids=[SLIDE])
    other = Selection(rows.with_columns(slide_id=pl.lit("q")), MPP)
    with pytest.raises(DamageError, match=f"slide q at mpp 0.5: .*rows are of .'{SLIDE}'."):
        open_lake(whole.uri).first_reads.compare(whole.row_reader(mpp=MPP), other, [0], [])


def test_every_reader_refuses_damaged_tiles(copied: Lake) -> None:
    flip_tiles(copied)
    text = f"slide {SLIDE} at mpp 0.5: its tiles' rows are not what was written (checksum)"
    for name, read in {**READERS, "export": exported, "places alone": placed}.items():
        with pytest.raises(DamageError) as error:
            read(open_lake(copied.uri), PLAIN)
        assert str(error.value) == f"{text}; {COMMAND}", name


def test_verify_names_the_slide_whose_places_differ(copied: Lake) -> None:
    flip_tiles(copied)
    (damage,) = verify(open_lake(copied.uri)).damage
    assert (damage.slide, damage.mpp, damage.teacher) == (SLIDE, MPP, None)
    assert damage.description == "checksum of its tiles' rows differs"


@pytest.mark.parametrize("column", [PLAIN, PACKED, "tile_id"])
@pytest.mark.parametrize("damage", ["cut", "zero", "gone"])
def test_a_data_file_that_cannot_be_read_names_the_slide(
    copied: Lake, column: str, damage: str
) -> None:
    table = copied.table(features_table(MPP))
    field = {f.name(): f.id() for f in table.lance_schema.fields()}[column]
    (path,) = (f.path for f in table.get_fragment(1).metadata.files if field in f.fields)
    file = Path(copied.store.path(f"{features_table(MPP)}/data/{path}"))
    file_bytes = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(
            file_bytes[: len(file_bytes) // 2] if damage == "cut" else bytes(len(file_bytes))
        )
    teacher = PLAIN if column == "tile_id" else column
    for name, read in READERS.items():
        with pytest.raises(DamageError) as error:
            read(open_lake(copied.uri), teacher)
        text = str(error.value)
        assert "at mpp 0.5: " in text, name
        assert text.endswith(COMMAND), name
        assert not [word for word in (".rs", "Panic", "\n") if word in text], name


def test_check_none_compares_nothing(copied: Lake) -> None:
    right = copied.bag(SLIDE, PLAIN, mpp=MPP)
    flip_features(copied, PLAIN)
    unchecked = open_lake(copied.uri, check=None)
    for lake in (unchecked, unchecked.refreshed(), pickle.loads(pickle.dumps(unchecked))):
        bag = lake.bag(SLIDE, PLAIN, mpp=MPP)
        assert (bag.features != right.features).sum() == 1
        streamed(lake, PLAIN)
    with pytest.raises(DamageError):
        pickle.loads(pickle.dumps(open_lake(copied.uri))).bag(SLIDE, PLAIN, mpp=MPP)
    with pytest.raises(LakeError, match="check='all' given; allowed: 'first-read', or None"):
        open_lake(copied.uri, check="all")  # type: ignore[arg-type]


def test_a_slide_is_compared_once(whole: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by eight threads at once, and by a stream that visits it in many blocks."""
    lake, sums = open_lake(whole.uri), list[str]()

    def counted(name: str) -> Callable[..., int]:
        from featurestore.read import first_reads

        work = getattr(first_reads, name)

        def count(*arguments: object) -> int:
            sums.append(name)
            time.sleep(0.01)  # long enough that the other threads meet it
            return int(work(*arguments))

        return count

    for name in ("tiles_sum", "features_sum", "features_crc32"):
        monkeypatch.setattr(f"featurestore.read.first_reads.{name}", counted(name))
    streamed(lake, PLAIN, threads=8)
    assert (sums.count("tiles_sum"), sums.count("features_sum")) == (6, 6)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: lake.bag(SLIDE, PACKED, mpp=MPP), range(32)))
    streamed(lake, PLAIN)
    assert sums.count("tiles_sum") == 6
    assert sums.count("features_crc32") == 6 + 1


def test_missing_rights_are_not_told_as_damage(
    whole: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FlatColumn, "read", refuse)
    with pytest.raises(AccessError, match=f"slide|{features_table(MPP)}.*: Permission denied"):
        open_lake(whole.uri).bag(SLIDE, PLAIN, mpp=MPP)


def test_sums_are_those_of_the_catalog_whatever_was_read_before(whole: Lake) -> None:
    """Numbers are what they were: comparing changes nothing of what is read."""
    for slide in whole.tiles_of(mpp=MPP)["slide_id"]:
        one, two = (
            open_lake(whole.uri, check=check).bag(slide, list(DIMS), mpp=MPP)
            for check in ("first-read", None)
        )
        np.testing.assert_array_equal(one.tile_id, two.tile_id)
        for teacher in DIMS:
            np.testing.assert_array_equal(one.by_teacher[teacher], two.by_teacher[teacher])
    assert whole.catalog().filter(pl.col("teacher").is_null()).collect().height == 6


def test_damaged_pixels_are_refused_by_streams_and_extraction(copied: Lake) -> None:
    """One flipped bit of a JPEG that still decodes is another picture, and other features."""
    row = copied.tiles_of(mpp=MPP, slide_ids=[SLIDE]).row(0, named=True)
    path = Path(copied.store.path(row["shard"]))
    file_bytes = bytearray(path.read_bytes())
    with ShardReader.of(copied.store, row) as shard:
        file_bytes[file_bytes.index(shard.jpeg(50)) + 300] ^= 1
    path.write_bytes(file_bytes)
    text = rf"slide {SLIDE} at mpp 0.5: shard {row['shard']} is not what was written"
    with pytest.raises(DamageError, match=text):
        streamed(copied, PLAIN, pixels="jpeg")
    streamed(copied, PLAIN)
    unit = Unit(
        mpp=MPP,
        fragment=row["fragment"],
        fields=(),
        slides=(row,),
        rows=row["tiles"],
        tile_px=copied.config.tile_px,
    )
    feed = tile_feed(copied.store, unit, [unit.view_of({})], threads=1, batch_tiles=8)
    with pytest.raises(DamageError, match=text), feed as batches:
        next(batches)
    streamed(open_lake(copied.uri, check=None), PLAIN, pixels="jpeg")
