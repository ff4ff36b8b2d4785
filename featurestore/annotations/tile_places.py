"""The tile that covers a place of a slide."""

import polars as pl


def tiles_at(places: pl.DataFrame, tiles: pl.DataFrame) -> pl.DataFrame:
    """Return places with the key of the tile that covers each, null where none does.

    Among overlapping tiles, the tile with the nearest centre; at a tie, the smaller key.

    Args:
        places: `slide_id`, `x` and `y` in level-0 pixels (float64), and other columns.
        tiles: `slide_id`, `tile_id`, `x` and `y` of the top-left corner, and `side` (float64).
    """
    numbered = places.with_row_index("row")
    side = tiles.select("slide_id", "side").unique()
    points = numbered.select("row", "slide_id", px="x", py="y").join(side, on="slide_id")
    # a tile that covers a place begins in the place's cell of a raster of its side, or one before
    steps = pl.DataFrame({"dx": [0, 0, 1, 1], "dy": [0, 1, 0, 1]})
    cells = [(pl.col(f"p{a}") // pl.col("side")).cast(pl.Int64) - pl.col(f"d{a}") for a in "xy"]
    points = points.join(steps, how="cross").with_columns(cx=cells[0], cy=cells[1])
    of_tile = [(pl.col(a) // pl.col("side")).cast(pl.Int64) for a in "xy"]
    placed_tiles = tiles.with_columns(cx=of_tile[0], cy=of_tile[1]).drop("side")
    pairs = points.join(placed_tiles, on=["slide_id", "cx", "cy"])
    within = [
        pl.col(f"p{a}").is_between(pl.col(a), pl.col(a) + pl.col("side"), closed="left")
        for a in "xy"
    ]
    apart = [(pl.col(f"p{a}") - pl.col(a) - pl.col("side") / 2) ** 2 for a in "xy"]
    best = pairs.filter(*within).with_columns(apart=apart[0] + apart[1])
    best = best.sort("row", "apart", "tile_id").unique("row", keep="first", maintain_order=True)
    return numbered.join(best.select("row", "tile_id"), on="row", how="left").drop("row")
