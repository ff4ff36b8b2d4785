"""Row ranges read in place and through Lance's file reader, against plain Lance."""

from pathlib import Path

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from lance.file import LanceFileReader, LanceFileWriter

from featurestore import DamageError, Lake, matrix, open_lake, tile_ids
from featurestore.tables.lance_flat import flat_column
from featurestore.tables.lance_rows import Ranges, RowReader
from featurestore.tables.schema import features_table
from tests.worlds.training_lake import DIMS, SIZES, add_features, feature_rows, make

REL = features_table(0.5)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("rows") / "lake")


@pytest.mark.parametrize("seed", range(20))
def test_ranges_in_any_order_are_the_rows_that_lance_reads(lake: Lake, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slides = lake.tiles_of(mpp=0.5).sample(5, shuffle=True, seed=seed).to_dicts()
    first = np.array([rng.integers(row["tiles"]) for row in slides])
    stop = [rng.integers(f + 1, row["tiles"] + 1) for f, row in zip(first, slides, strict=True)]
    ranges = Ranges(
        fragment=np.array([row["fragment"] for row in slides]),
        start=np.array([row["row_start"] for row in slides]) + first,
        rows=np.array(stop) - first,
    )
    rows = lake.row_reader(mpp=0.5).read(ranges, list(DIMS))
    live = lake.table(REL).to_table().sort_by("tile_id")
    for name, array in (("tile_id", rows.tile_id), ("x", rows.x), ("y", rows.y)):
        parts = [
            live.filter(pc.equal(live["slide"], row["slide"]))[name].to_numpy()[f:s]
            for row, f, s in zip(slides, first, stop, strict=True)
        ]
        np.testing.assert_array_equal(array, np.concatenate(parts))
    place = np.searchsorted(live["tile_id"].to_numpy(), rows.tile_id)
    for teacher, features in rows.by_teacher.items():
        np.testing.assert_array_equal(features, matrix(live[teacher])[place])


def test_rows_of_a_fragment_with_deleted_ones_before_are_found_where_they_lie(lake: Lake) -> None:
    fragment = lake.table(REL).get_fragment(0)
    assert fragment.num_deletions == 11
    row = lake.tiles_of(mpp=0.5, slide_ids=["b"]).row(0, named=True)
    assert (row["fragment"], row["row_start"]) == (0, 11)
    frame = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == "b").collect()
    bag = lake.bag("b", list(DIMS), mpp=0.5)
    np.testing.assert_array_equal(bag.tile_id, frame["tile_id"].to_numpy())
    for teacher, features in bag.by_teacher.items():
        np.testing.assert_array_equal(features, frame[teacher].to_numpy())


def layout_of(lake: Lake, teacher: str, fragment: int = 0) -> list[int]:
    """Return where the pages of a column begin; -1 where they are not plain."""
    flat = lake.row_reader(mpp=0.5)._layout(fragment, teacher)
    return [] if flat is None else flat.positions.tolist()


def test_plain_pages_are_read_in_place_and_no_others(lake: Lake) -> None:
    """Says so when another Lance describes its pages otherwise: all would be read by Lance then."""
    assert layout_of(lake, "plain", 1) == [0]
    assert layout_of(lake, "packed", 1) == [-1]
    # The rows of the first scan are null in the first fragment: its page is not plain.
    assert layout_of(lake, "plain", 0) == [-1]


def test_ranges_over_many_pages_some_with_nulls(tmp_path: Path) -> None:
    """Three plain pages and one with nulls, as a column of slides with and without features."""
    dim, rows = 128, 1000
    element = pa.field("item", pa.float16(), nullable=True)
    schema = pa.schema([pa.field("t", pa.list_(element, dim))])
    features = np.random.default_rng(0).normal(size=(4 * rows, dim)).astype(np.float16)
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), type=schema.field("t").type)
        for part in np.split(features, 4)
    ]
    arrays[2] = pa.concat_arrays([arrays[2][:-1], pa.nulls(1, arrays[2].type)])
    path = str(tmp_path / "t.lance")
    writers = {"max_page_bytes": 2 * dim * rows, "data_cache_bytes": 1}
    with LanceFileWriter(path, schema, version="2.2", **writers) as writer:
        for array in arrays:
            writer.write_batch(pa.record_batch([array], schema=schema))
    flat = flat_column(path, LanceFileReader(path).metadata().columns[0].pages, dim)
    assert flat is not None
    assert len(flat.ends) >= 4
    assert (flat.positions >= 0).sum() >= 3
    for start, count in ((0, 2000), (990, 20), (1999, 1), (3000, 1000), (3999, 1)):
        into = np.zeros((count + 3, dim), np.float16)
        assert flat.read([(start, count, 3)], into)
        np.testing.assert_array_equal(into[3:], features[start : start + count])
    assert not flat.read([(0, 10, 0), (1995, 10, 10)], np.zeros((20, dim), np.float16))
    with pytest.raises(DamageError, match="has no row 4000"):
        flat.read([(3999, 2, 0)], np.zeros((2, dim), np.float16))


