"""Labels of tiles, from a table that a user gives: CSV, TSV, a spreadsheet or Parquet."""

import polars as pl

from distill.errors import DistillError
from featurestore import Lake, mpp_name
from featurestore.interop.tables import read_table

NEEDED = ("slide_id", "x", "y")


def read_labels(
    path: str, lake: Lake, *, column: str | None = None
) -> tuple[pl.DataFrame, list[str]]:
    """A table of tile labels, and the names of the classes.

    Args:
        path: .csv, .tsv, .xlsx or .parquet with `slide_id`, `x`, `y` (a tile's top-left
            corner in level-0 pixels), perhaps `mpp`, and the column of classes.
        lake: without a column `mpp` the labels are of the tiles of its finest mpp.
        column: of the classes; the only other one if None.

    Returns:
        Columns `slide_id`, `x`, `y`, `mpp` and `label`, the class's place among the sorted names.
        Rows without a class are left out.

    Raises:
        InteropError: the table can't be read.
        DistillError: it lacks a column, gives a tile two classes, or names
            an mpp that the lake does not have.
    """
    table = read_table(path)
    lacking = [name for name in NEEDED if name not in table.columns]
    if lacking:
        msg = f"{path} has columns {table.columns}; it lacks {', '.join(lacking)}"
        raise DistillError(msg)
    column = _column(path, table, column)
    finest = min(lake.config.mpps)
    mpp = pl.col("mpp").cast(pl.Float64) if "mpp" in table.columns else pl.lit(finest)
    rows = table.select(
        pl.col("slide_id").cast(pl.String),
        pl.col("x").cast(pl.Int64),
        pl.col("y").cast(pl.Int64),
        mpp.alias("mpp"),
        pl.col(column).cast(pl.String).alias("name"),
    )
    rows = rows.drop_nulls().unique(maintain_order=True)
    if rows.is_empty():
        msg = f"{path} has no row with a slide, a place and a class in {column!r}"
        raise DistillError(msg)
    _refuse_torn(path, rows)
    known = {mpp: lake.known_mpp(mpp) for mpp in rows["mpp"].unique().to_list()}
    names = sorted(rows["name"].unique().to_list())
    number = {name: at for at, name in enumerate(names)}
    rows = rows.with_columns(
        pl.col("mpp").replace_strict(known, return_dtype=pl.Float64),
        label=pl.col("name").replace_strict(number, return_dtype=pl.Int64),
    )
    return rows.drop("name"), names


def _column(path: str, table: pl.DataFrame, column: str | None) -> str:
    others = [name for name in table.columns if name not in (*NEEDED, "mpp", "tile_id")]
    if column is None and len(others) == 1:
        return others[0]
    if column in table.columns:
        return str(column)
    given = "none was named" if column is None else f"there is no '{column}'"
    msg = f"{path}: {given}; name the column of classes: {', '.join(others) or 'there is none'}"
    raise DistillError(msg)


def _refuse_torn(path: str, rows: pl.DataFrame) -> None:
    """Refuse a tile with two classes."""
    place = ["slide_id", "x", "y", "mpp"]
    torn = rows.group_by(place).agg(pl.col("name")).filter(pl.col("name").list.len() > 1)
    if not torn.is_empty():
        slide_id, x, y, mpp, names = torn.sort(place).row(0)
        msg = (
            f"{path} gives {torn.height} tiles two classes: slide {slide_id}, x {x}, y {y}, mpp "
            f"{mpp_name(mpp)} is {' and '.join(sorted(names))}; leave one"
        )
        raise DistillError(msg)


def refuse_unmet(path: str, labels: pl.DataFrame) -> None:
    """Tell how places are to be given, where none of them is a tile's.

    Raises:
        DistillError: always.
    """
    slide_id, x, y, mpp = labels.select("slide_id", "x", "y", "mpp").row(0)
    msg = (
        f"{path}: none of {labels.height} labels is of a tile; the first is of slide {slide_id} at "
        f"x {x}, y {y}, mpp {mpp_name(mpp)}: x and y must be a tile's top-left corner in level-0 "
        "pixels, as `lake.tiles` gives them"
    )
    raise DistillError(msg)
