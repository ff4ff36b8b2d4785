"""A lake written by hand, without slides: what workers would return, and a lake of two slides."""

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore import (
    ColumnFile,
    ColumnWriter,
    GridCut,
    Lake,
    ShardWriter,
    SlideCut,
    tile_ids,
    tiles_table,
)
from featurestore.tables.schema import features_table, shard_path

JPEG = b"\xff\xd8 not really"

Float32Array = npt.NDArray[np.float32]


def cut(lake: Lake, slide: int, slide_id: str, tiles: int, mark: str = "test") -> SlideCut:
    """Return a worker's result for a slide of one row of tiles; another mark is a new scan."""
    grids = {}
    for mpp in lake.config.mpps:
        at = np.arange(tiles)
        ids = tile_ids(slide, mpp, np.zeros_like(at), at)
        with ShardWriter(lake.store, shard_path(mpp, slide, mark)) as writer:
            for key in ids.tolist():
                writer.add(key, JPEG, {"slide_id": slide_id})
        assert writer.shard is not None
        table = tiles_table(
            mpp,
            256,
            {
                "tile_id": ids,
                "slide": np.full(tiles, slide, np.int32),
                "slide_id": [slide_id] * tiles,
                "grid_y": np.zeros(tiles, np.int32),
                "grid_x": at.astype(np.int32),
                "y": np.zeros(tiles, np.int32),
                "x": (at * 256).astype(np.int32),
                "tissue": np.ones(tiles, np.float32),
            },
        )
        grids[mpp] = GridCut(
            tiles=table,
            shard=writer.shard,
            effective_mpp=mpp,
            tile_px_level0=256,
            grid_px_level0=256,
            grid_width=tiles,
            grid_height=1,
        )
    row = {"slide": slide, "slide_id": slide_id, "uri": f"{slide_id}.svs", "fingerprint": mark}
    return SlideCut(row=row, grids=grids)


def column(lake: Lake, values: np.ndarray, mpp: float = 0.5, teacher: str = "t") -> ColumnFile:
    """A teacher's column of the only fragment, as a worker writes it."""
    field = lake.committer.add_teacher(mpp, teacher, values.shape[1], {"weights": "1"})
    writer = ColumnWriter(lake.store, mpp, field, 0)
    start = 0
    for row in lake.refreshed().tiles_of(mpp=mpp).iter_rows(named=True):
        stop = start + row["tiles"]
        ids = tile_ids(row["slide"], mpp, np.zeros(stop - start, int), np.arange(stop - start))
        writer.add(row["slide"], ids, values[start:stop])
        start = stop
    return writer.finish()


def values_of(tile_id: npt.NDArray[np.int64], dim: int, teacher: str = "t") -> Float32Array:
    """Features [N, dim] that are a function of the keys and the teacher alone."""
    seed = tile_id.astype(np.float64)[:, None] % 9973 + len(teacher) * 31
    return np.sin(seed * (1 + np.arange(dim))).astype(np.float32)


def add_slides(lake: Lake, sizes: dict[str, int], mark: str = "test") -> Lake:
    """Register and commit slides with so many tiles each, in one commit."""
    rows = lake.committer.register([{"slide_id": name, "uri": f"{name}.svs"} for name in sizes])
    cuts = [cut(lake, row["slide"], row["slide_id"], sizes[row["slide_id"]], mark) for row in rows]
    lake.committer.commit_slides(cuts)
    return lake.refreshed()


def write_columns(lake: Lake, mpp: float, teacher: str, dim: int = 6) -> list[ColumnFile]:
    """Files of a teacher for the fragments that lack it, as an extract would write them."""
    field = lake.committer.add_teacher(mpp, teacher, dim, {"weights": teacher})
    lake = lake.refreshed()
    done = set(lake.features_of(teacher, mpp=mpp)["slide"])
    rows = lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0).sort("fragment", "row_start")
    files = []
    for (fragment,), group in rows.group_by("fragment", maintain_order=True):
        if set(group["slide"]) <= done:
            continue
        fragment_rows = lake.table(features_table(mpp)).get_fragment(fragment)
        writer = ColumnWriter(lake.store, mpp, field, fragment)
        for row in group.iter_rows(named=True):
            writer.skip(row["row_start"] - writer.rows)
            where = f"slide = {row['slide']}"
            keys = fragment_rows.to_table(columns=["tile_id"], filter=where)["tile_id"].to_numpy()
            writer.add(row["slide"], keys, values_of(keys, dim, teacher))
        writer.skip(fragment_rows.physical_rows - writer.rows)
        files.append(writer.finish())
    return files


def add_teacher(lake: Lake, teacher: str, dim: int = 6) -> Lake:
    """Run a teacher everywhere: its features are `values_of` the keys."""
    for mpp in lake.config.mpps:
        lake.committer.commit_columns(mpp, write_columns(lake, mpp, teacher, dim))
    return lake.refreshed()


def contents(lake: Lake) -> dict[str, object]:
    """Return the contents of a lake, without the places and versions of its files."""
    slides = lake.slides().select("slide_id", "state", "reason", "fingerprint").collect()
    values: dict[str, object] = {"slides": slides.sort("slide_id").rows()}
    for mpp in lake.config.mpps:
        frame = lake.tiles(mpp=mpp).collect().sort("slide_id", "tile_id")
        values[f"tiles {mpp}"] = frame.select(sorted(frame.columns)).to_dict(as_series=False)
        names = ["slide_id", "teacher", "tiles", "crc32", "shard", "shard_crc32"]
        rows = lake.catalog().filter(pl.col("mpp") == mpp).select(names).collect()
        values[f"catalog {mpp}"] = rows.sort("slide_id", "teacher").rows()
    return values
