"""Names that look the same to people and not to programs: P1 and p1, "a" and "a ", é and é.

Two that differ by case, by blanks or by Unicode form only are refused, unless the user declares
that they differ (`--distinct-ids`).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from featurestore.usertables.table_errors import TableError

#: The option by which a user declares such names to be different.
OPTION = "--distinct-ids"
_BLANKS = re.compile(r"[\s\u00a0\u200b-\u200d\u2060\ufeff]+")
_SHOWN = 3


def near_key(name: str) -> str:
    r"""Return what names have in common that differ by case, blanks and Unicode form only.

    >>> near_key("P 1\u00a0") == near_key("p1"), near_key("0012") == near_key("12")
    (True, False)
    """
    if name.isascii():
        return "".join(name.split()).casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return _BLANKS.sub("", folded)


def near_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of different names that differ by case, blanks or Unicode form only.

    >>> near_pairs(["b", "P1", "p1", "b "])
    [('b', 'b '), ('P1', 'p1')]
    """
    firsts: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        first = firsts.setdefault(near_key(name), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def near_matches(names: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Return (name, near name among the others) for names that are not among the others.

    >>> near_matches(["P1", "x"], ["p1", "P2"])
    [('P1', 'p1')]
    """
    other_names = set(others)
    strangers = sorted(set(names) - other_names)
    if not strangers:
        return []
    by_key = {near_key(name): name for name in sorted(other_names)}
    keys = [(name, near_key(name)) for name in strangers]
    return [(name, by_key[key]) for name, key in keys if key in by_key]


def difference(one: str, other: str) -> str:
    r"""Return in what two near names differ.

    >>> difference("P1", "p1"), difference("a", "a\u00a0"), difference("P 1", "p1")
    ('case', 'blanks', 'case and blanks')
    """
    bare = [_BLANKS.sub("", name) for name in (one, other)]
    plain = [unicodedata.normalize("NFKC", name) for name in bare]
    kinds = {
        "case": plain[0] != plain[1],
        "blanks": _blanks(one) != _blanks(other),
        "Unicode form": bare[0].casefold() != bare[1].casefold(),
    }
    return " and ".join(kind for kind, differs in kinds.items() if differs)


def _blanks(name: str) -> list[tuple[int, str]]:
    """Return the blanks of a name, each with the number of other characters before it."""
    places, letters = [], 0
    for character in unicodedata.normalize("NFC", name):
        if _BLANKS.fullmatch(character):
            places.append((letters, character))
        else:
            letters += 1
    return places


def refuse_near(names: Iterable[str], kind: str, *, rows: Mapping[str, int] | None = None) -> None:
    """Refuse names of which two differ by case, blanks or Unicode form only.

    Args:
        names: ids, sites or classes.
        kind: kind of the names, for the message.
        rows: table row of each name.

    Raises:
        TableError: the first pairs.
    """
    _refuse(near_pairs(names), kind, rows or {}, "")


def refuse_near_others(names: Iterable[str], others: Iterable[str], kind: str, owner: str) -> None:
    """Raise TableError for names that are not among the others but nearly equal one of them.

    Args:
        names: ids of a table.
        others: ids that are there, for example in the lake.
        kind: kind of the names, for the message.
        owner: place of the others, for the message, as "the lake".

    Raises:
        TableError: the first pairs.
    """
    _refuse(near_matches(names, others), kind, {}, f" of {owner}")


def _refuse(pairs: list[tuple[str, str]], kind: str, rows: Mapping[str, int], owner: str) -> None:
    if not pairs:
        return
    lines = []
    for one, other in pairs[:_SHOWN]:
        differing = difference(one, other)
        # two forms of one letter look alike unless they are written as numbers
        show = ascii if "Unicode" in differing else repr
        places = [f" (row {rows[name]})" if name in rows else "" for name in (one, other)]
        both = f"{show(one)}{places[0]} and {show(other)}{places[1]}{owner}"
        lines.append(f"{both} differ by {differing} only")
    more = f" (and {len(pairs) - _SHOWN} more pairs)" if len(pairs) > _SHOWN else ""
    msg = (
        f"{kind}: {'; '.join(lines)}{more}; write them alike, or give {OPTION} if they are "
        "different"
    )
    raise TableError(msg)
