"""The tiles of a lake that the rows of a user's table are of."""

from collections.abc import Sequence

import polars as pl

from featurestore.annotations.model import AnnotationError, AnnotationTable, listing
from featurestore.annotations.places import tiles_at
from featurestore.ids import mpp_name, tile_parts
from featurestore.lake import Lake


def met_tiles(
    lake: Lake, table: AnnotationTable, mpp: float | None
) -> tuple[dict[float, pl.DataFrame], list[str]]:
    """Find the tiles of a table of tiles.

    Args:
        lake: at the version to look in.
        table: with `tile_id`, or `slide_id`, `x` and `y` (a place within a tile, in level-0
            pixels; its top-left corner is one), and perhaps `mpp`.
        mpp: of the tiles, where the table does not say it.

    Returns:
        By mpp, `tile_id` and the values of each tile; and what names no tile, a text for each row.

    Raises:
        AnnotationError: it is not said at which mpp, no row is of a tile, or two rows contradict
            each other on one tile.
    """
    if "tile_id" in table.frame.columns:
        found, unmet = _by_key(lake, table)
    else:
        found, unmet = _by_place(lake, table, mpp)
    found = {at: frame for at, frame in found.items() if frame.height}
    if not found:
        msg = (
            f"none of the {table.frame.height} rows is of a tile of {lake.uri}; the first is of "
            f"{unmet[0]}: give tile_id as the lake has it, or a place in level-0 pixels"
        )
        raise AnnotationError(msg)
    return found, unmet


def _by_key(lake: Lake, table: AnnotationTable) -> tuple[dict[float, pl.DataFrame], list[str]]:
    slides, mpps, _, _ = tile_parts(table.frame["tile_id"].to_numpy())
    rows = table.frame.with_columns(slide=pl.Series(slides).cast(pl.Int32), at=pl.Series(mpps))
    found: dict[float, pl.DataFrame] = {}
    for known in lake.config.mpps:
        here = rows.filter(pl.col("at") == known)
        numbers = here["slide"].unique().to_list()
        there = lake.tiles(mpp=known).filter(pl.col("slide").is_in(numbers)).select("tile_id")
        if numbers:
            met = here.join(there.collect(), on="tile_id", how="semi", maintain_order="left")
            found[known] = met.drop("slide", "at")
    lost = rows
    for met in found.values():
        lost = lost.join(met, on="tile_id", how="anti", maintain_order="left")
    return found, [f"tile {key}" for key in lost["tile_id"]]


def _by_place(
    lake: Lake, table: AnnotationTable, mpp: float | None
) -> tuple[dict[float, pl.DataFrame], list[str]]:
    rows = _with_mpp(lake, table.frame, mpp)
    found: dict[float, pl.DataFrame] = {}
    unmet: list[str] = []
    for at in rows["mpp"].unique().sort().to_list():
        here = rows.filter(pl.col("mpp") == at).drop("mpp")
        met = tiles_at(here, _tiles(lake, here["slide_id"].unique().to_list(), at))
        lost = met.filter(pl.col("tile_id").is_null())
        unmet += [
            f"slide {slide} at {x:g}, {y:g} (mpp {mpp_name(at)})"
            for slide, x, y in lost.select("slide_id", "x", "y").iter_rows()
        ]
        inside = met.drop_nulls("tile_id")
        found[lake.known_mpp(at)] = _once(inside, table.values)
    return found, unmet


def _with_mpp(lake: Lake, frame: pl.DataFrame, mpp: float | None) -> pl.DataFrame:
    """Return the rows with the mpp of their tiles, as the lake has it."""
    if "mpp" not in frame.columns:
        if mpp is None and len(lake.config.mpps) > 1:
            msg = (
                f"{lake.uri} has tiles at several mpps, {list(lake.config.mpps)}: give --mpp, or a "
                "column mpp in the table"
            )
            raise AnnotationError(msg)
        known = lake.known_mpp(lake.config.mpps[0] if mpp is None else mpp)
        return frame.with_columns(mpp=pl.lit(known))
    values = frame["mpp"].unique().to_list()
    exact = {value: lake.known_mpp(value) for value in values}
    return frame.with_columns(pl.col("mpp").replace_strict(exact, return_dtype=pl.Float64))


def _tiles(lake: Lake, slide_ids: Sequence[str], mpp: float) -> pl.DataFrame:
    """Return the tiles of slides with their places and sides in level-0 pixels."""
    known = lake.tiles_of(mpp=mpp, slide_ids=slide_ids)
    sides = known.select("slide_id", side=pl.col("tile_px_level0").cast(pl.Float64))
    tiles = lake.tiles(mpp=mpp).filter(pl.col("slide").is_in(known["slide"].to_list()))
    columns = ["slide_id", "tile_id", pl.col("x", "y").cast(pl.Float64)]
    return tiles.select(columns).collect().join(sides, on="slide_id", how="left")


def _once(met: pl.DataFrame, values: Sequence[str]) -> pl.DataFrame:
    """Return each tile with its values once.

    Raises:
        AnnotationError: two places of one tile say different things.
    """
    rows = met.select("tile_id", *values).unique(maintain_order=True)
    torn = rows.filter(pl.col("tile_id").is_duplicated())["tile_id"].unique().to_list()
    if torn:
        where = met.filter(pl.col("tile_id") == torn[0]).select("slide_id", "x", "y").rows()
        msg = (
            f"{len(torn)} tiles have places that say different things: {listing(where)} lie in "
            f"tile {torn[0]}; leave one row for each tile"
        )
        raise AnnotationError(msg)
    return rows
