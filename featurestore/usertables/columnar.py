"""Parquet files: typed columns to cells."""

import io

import polars as pl

from featurestore.usertables.cell_grid import CellColumn, CellGrid, clean_name
from featurestore.usertables.table_errors import TableError


def read_columnar(content: bytes, name: str) -> CellGrid:
    """Return the cells of a Parquet file in its own types.

    Raises:
        TableError: the file is damaged, or is no Parquet file.
    """
    try:
        table = pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).partition("\n")[0]
        msg = f"table {name!r} can't be read as parquet: {first}"
        raise TableError(msg) from error
    return CellGrid(
        header=[clean_name(column) for column in table.columns],
        columns=[_column(series) for series in table.iter_columns()],
        rows=pl.int_range(1, table.height + 1, eager=True),
        decimal_comma=True,
    )


def _column(series: pl.Series) -> CellColumn:
    plain = _plain(series)
    dates = plain.dtype.is_temporal()
    return CellColumn(
        texts=_texts(plain),
        numbers=plain.cast(pl.Float64) if plain.dtype.is_numeric() else None,
        dates=pl.repeat(dates, len(plain), dtype=pl.Boolean, eager=True) if dates else None,
        native=None if plain.dtype == pl.String else plain,
        is_text=plain.dtype == pl.String,
    )


def _plain(series: pl.Series) -> pl.Series:
    """Return the column without types that are only ways of storing it, and without NaN."""
    if series.dtype in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    if series.dtype.is_decimal():
        return series.cast(pl.Float64)
    return series.fill_nan(None) if series.dtype.is_float() else series


def _texts(series: pl.Series) -> pl.Series:
    """Return each cell as text; pandas' floats of whole numbers become whole numbers."""
    if series.dtype == pl.String:
        return series
    if series.dtype.is_float():
        whole = series.drop_nulls()
        if bool(((whole == whole.floor()) & (whole.abs() < 2.0**53)).all()):
            return series.cast(pl.Int64).cast(pl.String)
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        return pl.Series([None if cell is None else str(cell) for cell in series], dtype=pl.String)
    return series.cast(pl.String)
