"""Labels of tiles, from a user's table: CSV, TSV, a spreadsheet or Parquet."""

import polars as pl

from cluster import counted
from distill.errors import DistillError
from featurestore import Lake, mpp_name
from featurestore.annotations import labels_of
from featurestore.usertables import (
    UserTable,
    read_table,
    refuse_near,
    refuse_near_others,
    tables_raise,
)

NEEDED = ("slide_id", "x", "y")


def read_labels(
    path: str,
    lake: Lake,
    *,
    column: str | None = None,
    site: str | None = None,
    distinct_ids: bool = False,
) -> tuple[pl.DataFrame, list[str]]:
    """Read a table of tile labels; return the labels and the sorted names of the classes.

    Args:
        path: .csv, .tsv, .xlsx or .parquet with `slide_id`, `x`, `y` (a tile's top-left
            corner in level-0 pixels), perhaps `mpp`, and the column of classes.
        lake: the lake that has the tiles; without a column `mpp` labels are for its finest mpp.
        column: name of the column of classes; the only other column if None.
        site: name of the column of the tile's site; None if it has none.
        distinct_ids: whether slides and classes that differ only by case, blanks or Unicode form
            are different; else they are refused.

    Returns:
        A table with columns `slide_id`, `x`, `y`, `mpp` and `label`, the class's place among the
        sorted names, and `site` if one is asked for; rows without a class or a site are left out.
        And these names.

    Raises:
        DistillError: the table or a cell of it can't be read, it lacks a column, has two
            classes for a tile, or names an mpp that the lake does not have.
    """
    with tables_raise(DistillError):
        table = read_table(labels_of(lake, path))
        rows = _label_rows(table, lake, column, site, distinct=distinct_ids)
    rows = rows.drop_nulls().unique(maintain_order=True)
    if rows.is_empty():
        msg = f"{path} has no row with a slide, a place and a class"
        raise DistillError(msg)
    _refuse_two_classes(path, rows)
    lake_mpps = {mpp: lake.known_mpp(mpp) for mpp in rows["mpp"].unique().to_list()}
    names = sorted(rows["name"].unique().to_list())
    number = {name: at for at, name in enumerate(names)}
    rows = rows.with_columns(
        pl.col("mpp").replace_strict(lake_mpps, return_dtype=pl.Float64),
        label=pl.col("name").replace_strict(number, return_dtype=pl.Int64),
    )
    return rows.drop("name"), names


def _label_rows(
    table: UserTable, lake: Lake, column: str | None, site: str | None, *, distinct: bool
) -> pl.DataFrame:
    """Return the slide, place, mpp and class name of each row, and its site if it has one."""
    needed = [*NEEDED, *([site] if site else [])]
    lacking = [name for name in needed if not table.has(name)]
    if lacking:
        msg = f"{table.name} has columns {[*table.columns]}; it lacks {', '.join(lacking)}"
        raise DistillError(msg)
    column = _class_column(table, column, site)
    slides, names = table.ids("slide_id", distinct=distinct), table.texts(column)
    if not distinct:
        lake_slides = lake.slides().select("slide_id").collect().to_series()
        refuse_near_others(slides.drop_nulls().unique(), lake_slides, "slides", "the lake")
        refuse_near(names.drop_nulls().unique(), f"table {table.name!r}, column {column!r}")
    if table.has("mpp"):
        mpp = table.numbers("mpp")
    else:
        mpp = pl.Series([min(lake.config.mpps)]).new_from_index(0, table.height)
    places = [table.integers(axis).alias(axis) for axis in ("x", "y")]
    sites = [table.texts(site).alias("site")] if site else []
    keys = [slides.alias("slide_id"), *places, mpp.alias("mpp")]
    return pl.DataFrame([*keys, names.alias("name"), *sites])


def _class_column(table: UserTable, column: str | None, site: str | None) -> str:
    used = table.find([*NEEDED, "mpp", "tile_id", *([site] if site else [])])
    others = [name for name in table.columns if name not in used]
    if column is None and len(others) == 1:
        return others[0]
    if column is not None and table.has(column):
        return table.column(column)
    reason = "none was named" if column is None else f"there is no '{column}'"
    choice = ", ".join(others) or "there is none"
    msg = f"{table.name}: {reason}; name the column of classes: {choice}"
    raise DistillError(msg)


def _refuse_two_classes(path: str, rows: pl.DataFrame) -> None:
    """Refuse a tile with two classes."""
    tile_columns = ["slide_id", "x", "y", "mpp"]
    torn_tiles = (
        rows.group_by(tile_columns).agg(pl.col("name")).filter(pl.col("name").list.len() > 1)
    )
    if not torn_tiles.is_empty():
        slide_id, x, y, mpp, names = torn_tiles.sort(tile_columns).row(0)
        msg = (
            f"{path} gives {counted(torn_tiles.height, 'tile')} two classes: slide {slide_id}, x "
            f"{x}, y {y}, "
            f"mpp {mpp_name(mpp)} is {' and '.join(sorted(names))}; leave one"
        )
        raise DistillError(msg)


def refuse_unmet(path: str, labels: pl.DataFrame) -> None:
    """Refuse labels of which none matches a tile; the message shows the form of places.

    Raises:
        DistillError: always raised, with an example of a label.
    """
    slide_id, x, y, mpp = labels.select("slide_id", "x", "y", "mpp").row(0)
    msg = (
        f"{path}: none of {labels.height} labels is of a tile; the first is of slide {slide_id} at "
        f"x {x}, y {y}, mpp {mpp_name(mpp)}: x and y must be a tile's top-left corner in level-0 "
        "pixels, as `lake.tiles` gives them"
    )
    raise DistillError(msg)
