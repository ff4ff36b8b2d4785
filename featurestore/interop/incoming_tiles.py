"""Tiles of other tools as rows of a lake: the lake's mpp for them, their keys, slide rows."""

import json
import math
import statistics
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.commits.cuts import GridCut, Row
from featurestore.config import LakeConfig
from featurestore.ids import MPP_STEP, mpp_name, tile_ids
from featurestore.interop.foreign_slide import MPP_TOLERANCE, InteropError, SlideTiles
from featurestore.interop.grid_cells import Cells, choose_cells
from featurestore.tables.schema import tiles_table

END_BYTES = 64 * 1024
#: Facts of an exported slide that the new row has too, and those that `extra` keeps.
HANDED_ON = (
    "patient_id", "mpp_x", "mpp_y", "objective", "vendor", "levels", "notes", "tissue", "pen",
)  # fmt: skip
SOURCE = ("uri", "fingerprint", "reader")
USUAL_MPPS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def config_for(tile_sizes: Iterable[tuple[int, float]]) -> LakeConfig:
    """Return the settings of a new lake for tiles of these (tile_px, mpp).

    Scanners of one cohort differ by about 1 %: mpps near one another become one, the usual mpp
    (10 / magnification) if it is near, and rounded to steps of 0.005, which keys are made of.
    `effective_mpp` in the catalog keeps the exact mpps.

    Raises:
        InteropError: tiles of several sizes, which one lake does not hold.
        LakeError: the mpps do not nest.
    """
    pairs = set(tile_sizes)
    sizes = sorted({tile_px for tile_px, _ in pairs})
    if len(sizes) != 1:
        msg = (
            f"tiles of {', '.join(f'{size} px' for size in sizes) or 'no size'} were found; a lake "
            "holds one size, so import the folders of each size into a lake of its own"
        )
        raise InteropError(msg)
    mpps = {_nominal_mpp(near) for near in _groups(sorted({mpp for _, mpp in pairs}))}
    # Nothing is known of how tissue was chosen there: the settings are those of later ingests.
    return LakeConfig(tile_px=sizes[0], mpps=tuple(sorted(mpps)))


def _groups(mpps: Sequence[float]) -> Iterator[list[float]]:
    """Yield ascending mpps in groups, each within the tolerance of its first."""
    group: list[float] = []
    for mpp in mpps:
        if group and mpp > group[0] * (1 + MPP_TOLERANCE):
            yield group
            group = []
        group.append(mpp)
    if group:
        yield group


def _nominal_mpp(near: Sequence[float]) -> float:
    middle = statistics.median(near)
    usual = min(USUAL_MPPS, key=lambda mpp: abs(mpp / middle - 1))
    mpp = usual if abs(usual / middle - 1) <= MPP_TOLERANCE else middle
    return round(round(mpp / MPP_STEP) * MPP_STEP, 3)


def lake_mpp(config: LakeConfig, tiles: SlideTiles) -> float:
    """Return the lake's mpp that tiles belong to: within 2 % of their nominal mpp.

    Raises:
        InteropError: the lake has none, or holds tiles of another size.
    """
    if tiles.tile_px != config.tile_px:
        msg = (
            f"tiles of {tiles.tile_px} px; the lake holds tiles of {config.tile_px} px, which is "
            "fixed when it is made: import into another lake"
        )
        raise InteropError(msg)
    nearest = min(config.mpps, key=lambda mpp: abs(mpp / tiles.mpp - 1))
    if abs(nearest / tiles.mpp - 1) > MPP_TOLERANCE:
        msg = (
            f"tiles of {tiles.mpp:.4g} mpp; the lake has {list(config.mpps)}, which are fixed when "
            "it is made: import into another lake"
        )
        raise InteropError(msg)
    return nearest


def grid_of(row: Row, tiles: SlideTiles, mpp: float, config: LakeConfig) -> GridCut:
    """Return tiles in the form for the committer, sorted by key, without pixels.

    Args:
        row: the slide's row, with its number.
        tiles: tiles as read from the file.
        mpp: the lake's mpp of the tiles.
        config: the lake's settings.

    Raises:
        InteropError: the tiles can't have keys; see `choose_cells`.
    """
    cells = cells_of(tiles)
    keys = tile_ids(row["slide"], mpp, cells.y, cells.x)
    order = np.argsort(keys)
    columns: dict[str, Any] = {
        "tile_id": keys[order],
        "slide": np.full(len(keys), row["slide"]),
        "slide_id": [row["slide_id"]] * len(keys),
        "grid_y": cells.y[order],
        "grid_x": cells.x[order],
        "y": tiles.y[order],
        "x": tiles.x[order],
    }
    if tiles.grid is not None:
        columns |= {name: column.take(order) for name, column in tiles.grid.columns.items()}
    return GridCut(
        tiles=tiles_table(mpp, config.tile_px, columns),
        shard=None,
        effective_mpp=tiles.effective_mpp,
        tile_px_level0=tiles.tile_px_level0,
        grid_px_level0=cells.step_px,
        grid_width=tiles.grid.width
        if tiles.grid
        else _cell_count(tiles.width_px, cells.step_px, columns["grid_x"]),
        grid_height=tiles.grid.height
        if tiles.grid
        else _cell_count(tiles.height_px, cells.step_px, columns["grid_y"]),
    )


def cells_of(tiles: SlideTiles) -> Cells:
    """Return the cells of tiles: those of the lake that they were exported from, or chosen ones.

    Raises:
        InteropError: the tiles can't have keys; see `choose_cells`.
    """
    if tiles.grid is None:
        return choose_cells(tiles.xy, tiles.tile_px_level0)
    return Cells(step_px=tiles.grid.step_px, y=tiles.grid.cells_y, x=tiles.grid.cells_x)


def _cell_count(size_px: int | None, step_px: int, used: np.ndarray) -> int:
    needed = int(used.max()) + 1 if used.size else 0
    return max(needed, math.ceil(size_px / step_px) if size_px else 0)


def slide_row(format_name: str, grids: Mapping[float, SlideTiles]) -> Row:
    """Return the row of `slides` for a slide that was imported without pixels.

    Args:
        format_name: name of the files' format.
        grids: tiles of the slide by the lake's mpps.
    """
    tiles = grids[min(grids)]
    size, mark = (
        fingerprint(Path(tiles.source))
        if tiles.mark is None
        else (tiles.facts.get("bytes"), tiles.mark)
    )
    extra: dict[str, Any] = {}
    if source := {name: tiles.facts[name] for name in SOURCE if name in tiles.facts}:
        extra["exported_from"] = source
    imported = {mpp_name(mpp): dict(tiles_at_mpp.attrs) for mpp, tiles_at_mpp in grids.items()}
    return {
        "slide_id": tiles.slide_id,
        **{name: fact for name, fact in tiles.facts.items() if name in HANDED_ON},
        "uri": tiles.source,
        "fingerprint": mark,
        "bytes": size,
        "width_px": tiles.width_px,
        "height_px": tiles.height_px,
        "mpp": tiles.level0_mpp,
        "mpp_source": tiles.level0_mpp_source,
        "reader": f"import {format_name}",
        "extra": json.dumps({"imported_from": format_name, "imported_tiles": imported, **extra}),
        "tissue_geojson": tiles.tissue_geojson,
    }


def fingerprint(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes, and a mark: size and CRC-32 of its first and last 64 KiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        crc = zlib.crc32(file.read(END_BYTES), crc)
    return size, f"{size}-{crc:08x}"
