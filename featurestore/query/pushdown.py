"""Polars predicates as filters in Lance's SQL.

A filter made here may let through too many rows and never too few: Polars applies the whole
predicate to what comes back. So a term without an SQL form is left out, and a predicate of an
unknown form filters nothing. The predicate is read from its JSON, whose form belongs to one
version of Polars; tests pin it.
"""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from featurestore.query.pushdown_terms import (
    FLOATS,
    INTEGERS,
    SCALARS,
    NotPushedError,
    Op,
    TableColumn,
    Value,
    compare,
    is_in,
    not_in,
)

Schema = Mapping[str, pl.DataType]
Node = Any  # a node of the predicate, as JSON

COMPARISONS: dict[str, Op] = {
    "Eq": "=",
    "NotEq": "<>",
    "Lt": "<",
    "LtEq": "<=",
    "Gt": ">",
    "GtEq": ">=",
}
OPPOSITE: dict[Op, Op] = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
MIRRORED: dict[Op, Op] = {"=": "=", "<>": "<>", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
BETWEEN = {
    "Both": ("GtEq", "LtEq"),
    "Left": ("GtEq", "Lt"),
    "Right": ("Gt", "LtEq"),
    "None": ("Gt", "Lt"),
}
AND, OR = ("And", "LogicalAnd"), ("Or", "LogicalOr")

MAX_TERMS = 500  # Lance takes thousands, at 0.1 s and more of planning
MAX_DEPTH = 20  # Lance's parser refuses parentheses nested deeper than about 50


def lance_filter(predicate: pl.Expr, schema: Schema) -> str | None:
    """Return the SQL filter of a predicate, or None if all rows are to be read.

    Args:
        predicate: predicate that Polars passes to a registered IO source.
        schema: types of the table's columns.

    >>> lance_filter((pl.col("x") > 3) & pl.col("s").str.ends_with("a"), {"x": pl.Int32()})
    '`x` > 3'
    >>> lance_filter((pl.col("x") > 3) | pl.col("s").str.ends_with("a"), {"x": pl.Int32()})
    """
    try:
        node = json.loads(predicate.meta.serialize(format="json"))
        return _Translator(schema).sql(node, positive=True)
    except (NotPushedError, pl.exceptions.PolarsError, RecursionError, TypeError, ValueError):
        # Also a predicate without a JSON form, in a form not known here, or too deep to be walked.
        return None


class _Translator:
    """Walks a predicate. Methods return SQL or raise `NotPushedError`."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def sql(self, node: Node, *, positive: bool, depth: int = 0) -> str:
        """Return SQL that holds at least where a node is true (positive) or false (not)."""
        match node:
            case {"BinaryExpr": {"op": str(op)}} if op in AND + OR:
                every = (op in AND) == positive  # De Morgan: the negation goes to the leaves
                return self._joined(
                    _operands(node, op), every=every, positive=positive, depth=depth
                )
            case {"BinaryExpr": {"left": left, "op": str(op), "right": right}}:
                return self._binary(left, op, right, positive=positive)
            case {"Function": {"input": [only], "function": {"Boolean": "Not"}}}:
                return self.sql(only, positive=not positive, depth=depth)
            case {"Function": {"input": list(inputs), "function": {"Boolean": function}}}:
                return self._function(inputs, function, positive=positive)
            case {"Literal": {"Scalar": {"Boolean": bool(value)}}} if value != positive:
                return "false"
            case {"Column": _}:
                return compare(self._column(node), "=", positive)
        raise NotPushedError

    def _joined(self, nodes: list[Node], *, every: bool, positive: bool, depth: int) -> str:
        # Of conditions that must all hold some may be left out; of alternatives none.
        if depth > MAX_DEPTH or (not every and len(nodes) > MAX_TERMS):
            raise NotPushedError
        parts = []
        for node in nodes[:MAX_TERMS]:
            try:
                parts.append(self.sql(node, positive=positive, depth=depth + 1))
            except NotPushedError:
                if not every:
                    raise
        if not parts:
            raise NotPushedError
        return parts[0] if len(parts) == 1 else f"({(' AND ' if every else ' OR ').join(parts)})"

    def _binary(self, left: Node, op: str, right: Node, *, positive: bool) -> str:
        if op in COMPARISONS:
            return self._compared(left, COMPARISONS[op], right, positive=positive)
        if op not in ("EqValidity", "NotEqValidity"):
            raise NotPushedError
        # To these two, null is one more value.
        column, literal = self._column(left), _value(right)
        if (op == "EqValidity") == positive:
            return compare(column, "=", literal)
        return f"({compare(column, '<>', literal)} OR {column.sql} IS NULL)"

    def _compared(self, left: Node, op: Op, right: Node, *, positive: bool) -> str:
        op = op if positive else OPPOSITE[op]
        if "Literal" in left:
            left, op, right = right, MIRRORED[op], left
        column = self._column(left)
        if "Literal" in right:
            return compare(column, op, _value(right))
        other = self._column(right)
        # Integers of mixed signs would be compared as another type, floats by another order.
        signed = column.dtype.is_signed_integer() and other.dtype.is_signed_integer()
        same = column.dtype == other.dtype and column.dtype not in FLOATS
        if signed or (same and column.dtype != pl.Boolean()):
            return f"{column.sql} {op} {other.sql}"
        raise NotPushedError

    def _function(self, inputs: list[Node], function: Any, *, positive: bool) -> str:  # noqa: ANN401
        match function, inputs:
            case (("IsNull" | "IsNotNull"), [only]):
                negation = "" if (function == "IsNull") == positive else "NOT "
                return f"{self._column(only).sql} IS {negation}NULL"
            case {"IsBetween": {"closed": str(closed)}}, [middle, low, high] if closed in BETWEEN:
                ends = zip(BETWEEN[closed], (low, high), strict=True)
                nodes = [{"BinaryExpr": {"left": middle, "op": o, "right": e}} for o, e in ends]
                return self._joined(nodes, every=positive, positive=positive, depth=0)
            case {"IsIn": {"nulls_equal": bool(nulls_equal)}}, [only, values]:
                if positive:
                    return is_in(self._column(only), _series(values), nulls_equal=nulls_equal)
                if not nulls_equal:
                    return not_in(self._column(only), _series(values))
        raise NotPushedError

    def _column(self, node: Node) -> TableColumn:
        """Return a column of a plain type, alone or in a cast that changes no value."""
        match node:
            case {"Column": str(name)} if name in self.schema:
                dtype = self.schema[name]
                if dtype in SCALARS.values() and _plain(name):
                    return TableColumn(sql=f"`{name}`", dtype=dtype)
            case {"Cast": {"expr": {"Column": str()} as inner, "dtype": {"Literal": str(to)}}}:
                column = self._column(inner)
                if _widens(column.dtype, SCALARS.get(to)):
                    return column
        raise NotPushedError


def _plain(name: str) -> bool:
    # In Lance's SQL a dot goes into a struct, and nothing quotes a backtick.
    return name.isascii() and name.translate(str.maketrans("-: @", "____")).isidentifier()


def _operands(node: Node, op: str) -> list[Node]:
    """Return the terms of a chain of one operator, in order, to write without parentheses."""
    terms: list[Node] = []
    stack = [node]
    while stack:
        top = stack.pop()
        match top:
            case {"BinaryExpr": {"left": left, "op": other, "right": right}} if other == op:
                stack += [right, left]
            case _:
                terms.append(top)
    return terms


def _widens(dtype: pl.DataType, to: pl.DataType | None) -> bool:
    """Whether every value of a type is that same value in another."""
    if dtype in INTEGERS and to in INTEGERS:
        (low, high), (least, most) = INTEGERS[dtype], INTEGERS[to]
        return least <= low and high <= most
    if dtype in FLOATS and to in FLOATS:
        return FLOATS[dtype](0).itemsize <= FLOATS[to](0).itemsize
    return False


def _value(node: Node) -> Value:
    """Return a literal; NaN and infinity, which JSON encodes as null, are not pushed."""
    match node:
        case {"Literal": {"Scalar": {"Float16": int(bits)}}}:
            return float(np.uint16(bits).view(np.float16))
        case {"Literal": {"Scalar": {"Float32": float(literal)}}}:
            return float(np.float32(literal))
        case {"Literal": {"Scalar": dict(scalar)}} if len(scalar) == 1:
            [(kind, literal)] = scalar.items()
            if kind in SCALARS and isinstance(literal, int | float | str):
                return literal
        case {"Literal": {"Dyn": {"Int": int(literal)} | {"Float": float(literal)}}}:
            return literal
    raise NotPushedError


def _series(node: Node) -> pl.Series:
    """Return the constants of an `is_in`, from an Arrow stream of them or of one list of them."""
    match node:
        case {"Alias": [literal, _]}:
            return _series(literal)
        case {"Literal": {"Scalar": {"List": list(ipc_bytes)}} | {"Series": list(ipc_bytes)}}:
            try:
                constants = pl.read_ipc_stream(io.BytesIO(bytes(ipc_bytes))).to_series()
            except (OSError, ValueError, pl.exceptions.PolarsError) as error:
                raise NotPushedError from error
            is_one_list = constants.dtype == pl.List and len(constants) == 1
            return constants.explode() if is_one_list else constants
    raise NotPushedError
