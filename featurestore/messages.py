"""Parts of messages to users: a list of names cut short, a similar name, a number with its noun."""

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


def counted(number: int, noun: str, verb: str = "") -> str:
    """Return a number with its noun and perhaps a verb, as `cluster.counted` does.

    The two packages know nothing of each other; a test holds the two functions together.

    Args:
        number: number of things.
        noun: the noun in the singular.
        verb: the verb in the plural.

    >>> counted(1, "slide", "have"), counted(1200, "tile")
    ('1 slide has', '1,200 tiles')
    """
    if number == 1:
        return f"{number} {noun} {_SINGULAR.get(verb, _with_s(verb))}".rstrip()
    return f"{number:,} {_with_s(noun)} {verb}".rstrip()


_SINGULAR = {"": "", "are": "is", "have": "has", "were": "was"}


def _with_s(word: str) -> str:
    """Return the plural of a noun, or a verb as it follows a singular."""
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
