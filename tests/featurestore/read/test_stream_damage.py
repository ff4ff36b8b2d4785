"""Streams over damaged shards and incomplete lakes: errors name the fault, and nothing hangs."""

import io
import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import polars as pl
import pytest
from PIL import Image

from featurestore import DamageError, Lake, LakeError, ShardWriter, Store, open_lake
from featurestore.tables.schema import CATALOG
from tests.featurestore.read.test_stream import SMALL, readers
from tests.worlds.training_lake import (
    DIMS,
    add_features,
    cut,
    feature_rows,
    jpeg_of,
    make,
    register,
    row_of_cells,
)


def shard_of(lake: Lake, slide_id: str) -> tuple[Path, list[int]]:
    row = lake.tiles_of(mpp=0.5, slide_ids=[slide_id]).row(0, named=True)
    ids = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == slide_id).select("tile_id").collect()
    return Path(lake.store.path(row["shard"])), ids["tile_id"].sort().to_list()


def rewrite(lake: Lake, path: Path, jpegs: dict[int, bytes]) -> None:
    with ShardWriter(Store(lake.uri), str(path.relative_to(lake.uri))) as writer:
        for key, jpeg in jpegs.items():
            writer.add(key, jpeg, {})


def without_index_checksums(lake: Lake) -> Lake:
    """Return the lake as an early release left it, whose catalog names no checksums of indexes."""
    lance.dataset(f"{lake.uri}/{CATALOG}").drop_columns(["index_crc32"])
    return open_lake(lake.uri, check=None)


def drained(lake: Lake, **changes: Any) -> None:  # noqa: ANN401
    for _ in lake.stream("packed", **{**SMALL, "pixels": "uint8", **changes}):
        pass


@pytest.mark.parametrize("threads", [1, 3])
def test_a_cut_shard_names_slide_and_tile(tmp_path: Path, threads: int) -> None:
    lake = make(tmp_path / "lake")
    path, ids = shard_of(lake, "b")
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(DamageError, match=r"slide b at mpp 0.5: shard .* is not what was written"):
        drained(lake, threads=threads)
    lake = open_lake(lake.uri, check=None)
    with pytest.raises(DamageError, match=r"slide b: shard .* at tile \d+") as error:
        drained(lake, threads=threads)
    assert int(re.findall(r"\d+", str(error.value))[-1]) in ids[-4:]
    assert readers() == 0
    drained(lake, pixels="none")
    path.unlink()
    with pytest.raises(DamageError, match=r"slide b: shard .* can't be read"):
        drained(lake, threads=threads)


