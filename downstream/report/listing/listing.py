"""A table that a reader can sort by any column, as the templates read it.

The page sorts it by a few lines of its own script, which a policy in the page names by their hash:
no other script runs, whatever a patient's id may hold. Without scripts it is a plain table.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).parents[1] / "templates" / "sort.js"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cell of a listing.

    Attributes:
        text: what is shown.
        key: what the column is sorted by: a number, or a text; None sorts last.
        sub: a second line under it.
        is_wrong: whether the cell is marked as a wrong prediction.
        link: relative path that the text leads to; empty for none.
    """

    text: str
    key: float | str | None = None
    sub: str = ""
    is_wrong: bool = False
    link: str = ""

    @property
    def sort_key(self) -> str:
        """Return the key as an attribute of the page: numbers so that they are read back."""
        if self.key is None:
            return ""
        return self.key if isinstance(self.key, str) else f"{self.key:.9g}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A table that can be sorted.

    Attributes:
        heads: names of the columns; the first names the rows.
        numeric: for each column, whether it is sorted as numbers.
        rows: cells of each row, as many as columns.
        left_out: number of rows that are not shown.
    """

    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Entry, ...], ...]
    left_out: int = 0


def number_entry(number: float | None, *, digits: int = 3, sub: str = "") -> Entry:
    """Return the cell of a number; a dash that sorts last where there is none."""
    if number is None:
        return Entry(text="\N{EN DASH}", sub=sub)
    return Entry(text=f"{number:.{digits}f}", key=float(number), sub=sub)


def text_entry(text: object) -> Entry:
    """Return the cell of a text."""
    return Entry(text=str(text), key=str(text))


def listing_parts(listing: Listing, columns: Sequence[int], most: int = 5) -> list[Listing]:
    """Return the listing as tables of few columns, which fit on paper.

    Args:
        listing: the whole listing.
        columns: columns that every table repeats.
        most: most other columns of one table.
    """
    others = [at for at in range(len(listing.heads)) if at not in columns]
    parts = []
    for first in range(0, max(len(others), 1), most):
        chosen = [*columns, *others[first : first + most]]
        parts.append(
            Listing(
                heads=tuple(listing.heads[at] for at in chosen),
                numeric=tuple(listing.numeric[at] for at in chosen),
                rows=tuple(tuple(row[at] for at in chosen) for row in listing.rows),
                left_out=listing.left_out,
            )
        )
    return parts


def sort_script() -> str:
    """Return the script that sorts listings."""
    return _SCRIPT.read_text(encoding="utf-8").rstrip("\n")


def script_policy() -> str:
    """Return the Content-Security-Policy of a page: nothing is fetched, only our script runs."""
    digest = hashlib.sha256(sort_script().encode()).digest()
    sha256 = base64.b64encode(digest).decode()
    return (
        f"default-src 'none'; img-src 'self' data: file:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{sha256}'; base-uri 'none'; form-action 'none'"
    )
