"""Numbers as a spreadsheet shows them: the part of its formats that ids and dates need.

A cell that shows 0012 or 12.10 holds 12 or 12.1 and a format. What a user calls the id is what the
cell shows. Formats with a meaning of their own (fractions, scientific) show the plain number.
"""

import datetime as dt
import re

#: Formats that have a number and no text in a workbook (ECMA-376, 18.8.30).
BUILT_IN = {1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 37: "#,##0",
            38: "#,##0", 39: "#,##0.00", 40: "#,##0.00"}  # fmt: skip
BUILT_IN_DATES = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
_LITERAL = re.compile(r'"([^"]*)"|\\(.)|_.|\*.|\[[^\]]*\]')
_DIGITS = re.compile(r"[#0?][#0?,]*(?:\.([0#?]*))?")
_DAY_S = 86_400


def is_date_format(number: int, code: str) -> bool:
    """Whether a format shows days or times.

    >>> is_date_format(14, ""), is_date_format(164, "dd/mm/yyyy"), is_date_format(164, '0 "days"')
    (True, True, False)
    """
    if number in BUILT_IN_DATES:
        return True
    bare = _LITERAL.sub("", code).lower()
    return "general" not in bare and any(mark in bare for mark in "dmyhs")


def shown_number(cell_number: float, code: str) -> str:
    """Return a number as a cell with this format shows it, without thousands separators.

    >>> shown_number(12, "General"), shown_number(12, "0000"), shown_number(12.1, "0.00")
    ('12', '0012', '12.10')
    >>> shown_number(7, '"P-"000'), shown_number(0.5, "0%"), shown_number(1234, "#,##0")
    ('P-007', '50%', '1234')
    """
    sections = code.split(";")
    code = sections[0]
    if cell_number < 0 and len(sections) > 1 and sections[1]:  # which shows the sign in its own way
        cell_number, code = -cell_number, sections[1]
    literals: list[str] = []

    def kept(match: re.Match[str]) -> str:
        literals.append(match[1] or match[2] or "")
        return "\0"

    bare = _LITERAL.sub(kept, code)
    digits = _DIGITS.search(bare)
    rest = _DIGITS.sub("", bare, count=1) if digits else bare
    if digits is None or rest.strip("\0 -+$%()/:.") or rest.count("/"):
        return plain_number(cell_number)
    percent = "%" in rest
    body = _digits(cell_number * 100 if percent else cell_number, digits)
    text, parts = bare[: digits.start()] + body + bare[digits.end() :], iter(literals)
    return re.sub("\0", lambda _: next(parts), text)


def _digits(cell_number: float, pattern: re.Match[str]) -> str:
    """Return a number with the digits of a pattern."""
    decimals = pattern[1] or ""
    text = f"{abs(cell_number):.{len(decimals)}f}"
    whole, _, fraction = text.partition(".")
    optional = len(decimals) - len(decimals.rstrip("#"))
    while optional and fraction.endswith("0"):
        fraction, optional = fraction[:-1], optional - 1
    whole = whole.zfill(pattern[0].partition(".")[0].count("0"))
    sign = "-" if cell_number < 0 else ""
    return f"{sign}{whole}.{fraction}" if fraction else sign + whole


def plain_number(cell_number: float) -> str:
    """Return a number with the 15 digits that a spreadsheet keeps.

    >>> plain_number(12.0), plain_number(0.1 + 0.2), plain_number(123456789012.0)
    ('12', '0.3', '123456789012')
    """
    if cell_number == int(cell_number) and abs(cell_number) < 1e15:
        return str(int(cell_number))
    return f"{cell_number:.15g}"


def shown_date(serial: float, *, since_1904: bool) -> str:
    """Return a day of a spreadsheet as YYYY-MM-DD, with the time of day where there is one.

    >>> shown_date(45000, since_1904=False), shown_date(45000.5, since_1904=False)
    ('2023-03-15', '2023-03-15 12:00:00')
    """
    # in days since 1900 a spreadsheet counts a 29th of February 1900 that never was
    first = dt.datetime(1904, 1, 1) if since_1904 else dt.datetime(1899, 12, 30)
    try:
        moment = first + dt.timedelta(seconds=round(serial * _DAY_S))
    except OverflowError:
        return plain_number(serial)
    return moment.isoformat(" ") if serial % 1 else moment.date().isoformat()
