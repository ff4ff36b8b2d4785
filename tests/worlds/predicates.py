"""Random tables and predicates for the tests of questions: every type, and the values that hurt.

Predicates hold parts that SQL is given and parts that it is not, in random trees.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import strategies as st

Row = tuple[Any, ...]  # a value of each column of SCHEMA

SCHEMA = {
    "tiny": pl.Int8(),
    "i": pl.Int32(),
    "k": pl.Int32(),
    "j": pl.Int64(),
    "u": pl.UInt32(),
    "v": pl.UInt64(),
    "h": pl.Float16(),
    "f": pl.Float32(),
    "d": pl.Float64(),
    "s": pl.String(),
    "t": pl.String(),
    "b": pl.Boolean(),
    "e": pl.Array(pl.Float16, 2),
}
INTS = ("tiny", "i", "k", "j", "u", "v")
FLOATS = ("h", "f", "d")
TEXTS = ("s", "t")
KINDS = {"h": np.float16, "f": np.float32, "d": np.float64}
INT_POOL = (
    *(0, 1, 2, 3, -1, -2, 7, 127, 128, 255, 256, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(-128, -129, -(2**31), -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**70),
)
FLOAT_POOL = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 0.2, 0.5, 0.8, -1.5, 3.0, 2049.0, 65504.0, 65520.0, 1e5, 3e38),
    *(3.5e38, 1e300, -1e305, 1e-8, 1e-40, 5e-324, math.inf, -math.inf, 16777217.0),
    *(math.nan, -math.nan),  # 0/0 has its sign bit set on x86
    *(float(np.float32(0.1)), float(np.float16(0.1)), float(np.nextafter(np.float32(0.1), 1))),
)
TEXT_POOL = (
    *("", "a", "b", "ab", "it's", "''", '"', "`i`", "\\", "\\'", "é", "e\u0301", "😀", "\ud7ff"),
    *("a\nb", "\t", "\x00", "\x00a", "--", "/* */", "%", "_", "?", "$1", ":x", "NULL", "{}"),
    "ß" * 40,
)

# ---------------------------------------------------------------------- tables


def limits(name: str) -> tuple[int, int]:
    bits = {"tiny": 8, "j": 64, "v": 64}.get(name, 32)
    return (0, (1 << bits) - 1) if name in "uv" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def pool(name: str) -> list[Any]:
    """The values of a column that hurt."""
    if name in INTS:
        low, high = limits(name)
        return [value for value in INT_POOL if low <= value <= high]
    if name in FLOATS:
        return [*FLOAT_POOL]
    if name in TEXTS:
        return [*TEXT_POOL]
    return [True, False] if name == "b" else [[np.float16(1), np.float16(2)]]


#: Rows that hold every value that hurts, and nulls.
EVERY: list[Row] = list(
    zip(*(itertools.islice(itertools.cycle([None, *pool(n)]), 36) for n in SCHEMA), strict=True)
)


def ints(name: str) -> st.SearchStrategy[int]:
    low, high = limits(name)
    return st.sampled_from(pool(name)) | st.integers(low, high) | st.integers(max(low, -3), 4)


def floats() -> st.SearchStrategy[float]:
    return st.sampled_from(FLOAT_POOL) | st.floats(width=32)


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(TEXT_POOL) | st.text(max_size=3)


def float_array(name: str, values: list[float | None]) -> pa.Array:
    with np.errstate(over="ignore"):
        array = np.array([math.nan if v is None else v for v in values], KINDS[name])
    return pa.array(array, mask=np.array([v is None for v in values], bool))


def arrow(rows: list[Row]) -> pa.Table:
    columns = dict(zip(SCHEMA, zip(*rows, strict=True), strict=True)) if rows else {}
    arrays = {}
    for name, dtype in SCHEMA.items():
        values = list(columns.get(name, ()))
        if name in FLOATS:
            arrays[name] = float_array(name, values)
        else:
            kind = pl.DataFrame(schema={name: dtype}).to_arrow().schema.field(0).type
            kind = pa.string() if name in TEXTS else kind
            arrays[name] = pa.array(values, pa.list_(pa.float16(), 2) if name == "e" else kind)
    return pa.table(arrays)


def values(name: str) -> st.SearchStrategy[Any]:
    if name in INTS:
        return ints(name)
    if name in FLOATS:
        return floats()
    return st.booleans() if name == "b" else texts()


def rows() -> st.SearchStrategy[list[Row]]:
    by_name = {name: values(name) for name in SCHEMA if name != "e"}
    cells = {**by_name, "e": st.just([np.float16(1), np.float16(2)])}
    return st.lists(st.tuples(*(st.none() | cells[name] for name in SCHEMA)), max_size=6)


# ---------------------------------------------------------------------- expressions

Closed = Literal["left", "right", "both", "none"]
Comparison = Callable[[Any, Any], pl.Expr]
COMPARISONS: tuple[Comparison, ...] = (
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
    lambda a, b: a.eq_missing(b),
    lambda a, b: a.ne_missing(b),
)


def literal(name: str) -> st.SearchStrategy[Any]:
    if name in INTS:
        return st.sampled_from(INT_POOL) | ints(name) | st.sampled_from([0.5, -0.0, 1.0, 1e30])
    if name in FLOATS:
        return floats() | st.sampled_from([0, 1, -1, 2**53 + 1])
    return texts() if name in TEXTS else st.booleans()


def members(name: str) -> st.SearchStrategy[Any]:
    own = values(name)
    lists = st.lists(st.none() | own, max_size=5)
    # A Series keeps its own type, a list takes the column's.
    wide = pl.Int64 if name in ("tiny", "i", "k", "u") else SCHEMA[name]
    typed = st.lists(own, max_size=5).map(
        lambda v: pl.Series("q", v, dtype=wide, strict=False).implode()
    )
    return lists | typed


def compared(draw: st.DrawFn, name: str) -> pl.Expr:
    compare = draw(st.sampled_from(COMPARISONS))
    alike = next((group for group in (INTS, FLOATS, TEXTS) if name in group), (name,))
    columns = st.sampled_from(alike).map(pl.col)
    # A literal of a type of its own makes Polars cast the column.
    own = {**dict.fromkeys(FLOATS, pl.Float64), **dict.fromkeys(INTS[:4], pl.Int64)}.get(name)
    typed = values(name).map(lambda value: pl.lit(value, dtype=own))
    other = draw(literal(name).map(pl.lit) | typed | columns)
    ends = (pl.col(name), other)
    return compare(*(ends if draw(st.booleans()) else reversed(ends)))


def opaque(draw: st.DrawFn) -> pl.Expr:
    """Return a predicate that is not translated to SQL."""
    return draw(
        st.sampled_from(
            [
                pl.col("s").str.starts_with("a"),
                pl.col("t").str.len_bytes() > 1,
                pl.col("i").cast(pl.Int64) + 1 > 2,
                pl.col("d").cast(pl.Int32, strict=False) > 0,
                pl.col("j").cast(pl.Float64) >= 1.0,
                pl.col("i").cast(pl.Int8, strict=False) == 1,
                pl.col("d").cast(pl.Float32) > 0.1,
                pl.col("f").is_nan(),
                pl.col("d").is_finite(),
                pl.col("e").is_null(),
                pl.col("e").arr.get(0) > 0,
                pl.col("b") ^ (pl.col("i") > 1),
                pl.when(pl.col("b")).then(pl.col("i") > 1).otherwise(pl.col("s").is_null()),
                pl.col("s") + "a" == "aa",
                pl.coalesce("s", "t") > "a",
                pl.col("b").fill_null(value=True),
                pl.lit(value=True),
                pl.lit(value=False),
            ]
        )
    )


@st.composite
def leaves(draw: st.DrawFn) -> pl.Expr:
    name = draw(st.sampled_from([n for n in SCHEMA if n != "e"]))
    column = pl.col(name)
    match draw(st.integers(0, 9)):
        case 0:
            return column.is_null()
        case 1:
            return column.is_not_null()
        case 2 | 3:
            return column.is_in(draw(members(name)), nulls_equal=draw(st.booleans()))
        case 4 if name != "b":
            closed = draw(st.sampled_from(get_args(Closed)))
            return column.is_between(draw(literal(name)), draw(literal(name)), closed=closed)
        case 5:
            return opaque(draw)
        case 6:
            return pl.col("b")
        case _:
            return compared(draw, name)


def trees() -> st.SearchStrategy[pl.Expr]:
    def grow(inner: st.SearchStrategy[pl.Expr]) -> st.SearchStrategy[pl.Expr]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: p[0] & p[1]),
            pairs.map(lambda p: p[0] | p[1]),
            inner.map(lambda e: ~e),
            pairs.map(lambda p: pl.any_horizontal(*p)),
        )

    return st.recursive(leaves(), grow, max_leaves=8)
