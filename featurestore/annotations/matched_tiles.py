"""The tiles of a lake that the rows of a user's table are of."""

from collections.abc import Sequence

import polars as pl

from featurestore.annotations.tile_places import tiles_at
from featurestore.annotations.user_table import AnnotationTable
from featurestore.ids import mpp_name, tile_parts
from featurestore.lake import Lake
from featurestore.messages import counted, listing
from featurestore.tables.annotation import AnnotationError


def matched_tiles_of(
    lake: Lake, table: AnnotationTable, mpp: float | None
) -> tuple[dict[float, pl.DataFrame], list[str]]:
    """Return the tiles by mpp that a table of tiles names, and the rows that name no tile.

    Args:
        lake: the lake at the version to look in.
        table: table with `tile_id`, or `slide_id`, `x` and `y` (a place within a tile, in level-0
            pixels; the top-left corner counts as inside), and perhaps `mpp`.
        mpp: microns per pixel of the tiles, where the table has no column `mpp`.

    Returns:
        A frame of `tile_id` and values for each mpp; and a text for each row that names no tile.

    Raises:
        AnnotationError: the mpp is missing, no row names a tile of the lake, or two rows contradict
            each other on one tile.
    """
    if "tile_id" in table.frame.columns:
        tiles_by_mpp, unmet = _tiles_by_key(lake, table)
    else:
        tiles_by_mpp, unmet = _tiles_by_place(lake, table, mpp)
    tiles_by_mpp = {at: frame for at, frame in tiles_by_mpp.items() if frame.height}
    if not tiles_by_mpp:
        msg = (
            f"none of the {counted(table.frame.height, 'row')} is of a tile of {lake.uri}; the "
            "first is of "
            f"{unmet[0]}: give tile_id as the lake has it, or a place in level-0 pixels"
        )
        raise AnnotationError(msg)
    return tiles_by_mpp, unmet


def _tiles_by_key(
    lake: Lake, table: AnnotationTable
) -> tuple[dict[float, pl.DataFrame], list[str]]:
    slides, mpps, _, _ = tile_parts(table.frame["tile_id"].to_numpy())
    rows = table.frame.with_columns(slide=pl.Series(slides).cast(pl.Int32), at=pl.Series(mpps))
    tiles_by_mpp: dict[float, pl.DataFrame] = {}
    for mpp in lake.config.mpps:
        mpp_rows = rows.filter(pl.col("at") == mpp)
        numbers = mpp_rows["slide"].unique().to_list()
        lake_tiles = lake.tiles(mpp=mpp).filter(pl.col("slide").is_in(numbers)).select("tile_id")
        if numbers:
            matched = mpp_rows.join(
                lake_tiles.collect(), on="tile_id", how="semi", maintain_order="left"
            )
            tiles_by_mpp[mpp] = matched.drop("slide", "at")
    lost = rows
    for matched in tiles_by_mpp.values():
        lost = lost.join(matched, on="tile_id", how="anti", maintain_order="left")
    return tiles_by_mpp, [f"tile {key}" for key in lost["tile_id"]]


def _tiles_by_place(
    lake: Lake, table: AnnotationTable, mpp: float | None
) -> tuple[dict[float, pl.DataFrame], list[str]]:
    rows = _with_mpp(lake, table.frame, mpp)
    tiles_by_mpp: dict[float, pl.DataFrame] = {}
    unmet: list[str] = []
    for at in rows["mpp"].unique().sort().to_list():
        mpp_rows = rows.filter(pl.col("mpp") == at).drop("mpp")
        matched = tiles_at(mpp_rows, _tiles(lake, mpp_rows["slide_id"].unique().to_list(), at))
        lost = matched.filter(pl.col("tile_id").is_null())
        unmet += [
            f"slide {slide} at {x:g}, {y:g} (mpp {mpp_name(at)})"
            for slide, x, y in lost.select("slide_id", "x", "y").iter_rows()
        ]
        inside = matched.drop_nulls("tile_id")
        tiles_by_mpp[lake.known_mpp(at)] = _distinct_tiles(inside, table.value_columns)
    return tiles_by_mpp, unmet


def _with_mpp(lake: Lake, frame: pl.DataFrame, mpp: float | None) -> pl.DataFrame:
    """Return the rows with the mpp of their tiles, as the lake has it."""
    if "mpp" not in frame.columns:
        if mpp is None and len(lake.config.mpps) > 1:
            msg = (
                f"{lake.uri} has tiles at several mpps, {list(lake.config.mpps)}: give --mpp, or a "
                "column mpp in the table"
            )
            raise AnnotationError(msg)
        lake_mpp = lake.known_mpp(lake.config.mpps[0] if mpp is None else mpp)
        return frame.with_columns(mpp=pl.lit(lake_mpp))
    user_mpps = frame["mpp"].unique().to_list()
    exact = {user_mpp: lake.known_mpp(user_mpp) for user_mpp in user_mpps}
    return frame.with_columns(pl.col("mpp").replace_strict(exact, return_dtype=pl.Float64))


def _tiles(lake: Lake, slide_ids: Sequence[str], mpp: float) -> pl.DataFrame:
    """Return the tiles of slides with their places and sides in level-0 pixels."""
    catalog_rows = lake.tiles_of(mpp=mpp, slide_ids=slide_ids)
    sides = catalog_rows.select("slide_id", side=pl.col("tile_px_level0").cast(pl.Float64))
    tiles = lake.tiles(mpp=mpp).filter(pl.col("slide").is_in(catalog_rows["slide"].to_list()))
    columns = ["slide_id", "tile_id", pl.col("x", "y").cast(pl.Float64)]
    return tiles.select(columns).collect().join(sides, on="slide_id", how="left")


def _distinct_tiles(matched: pl.DataFrame, value_columns: Sequence[str]) -> pl.DataFrame:
    """Return each tile with its values in one row.

    Raises:
        AnnotationError: two places of one tile have different values.
    """
    rows = matched.select("tile_id", *value_columns).unique(maintain_order=True)
    torn = rows.filter(pl.col("tile_id").is_duplicated())["tile_id"].unique().to_list()
    if torn:
        places = matched.filter(pl.col("tile_id") == torn[0]).select("slide_id", "x", "y").rows()
        msg = (
            f"{counted(len(torn), 'tile', 'have')} places that say different things: "
            f"{listing(places)} lie in "
            f"tile {torn[0]}; leave one row for each tile"
        )
        raise AnnotationError(msg)
    return rows
