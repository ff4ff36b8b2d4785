"""Parts of messages to users: a list of names cut short, and a similar name."""

import difflib
from collections.abc import Collection, Sequence

SHOWN = 5


def listing(names: Sequence[object], most: int = SHOWN) -> str:
    """Return the first few names for a message, and how many more there are.

    >>> listing(["a", "b"]), listing(["a", "b", "c", "d", "e", "f", "g"])
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return a question after the most similar of some names; an empty text if none is similar.

    >>> did_you_mean("regoin", ["region", "clinical"]), did_you_mean("x", ["region"])
    ("; did you mean 'region'?", '')
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