def test_a_column_in_a_file_with_others_is_read_in_place(lake: Lake, tmp_path: Path) -> None:
    """Compaction puts all columns of a fragment into one file."""
    whole = lake.table(REL).to_table()
    dense = lance.write_dataset(whole, tmp_path / "t.lance", data_storage_version="2.2")
    reader = RowReader(open_lake(lake.uri).store, "unused", dense)
    reader.store = type(lake.store)(tmp_path)
    reader._rel = "t.lance"
    flat = reader._layout(0, "plain")
    assert flat is not None
    assert (flat.positions >= 0).all()
    ranges = Ranges(fragment=np.array([0]), start=np.array([3]), rows=np.array([150]))
    rows = reader.read(ranges, ["plain"])
    np.testing.assert_array_equal(rows.by_teacher["plain"], matrix(whole["plain"])[3:153])
    np.testing.assert_array_equal(rows.tile_id, whole["tile_id"].to_numpy()[3:153])


def data_file(lake: Lake, column: str, fragment: int) -> Path:
    files = lake.table(REL).get_fragment(fragment).metadata.files
    field = {f.name(): f.id() for f in lake.table(REL).lance_schema.fields()}[column]
    (path,) = (f.path for f in files if field in f.fields)
    return Path(lake.store.path(f"{REL}/data/{path}"))


@pytest.mark.parametrize("column", ["plain", "packed", "tile_id"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_data_file_is_told(tmp_path: Path, column: str, damage: str) -> None:
    lake = make(tmp_path / "lake")
    path = data_file(lake, column, 1)
    file_bytes = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(file_bytes[: len(file_bytes) // 2])
    with pytest.raises(DamageError, match=r"features/mpp0\.5\.lance, fragment 1"):
        lake.bag("e", list(DIMS), mpp=0.5)


def test_a_file_cut_after_it_was_opened_is_told(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake")
    lake.bag("e", "plain", mpp=0.5)
    path = data_file(lake, "plain", 1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DamageError, match="ends before byte 32768: it was cut"):
        lake.bag("e", "plain", mpp=0.5)


def test_features_that_are_null_in_the_table_are_damage(tmp_path: Path) -> None:
    """The catalog names them: a reader must not make numbers of nulls."""
    lake = make(tmp_path / "lake", sizes={"a": 4, "b": 6, "c": 5})
    add_features(lake, {"late": 128, "tiny": 6}, without=["b"])
    lake = lake.refreshed()
    row = lake.tiles_of(mpp=0.5, slide_ids=["b"]).row(0, named=True)
    fragment, start, rows = (np.array([row[k]]) for k in ("fragment", "row_start", "tiles"))
    ranges = Ranges(fragment=fragment, start=start, rows=rows)
    for teacher in ("late", "tiny"):
        with pytest.raises(DamageError, match="6 of 6 features are missing"):
            lake.row_reader(mpp=0.5).read(ranges, [teacher])
        bag = lake.bag("c", teacher, mpp=0.5)
        np.testing.assert_array_equal(
            bag.features, feature_rows(bag.tile_id, bag.features.shape[1])
        )


def test_sizes_are_what_the_lake_holds(lake: Lake) -> None:
    rows = lake.tiles_of(mpp=0.5)
    assert dict(rows.select("slide_id", "tiles").iter_rows()) == SIZES
    assert lake.bag("d", "packed", mpp=0.5).tile_id.tolist() == tile_ids(3, 0.5, [0], [0]).tolist()
