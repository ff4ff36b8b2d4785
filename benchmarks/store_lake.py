"""The lake that `store.py` measures: made by the real writers from a seed, in a folder of its own.

Slides have lognormal sizes; features are normal float16, which no codec can
shrink; pixels are crops of the real sample slide, encoded as `slidelake ingest` does it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from openslide import OpenSlide

from featurestore import (
    ColumnWriter,
    GridCut,
    Lake,
    LakeConfig,
    Shard,
    ShardWriter,
    SlideCut,
    create_lake,
    tile_ids,
    tiles_table,
)
from featurestore.tables.schema import shard_path
from ingest.tile_jpeg import encode_tile

SLIDE = Path(__file__).parent.parent / "examples" / "data" / "CMU-1-Small-Region.svs"
MPP = 0.5
TILE_PX = 256
CONFIG = LakeConfig(mpps=(MPP,), tile_px=TILE_PX)

Int64Array = npt.NDArray[np.int64]


def slide_sizes(slides: int, tiles: int, seed: int) -> list[int]:
    """Return the tiles of each slide: lognormal around `tiles`, the first exactly `tiles`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(tiles), 0.4, slides).astype(int)
    return [tiles, *drawn[1:].tolist()]


def make_lake(folder: Path, sizes: list[int], *, with_pixels: int, seed: int) -> Lake:
    """Return a lake of slides `s00`, ... in one fragment; the first `with_pixels` have pixels."""
    lake = create_lake(folder, CONFIG)
    names = [f"s{number:02d}" for number in range(len(sizes))]
    rows = lake.committer.register([{"slide_id": s, "uri": f"{s}.svs"} for s in names])
    jpegs = real_jpegs(seed)
    cuts = []
    for row, tiles in zip(rows, sizes, strict=True):
        shard = _shard(lake, row["slide"], tiles, jpegs) if row["slide"] < with_pixels else None
        cuts.append(
            SlideCut(row=row, grids={MPP: _cut(row["slide"], row["slide_id"], tiles, shard)})
        )
    lake.committer.commit_slides(cuts)
    return lake.refreshed()


def real_jpegs(seed: int) -> Iterator[bytes]:
    """Yield random crops of the sample slide as JPEG, without end."""
    with OpenSlide(SLIDE) as slide:
        whole = slide.read_region((0, 0), 0, slide.dimensions)
    pixels = np.asarray(whole.convert("RGB"))
    rng = np.random.default_rng(seed)
    height, width = pixels.shape[0] - TILE_PX, pixels.shape[1] - TILE_PX
    while True:
        y, x = rng.integers(height), rng.integers(width)
        yield encode_tile(np.ascontiguousarray(pixels[y : y + TILE_PX, x : x + TILE_PX]), CONFIG)


def grid_of(tiles: int) -> tuple[Int64Array, Int64Array]:
    """Return grid_y and grid_x of each tile: rows of 80, without every third cell of the grid."""
    cells = np.flatnonzero(np.arange(2 * tiles) % 3)[:tiles]
    return cells // 80, cells % 80


def _shard(lake: Lake, slide: int, tiles: int, jpegs: Iterator[bytes]) -> Shard:
    keys = tile_ids(slide, MPP, *grid_of(tiles)).tolist()
    with ShardWriter(lake.store, shard_path(MPP, slide, "bench")) as writer:
        for key in keys:
            writer.add(key, next(jpegs), {"tile_id": key})
    if writer.shard is None:
        raise RuntimeError
    return writer.shard


def _cut(slide: int, slide_id: str, tiles: int, shard: Shard | None) -> GridCut:
    grid_y, grid_x = grid_of(tiles)
    columns = {
        "tile_id": tile_ids(slide, MPP, grid_y, grid_x),
        "slide": np.full(tiles, slide),
        "slide_id": [slide_id] * tiles,
        "grid_y": grid_y,
        "grid_x": grid_x,
        "y": grid_y * TILE_PX,
        "x": grid_x * TILE_PX,
        "tissue": np.ones(tiles),
    }
    return GridCut(
        tiles=tiles_table(MPP, TILE_PX, columns),
        shard=shard,
        effective_mpp=MPP,
        tile_px_level0=TILE_PX,
        grid_px_level0=TILE_PX,
        grid_width=80,
        grid_height=int(grid_y.max()) + 1,
    )


def random_features(sizes: list[int], dim: int, seed: int) -> list[npt.NDArray[np.float16]]:
    """Return normally distributed float16 features [N, dim] of each slide."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, dim), np.float32).astype(np.float16) for n in sizes]


def add_teacher(lake: Lake, teacher: str, features: list[npt.NDArray[np.float16]]) -> None:
    """Write a teacher's column, a file per fragment as workers of `extract` do, and commit it."""
    dim = features[0].shape[1]
    field = lake.committer.add_teacher(MPP, teacher, dim, {"weights": "random"})
    files = []
    for (fragment,), rows in lake.tiles_of(mpp=MPP).sort("slide").group_by("fragment"):
        with ColumnWriter(lake.store, MPP, field, fragment) as writer:
            for slide in rows["slide"]:
                slide_features = features[slide]
                writer.add(
                    slide, tile_ids(slide, MPP, *grid_of(len(slide_features))), slide_features
                )
            files.append(writer.finish())
    lake.committer.commit_columns(MPP, files)
