"""Conditions on one column in Lance's SQL: `column op literal` and `column IN (...)`.

Each is true at least wherever Polars's is. The differences that widen them: Polars holds NaN for
equal to itself and greater than all, whatever its sign bit, and it may round a literal to the
column's type first. (The two zeros are one number to both, with an index and without.)
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

Op = Literal["=", "<>", "<", "<=", ">", ">="]
Value = int | float | str | bool

#: The values of each integer type that can be written in SQL: -2**63 itself is read as a float.
INTEGERS: dict[pl.DataType, tuple[int, int]] = {
    **{getattr(pl, f"UInt{n}")(): (0, (1 << n) - 1) for n in (8, 16, 32, 64)},
    **{getattr(pl, f"Int{n}")(): (-(1 << n - 1), (1 << n - 1) - 1) for n in (8, 16, 32)},
    pl.Int64(): (1 - (1 << 63), (1 << 63) - 1),
}
FLOATS: dict[pl.DataType, type[np.floating[Any]]] = {
    pl.Float16(): np.float16,
    pl.Float32(): np.float32,
    pl.Float64(): np.float64,
}
SCALARS = {str(dtype): dtype for dtype in (*INTEGERS, *FLOATS, pl.String(), pl.Boolean())}

MAX_LIST = 10_000  # a longer list is pushed as its range: 100,000 strings take 0.5 s to match


class NotPushedError(Exception):
    """Raised for a part of a predicate that has no form as a filter."""


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """A column of a table: its quoted name and its type."""

    sql: str
    dtype: pl.DataType


def compare(column: TableColumn, op: Op, literal: Value) -> str:
    """Return the comparison of a column with a literal.

    >>> compare(TableColumn(sql="`x`", dtype=pl.Int32()), "<", 3)
    '`x` < 3'
    >>> compare(TableColumn(sql="`f`", dtype=pl.Float32()), ">=", 0.5)
    '(`f` >= 0.5 OR isnan(`f`))'
    """
    if column.dtype in FLOATS:
        return _compare_float(column, op, literal)
    if column.dtype == pl.Boolean() and op not in ("=", "<>"):
        raise NotPushedError
    return f"{column.sql} {op} {_written(column.dtype, literal)}"


def is_in(column: TableColumn, constants: pl.Series, *, nulls_equal: bool) -> str:
    """Return the test of a column against a list; its nulls count only with `nulls_equal`.

    >>> column = TableColumn(sql="`x`", dtype=pl.Int8())
    >>> is_in(column, pl.Series([1, 1000, None]), nulls_equal=False)
    '`x` IN (1)'
    """
    terms = [f"{column.sql} IS NULL"] if nulls_equal and constants.null_count() else []
    listed = constants.drop_nulls().unique(maintain_order=True).to_list()
    if column.dtype in FLOATS:
        terms += _in_floats(column, listed)
    elif listed := _possible(column.dtype, listed):
        terms.append(_in_exact(column, listed))
    joined = " OR ".join(terms) or "false"
    return f"({joined})" if len(terms) > 1 else joined


def not_in(column: TableColumn, constants: pl.Series) -> str:
    """Return the test that a column is neither null nor in a list (nulls in the list ignored)."""
    listed = _possible(column.dtype, constants.drop_nulls().unique(maintain_order=True).to_list())
    if column.dtype in FLOATS or not 0 < len(listed) <= MAX_LIST:
        raise NotPushedError
    return f"{column.sql} NOT IN ({', '.join(_written(column.dtype, v) for v in listed)})"


def _compare_float(column: TableColumn, op: Op, literal: Value) -> str:
    low, high = _around(FLOATS[column.dtype], literal)
    match op:
        case "=":
            return _in_floats(column, [literal])[0]
        case "<>" if low == high:
            return f"{column.sql} <> {high!r}"
        case "<" | "<=":
            return f"{column.sql} {op} {high!r}"
        case ">" | ">=":
            # In SQL a NaN with its sign bit set, as 0/0 gives on x86, is the smallest.
            return f"({column.sql} {op} {low!r} OR isnan({column.sql}))"
    raise NotPushedError


def _in_floats(column: TableColumn, constants: list[Value]) -> list[str]:
    numbers = [v for v in constants if not (isinstance(v, float) and math.isnan(v))]
    ends = {end for v in numbers for end in _around(FLOATS[column.dtype], v)}
    terms = [f"isnan({column.sql})"] if len(numbers) < len(constants) else []
    if len(ends) > MAX_LIST:
        raise NotPushedError
    if ends:
        terms.append(f"{column.sql} IN ({', '.join(map(repr, sorted(ends)))})")
    return terms


def _in_exact(column: TableColumn, constants: list[Value]) -> str:
    if len(constants) > MAX_LIST:
        low, high = (_written(column.dtype, v) for v in (min(constants), max(constants)))
        return f"{column.sql} BETWEEN {low} AND {high}"
    return f"{column.sql} IN ({', '.join(_written(column.dtype, v) for v in constants)})"


def _possible(dtype: pl.DataType, constants: list[Value]) -> list[Value]:
    """Return the constants that a column of a type can hold; other constants match no row."""
    if dtype not in INTEGERS:
        return constants
    low, high = INTEGERS[dtype]
    # What is not an integer stays, to be refused where it is written; so does -2**63, which a
    # column may hold and SQL can't say.
    low -= dtype == pl.Int64()
    return [v for v in constants if not isinstance(v, int) or low <= v <= high]


def _around(kind: type[np.floating[Any]], literal: Value) -> tuple[float, float]:
    """Return the next number of a type at or below and at or above; Polars uses one of them."""
    if isinstance(literal, str) or not -1e300 < literal < 1e300:
        raise NotPushedError
    with np.errstate(over="ignore"):
        near = kind(literal)
        low = near if float(near) <= literal else np.nextafter(near, kind(-np.inf))
        high = near if float(near) >= literal else np.nextafter(near, kind(np.inf))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NotPushedError
    return float(low), float(high)


def _written(dtype: pl.DataType, literal: Value) -> str:
    match literal:
        case bool() if dtype == pl.Boolean():
            return str(literal).lower()
        case int() if dtype in INTEGERS and INTEGERS[dtype][0] <= literal <= INTEGERS[dtype][1]:
            return str(int(literal))
        case str() if dtype == pl.String():
            return "'" + literal.replace("'", "''") + "'"
    raise NotPushedError
