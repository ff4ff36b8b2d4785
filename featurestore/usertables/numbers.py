"""Numbers in the texts of a user's table, and the fault of a cell without one.

A decimal comma is read where commas do not separate cells. A column with both 1.5 and 1,5 is
refused: one of the two may mark thousands.
"""

import re

import polars as pl

PLAIN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
COMMA = r"^[+-]?\d*,\d+$"
#: Whole numbers as a computer writes them: 0012 is a name.
WHOLE = r"^-?(0|[1-9]\d*)$"
LEADING_ZERO = r"^[+-]?0\d"
_GROUPS = re.compile(r"[+-]?\d{1,3}([.,'\u00a0 ]\d{3})+([.,]\d+)?")


def trimmed(texts: pl.Series) -> pl.Series:
    """Return cells without blanks at their ends, and with a plain minus."""
    return texts.str.strip_chars().str.replace("^\u2212", "-")


def parsed(texts: pl.Series, *, decimal_comma: bool) -> pl.Series:
    """Return the number in each text, Float64; null where there is none."""
    plain = trimmed(texts)
    frame = plain.to_frame("text")
    text = pl.col("text")
    number: pl.Expr = pl.when(text.str.contains(PLAIN)).then(text)
    if decimal_comma:
        is_comma = text.str.contains(COMMA)
        point = pl.when(is_comma).then(text.str.replace(",", ".", literal=True))
        number = pl.coalesce(number, point)
    return frame.select(number.cast(pl.Float64, strict=False)).to_series()


def has_commas(texts: pl.Series) -> pl.Series:
    """Whether each text is a number with a decimal comma."""
    return trimmed(texts).str.contains(COMMA)


def has_points(texts: pl.Series) -> pl.Series:
    """Whether each text is a number with a decimal point."""
    return trimmed(texts).str.contains(r"^[+-]?\d*\.\d+$")


def why_no_number(text: str, *, decimal_comma: bool, is_date: bool = False) -> str:
    """Return what a cell is that holds no number, to follow its text in a message.

    >>> why_no_number("1,5", decimal_comma=False)
    'has a decimal comma, but commas separate the cells of this file; write 1.5'
    >>> why_no_number("3 months", decimal_comma=True)
    'is no number'
    """
    bare = text.strip()
    if is_date:
        return "is a date and no number"
    if not decimal_comma and re.fullmatch(COMMA, bare):
        point = bare.replace(",", ".")
        return f"has a decimal comma, but commas separate the cells of this file; write {point}"
    if _GROUPS.fullmatch(bare):
        return "has thousands separators; write the number without them"
    return "is no number"
