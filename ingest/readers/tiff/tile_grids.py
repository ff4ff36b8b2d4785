"""Where a TIFF stores much: what has most bytes has most structure, and no pixel needs be read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tifffile

from ingest.readers.level_check import Place, richest_places


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """The stored tiles of one level.

    Attributes:
        width_px: width of the level.
        height_px: height of the level.
        tile_width_px: width of a stored tile.
        tile_height_px: height of a stored tile.
        sizes: bytes of each tile, row after row; 0 for a tile that is not stored.
    """

    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    sizes: Sequence[int]

    @property
    def columns(self) -> int:
        """Return the number of stored tiles in a row."""
        return -(-self.width_px // self.tile_width_px)

    @property
    def rows(self) -> int:
        """Return the number of stored tiles in a column."""
        return -(-self.height_px // self.tile_height_px)


def tile_places(base: TileGrid, level: TileGrid) -> list[Place]:
    """Return the place of the tile with most bytes in each quarter of a level and of level 0.

    Each place is the centre of a tile of level 0, so that a read there decodes few tiles.

    Args:
        base: tiles of level 0.
        level: tiles of the level.
    """
    size = (base.height_px, base.width_px)
    tile = (base.tile_height_px, base.tile_width_px)
    places = []
    for grid in (base, level):
        across = grid.columns * grid.tile_width_px / grid.width_px
        down = grid.rows * grid.tile_height_px / grid.height_px
        for y, x in richest_places(np.reshape(grid.sizes, (grid.rows, grid.columns))):
            at = zip((y * down, x * across), size, tile, strict=True)
            # A tile at the edge may have its centre beyond it.
            places.append([(min(p * n, n - 1) // t + 0.5) * t / n for p, n, t in at])
    return list(dict.fromkeys((min(y, 1.0), min(x, 1.0)) for y, x in places))


def tile_grids(path: str) -> dict[tuple[int, int], TileGrid]:
    """Return the tile grids of a TIFF's tiled images by width and height; {} for other files."""
    grids: dict[tuple[int, int], TileGrid] = {}
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                if page.is_tiled and page.planarconfig == 1:
                    size = (int(page.imagewidth), int(page.imagelength))
                    grid = TileGrid(
                        width_px=size[0],
                        height_px=size[1],
                        tile_width_px=int(page.tilewidth),
                        tile_height_px=int(page.tilelength),
                        sizes=page.databytecounts,
                    )
                    if len(grid.sizes) == grid.rows * grid.columns:
                        grids.setdefault(size, grid)
    except Exception:  # noqa: BLE001 - tifffile raises nearly anything on files that are not TIFF
        return {}
    return grids
