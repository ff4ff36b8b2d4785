"""A user's table made ready to be an annotation: its level, its keys, its values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from featurestore.tables.annotation import TILE, AnnotationError
from featurestore.tables.schema import TILE_COLUMNS


@dataclass(frozen=True, kw_only=True)
class AnnotationTable:
    """A user's table, checked.

    Attributes:
        level: kind of its rows: `tile`, `slide` or `patient`.
        frame: the key columns, then the value columns; one row per key.
        value_columns: names of the columns that are no keys.
        notes: changes to the table and columns left out, a sentence each.
    """

    level: str
    frame: pl.DataFrame
    value_columns: Sequence[str]
    notes: tuple[str, ...] = field(default=())


def level_of(columns: Sequence[str]) -> tuple[str, list[str]]:
    """Return the level of a table with these columns (tile, slide, patient), and its keys.

    Raises:
        AnnotationError: none of the columns are keys.

    >>> level_of(["slide_id", "x", "y", "label"]), level_of(["patient_id", "age"])
    (('tile', ['slide_id', 'x', 'y']), ('patient', ['patient_id']))
    """
    if "tile_id" in columns:
        return TILE, ["tile_id"]
    if {"slide_id", "x", "y"} <= set(columns):
        return TILE, [name for name in ("slide_id", "x", "y", "mpp") if name in columns]
    for key in ("slide_id", "patient_id"):
        if key in columns:
            return key.removesuffix("_id"), [key]
    msg = (
        f"the table has columns {', '.join(columns)}; an annotation needs tile_id, or slide_id "
        "with x and y (level-0 pixels), or slide_id, or patient_id"
    )
    raise AnnotationError(msg)


def user_table(frame: pl.DataFrame) -> AnnotationTable:
    """Return a user's table as an annotation table: keys of one type, values of the lake's types.

    Raises:
        AnnotationError: no keys, no values, values of an unsupported type, a row without its
            key, or two rows that contradict each other.
    """
    level, keys = level_of(frame.columns)
    # Of tiles, the slide is known by the key; of slides, the patient is a fact like any other.
    dropped = [n for n in ("slide_id", "x", "y", "mpp") if "tile_id" in keys and n in frame.columns]
    value_columns = [name for name in frame.columns if name not in (*keys, *dropped)]
    if not value_columns:
        msg = f"the table has the keys {', '.join(keys)} and no other column to annotate with"
        raise AnnotationError(msg)
    table = frame.select(
        *(_key(frame[name]) for name in keys), *(_value(frame[n]) for n in value_columns)
    )
    empty = [name for name in keys if table[name].null_count()]
    if empty:
        row = int(table[empty[0]].is_null().arg_max() or 0) + 1
        msg = f"row {row} of the table has no {empty[0]}; fill it in or remove the row"
        raise AnnotationError(msg)
    table = table.unique(maintain_order=True)
    _refuse_torn(table, keys)
    return AnnotationTable(level=level, frame=table, value_columns=value_columns)


def _key(column: pl.Series) -> pl.Series:
    if column.name in ("slide_id", "patient_id"):
        return column.cast(pl.String)
    if column.name == "tile_id" and column.dtype.is_float():
        msg = (
            "tile_id are numbers of up to 19 digits, which this table holds as decimals (a "
            "spreadsheet keeps 15 digits): give slide_id, x and y instead, or a CSV"
        )
        raise AnnotationError(msg)
    kind = pl.Int64() if column.name == "tile_id" else pl.Float64()
    try:
        return column.cast(kind)
    except pl.exceptions.PolarsError as error:
        first = str(error).partition("\n")[0]
        msg = f"{column.name} must be numbers: {first}"
        raise AnnotationError(msg) from error


def _value(column: pl.Series) -> pl.Series:
    """Return a column as int64, float64, boolean or text; dates and times become ISO text."""
    dtype = column.dtype
    if dtype.is_integer():
        return column.cast(pl.Int64)
    if dtype.is_float() or dtype.is_decimal():
        return column.cast(pl.Float64).fill_nan(None)
    if dtype == pl.Boolean:
        return column
    if dtype.is_temporal() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.String)
    msg = (
        f"column '{column.name}' holds {dtype}; an annotation holds numbers, text, dates, and true "
        "or false"
    )
    raise AnnotationError(msg)


def _refuse_torn(table: pl.DataFrame, keys: Sequence[str]) -> None:
    """Refuse two rows of one key with different values."""
    twice = table.filter(pl.struct(keys).is_duplicated()).head(2)
    if twice.height:
        key = ", ".join(f"{name} {twice[name][0]}" for name in keys)
        contradictions = " and ".join(str(row) for row in twice.drop(keys).rows())
        msg = f"the table gives {key} twice, with {contradictions}; leave one row"
        raise AnnotationError(msg)


def lake_columns(name: str, value_columns: Sequence[str]) -> dict[str, str]:
    """Return the names of a tile annotation's columns in the features tables.

    A single column is called as the annotation; of several, each is `<annotation>_<column>`.

    Raises:
        AnnotationError: two columns would have one name, or a column the name of a tile column.

    >>> lake_columns("region", ["label"]), lake_columns("region", ["label", "score 2"])
    ({'label': 'region'}, {'label': 'region_label', 'score 2': 'region_score_2'})
    """
    if len(value_columns) == 1:
        return {value_columns[0]: name}
    columns = {user: f"{name}_{re.sub(r'[^A-Za-z0-9_]', '_', user)}" for user in value_columns}
    names = list(columns.values())
    same = next((n for n in names if names.count(n) > 1 or n in TILE_COLUMNS), None)
    if same is not None:
        which = ", ".join(repr(user) for user in value_columns if columns[user] == same)
        msg = f"columns {which} would be called '{same}' in the lake; rename them in the table"
        raise AnnotationError(msg)
    return columns
