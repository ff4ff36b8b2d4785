"""HTML pages for people: the templates' environment, and numbers as people read them.

Autoescape is on and no template marks anything as safe: ids and reasons come from users.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cluster import counted

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).parent / "templates"
_MINUTE_S, _HOUR_S = 60, 3600


def environment(*folders: Path) -> "Environment":
    """Return a renderer for templates of some folders and the shared `page.css`, `slide_cards`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader([*folders, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "d3": three_decimals,
        "count": with_commas,
        "counted": counted,
        "duration": duration,
        "size": size,
    }
    return made


def three_decimals(number: float | None) -> str:
    """Format a share, a cosine or another metric; a dash where there is none.

    >>> three_decimals(0.81234), three_decimals(None)
    ('0.812', '–')
    """  # noqa: RUF002 - an en dash is what tables show
    return "\N{EN DASH}" if number is None else f"{number:.3f}"


def with_commas(count: int) -> str:
    """Format a count with commas.

    >>> with_commas(12345)
    '12,345'
    """
    return f"{count:,}"


def duration(seconds: float) -> str:
    """Format a duration.

    >>> duration(5.25), duration(409.7), duration(7325)
    ('5.2 s', '6 min 50 s', '2 h 02 min')
    """
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(byte_count: float) -> str:
    """Format a number of bytes in the largest unit that gives at least 1.

    >>> size(512), size(33_600_000)
    ('512 B', '33.6 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if byte_count < 1000 or unit == "TB":
            break
        byte_count /= 1000
    return f"{byte_count:.0f} {unit}" if unit == "B" else f"{byte_count:.1f} {unit}"
