"""Small lakes made by the real writers, without Ray: pixels and features tell a tile's key."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg

from featurestore import (
    ColumnWriter,
    GridCut,
    Lake,
    LakeConfig,
    Shard,
    ShardWriter,
    SlideCut,
    create_lake,
    open_lake,
    tile_ids,
    tiles_table,
)
from featurestore.tables.schema import features_table, shard_path

TILE_PX = 32
MPPS = (0.5, 1.0)
CONFIG = LakeConfig(tile_px=TILE_PX, mpps=MPPS)
# Rows of 256 bytes are stored as plain values, those of 12 bytes are packed by Lance.
DIMS = {"plain": 128, "packed": 6}
SIZES = {"a": 37, "b": 64, "c": 5, "d": 1, "e": 90, "f": 23}

Cells = npt.NDArray[np.int64]


def feature_rows(tile_id: npt.NDArray[np.int64], dim: int) -> npt.NDArray[np.float16]:
    """The features [N, dim] that tiles get: exact in float16, and other for every key."""
    mixed = tile_id[:, None] % 1_000_003 * 31 + np.arange(dim) * 77 + dim
    return ((mixed % 2001 - 1000) / 8).astype(np.float16)


def jpeg_of(tile_id: int) -> bytes:
    """The stored tile of a key: four squares of colour that no other key has."""
    colours = np.random.default_rng(tile_id).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(colours.repeat(TILE_PX // 2, 0).repeat(TILE_PX // 2, 1))
    jpeg: bytes = simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB")
    return jpeg


def row_of_cells(tiles: int) -> Cells:
    """(grid_y, grid_x) of so many tiles, with gaps, in rows of nine."""
    at = np.arange(tiles) * 2
    return np.stack([at // 9, at % 9], axis=1)


def cut(
    lake: Lake,
    slide: int,
    slide_id: str,
    cells: Mapping[float, Cells],
    *,
    mark: str = "one",
    patient: str | None = None,
    pixels: bool = True,
    side_px: int = TILE_PX,
    step_px: int | None = None,
) -> SlideCut:
    """Return a worker's result for a slide with tiles at the given cells of each grid."""
    grids = {}
    for mpp, at in cells.items():
        keys = tile_ids(slide, mpp, at[:, 0], at[:, 1])
        side = side_px * round(mpp / MPPS[0])
        step = side if step_px is None else step_px * round(mpp / MPPS[0])
        grids[mpp] = GridCut(
            tiles=_rows(mpp, slide, slide_id, keys, at, step),
            shard=_shard(lake, mpp, slide, mark, keys) if pixels else None,
            effective_mpp=mpp,
            tile_px_level0=side,
            grid_px_level0=step,
            grid_width=int(at[:, 1].max(initial=0)) + 1,
            grid_height=int(at[:, 0].max(initial=0)) + 1,
        )
    row = {
        "slide": slide,
        "slide_id": slide_id,
        "patient_id": patient,
        "uri": f"{slide_id}.svs",
        "fingerprint": mark,
    }
    return SlideCut(row=row, grids=grids)


def _shard(
    lake: Lake, mpp: float, slide: int, mark: str, keys: npt.NDArray[np.int64]
) -> Shard | None:
    with ShardWriter(lake.store, shard_path(mpp, slide, mark)) as writer:
        for key in keys.tolist():
            writer.add(key, jpeg_of(key), {"tile": key})
    return writer.shard


def _rows(
    mpp: float, slide: int, slide_id: str, keys: npt.NDArray[np.int64], at: Cells, step: int
) -> pa.Table:
    columns = {
        "tile_id": keys,
        "slide": np.full(len(keys), slide),
        "slide_id": [slide_id] * len(keys),
        "grid_y": at[:, 0],
        "grid_x": at[:, 1],
        "y": at[:, 0] * step,
        "x": at[:, 1] * step,
        "tissue": np.ones(len(keys)),
    }
    return tiles_table(mpp, TILE_PX, columns)


def register(lake: Lake, slide_ids: Sequence[str]) -> dict[str, int]:
    """Numbers of slides."""
    rows = lake.committer.register([{"slide_id": s, "uri": f"{s}.svs"} for s in slide_ids])
    return {row["slide_id"]: row["slide"] for row in rows}


def add_features(
    lake: Lake, dims: Mapping[str, int], *, mpp: float = 0.5, without: Collection[str] = ()
) -> None:
    """Features of all slides but some, one file per fragment and teacher."""
    for teacher, dim in dims.items():
        field = lake.committer.add_teacher(mpp, teacher, dim, {"weights": teacher})
        fresh = lake.refreshed()
        rows = fresh.tiles_of(mpp=mpp).sort("row_start").to_dicts()
        keys = fresh.tiles(mpp=mpp).select("slide", "tile_id").collect().sort("tile_id")
        files = []
        for fragment in fresh.table(features_table(mpp)).get_fragments():
            with ColumnWriter(lake.store, mpp, field, fragment.fragment_id) as writer:
                for row in rows:
                    has_tiles = row["slide_id"] not in without and row["tiles"]
                    if row["fragment"] == fragment.fragment_id and has_tiles:
                        writer.skip(row["row_start"] - writer.rows)
                        ids = keys.filter(keys["slide"] == row["slide"])["tile_id"].to_numpy()
                        writer.add(row["slide"], ids, feature_rows(ids, dim))
                writer.skip(fragment.physical_rows - writer.rows)
                files.append(writer.finish())
        lake.committer.commit_columns(mpp, files)


def make(
    folder: Path,
    sizes: Mapping[str, int] | None = None,
    patients: Mapping[str, str] | None = None,
) -> Lake:
    """Slides at 0.5 mpp in two fragments, both teachers on all; the first slide was re-scanned.

    The rows of its first scan are deleted from the first fragment, before all others' rows.
    """
    sizes = sizes or SIZES
    lake = create_lake(folder, CONFIG)
    numbers = register(lake, list(sizes))
    names = list(sizes)

    def cuts(slide_ids: Sequence[str], mark: str) -> list[SlideCut]:
        return [
            cut(
                lake,
                numbers[name],
                name,
                {0.5: row_of_cells(sizes[name])},
                mark=mark,
                patient=(patients or {}).get(name),
            )
            for name in slide_ids
        ]

    first = cut(lake, numbers[names[0]], names[0], {0.5: row_of_cells(11)}, mark="old")
    half = len(names) // 2
    lake.committer.commit_slides([first, *cuts(names[1:half], "one")])
    lake.committer.commit_slides(cuts([names[0], *names[half:]], "two"))
    add_features(lake, DIMS)
    return open_lake(folder)