def test_a_shard_of_other_tiles_names_slide_and_tile(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake")
    path, ids = shard_of(lake, "b")
    rewrite(lake, path, {key: jpeg_of(key) for key in ids if key != ids[7]})
    with pytest.raises(DamageError, match=r"slide b: .* its index is not the one that was written"):
        drained(open_lake(lake.uri, check=None))
    lake = without_index_checksums(lake)
    with pytest.raises(DamageError, match=rf"slide b: .* there is no {ids[7]}"):
        drained(lake)


@pytest.mark.parametrize("damage", ["shifted", "reversed"])
def test_an_index_that_points_to_another_tile_is_noticed(tmp_path: Path, damage: str) -> None:
    """Keys in order and JPEGs whole, but the wrong ones: the name in the tar gives it away."""
    lake = without_index_checksums(make(tmp_path / "lake"))
    path, ids = shard_of(lake, "b")
    index = pl.read_ipc(io.BytesIO(path.with_suffix(".idx").read_bytes()))
    place = pl.col("offset", "size").shift(-1) if damage == "shifted" else pl.all().reverse()
    wrong = index.with_columns(place).drop_nulls()
    wrong = wrong.with_columns(tile_id=pl.Series(ids[: wrong.height]))
    wrong.write_ipc(path.with_suffix(".idx"), compat_level=pl.CompatLevel.oldest())
    message = "is damaged at tile" if damage == "shifted" else "its index is not in the order"
    with pytest.raises(DamageError, match=rf"slide b: shard .* {message}"):
        drained(lake)


@pytest.mark.parametrize("damage", ["broken", "other size"])
def test_a_tile_that_cannot_be_decoded_is_named(tmp_path: Path, damage: str) -> None:
    lake = without_index_checksums(make(tmp_path / "lake"))
    path, ids = shard_of(lake, "b")
    jpegs = {key: jpeg_of(key) for key in ids}
    if damage == "broken":
        jpegs[ids[3]] = jpegs[ids[3]][:60]
    else:
        picture = io.BytesIO()
        Image.new("RGB", (16, 16)).save(picture, "JPEG")
        jpegs[ids[3]] = picture.getvalue()
    rewrite(lake, path, jpegs)
    message = "can't be decoded" if damage == "broken" else "is 16 x 16 px, not 32"
    with pytest.raises(DamageError, match=rf"slide b: tile {ids[3]} {message}"):
        drained(lake)


def test_a_catalog_that_names_other_rows_is_damage(tmp_path: Path) -> None:
    """A table may change behind the lake's back: keys reveal it, not positions."""
    lake = make(tmp_path / "lake")
    stream = lake.stream("packed", **SMALL)
    stream._selection._start = stream._selection._start[::-1].copy()
    with pytest.raises(DamageError, match=r"slide \w at mpp 0\.5: rows are not those|its tiles"):
        list(stream)


def test_slides_without_features_or_pixels_are_named_before_training(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20, "c": 30})
    add_features(lake, {"late": 6}, without=["c"])
    numbers = register(lake, ["bare", "none"])
    bare = cut(lake, numbers["bare"], "bare", {0.5: row_of_cells(4)}, pixels=False)
    empty = cut(lake, numbers["none"], "none", {0.5: row_of_cells(0)})
    lake.committer.commit_slides([bare, empty])
    add_features(lake, {"packed": 6})
    lake = lake.refreshed()
    with pytest.raises(LakeError, match=r"2 of 4 slides have no features of 'late'.*: c, bare"):
        lake.stream(["packed", "late"], mpp=0.5)
    with pytest.raises(LakeError, match="1 slide has features but no pixels: bare"):
        lake.stream("packed", mpp=0.5, pixels="jpeg")
    with pytest.raises(LakeError, match="there are: plain, packed, late"):
        lake.stream("uni2", mpp=0.5)
    with pytest.raises(LakeError, match=r"not in .* at mpp 0\.5: nowhere"):
        lake.stream("packed", mpp=0.5, slide_ids=["a", "nowhere"])
    with pytest.raises(LakeError, match="0 tiles"):
        lake.stream("packed", mpp=0.5, slide_ids=["none"])
    assert lake.stream("packed", mpp=0.5).tiles == 63
    assert lake.stream(["packed", "late"], mpp=0.5, slide_ids=["a", "b", "none"]).tiles == 29


def test_settings_are_checked(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    with pytest.raises(LakeError, match="allowed: none, jpeg, uint8"):
        lake.stream("packed", mpp=0.5, pixels="rgb")  # type: ignore[arg-type]
    with pytest.raises(LakeError, match="each once"):
        lake.stream(["packed", "packed"], mpp=0.5)
    with pytest.raises(LakeError, match="threads=0"):
        lake.stream("packed", mpp=0.5, threads=0)
    with pytest.raises(LakeError, match=r"no tiles at mpp 4\.0"):
        lake.stream("packed", mpp=4.0)


def test_an_old_version_streams_what_it_had(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    new = register(lake, ["c"])["c"]
    lake.committer.commit_slides([cut(lake, new, "c", {0.5: row_of_cells(8)})])
    add_features(lake, DIMS)
    assert open_lake(lake.uri, version=lake.version).stream("packed", mpp=0.5).tiles == 29
    assert open_lake(lake.uri).stream("packed", mpp=0.5).tiles == 37
    stream = lake.stream("plain", mpp=0.5)
    for batch in stream:
        expected = feature_rows(batch.tile_id, DIMS["plain"])
        np.testing.assert_array_equal(batch.features["plain"], expected)
