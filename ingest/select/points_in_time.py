"""Points in time as users write them: a date, a time, or how long ago."""

import re
from datetime import datetime

from ingest.errors import InputError

SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


def point_in_time(text: str, *, now_s: float) -> float:
    """Return a point in time in seconds since 1970.

    Args:
        text: `2026-11-30`, `2026-11-30T18:30` (of this machine's time zone unless it names one),
            or a time ago, as `36h` or `7d`.
        now_s: the present in seconds since 1970.

    Raises:
        InputError: the text is none of these.

    >>> point_in_time("2d", now_s=200_000.0)
    27200.0
    >>> point_in_time("1970-01-02T00:00+00:00", now_s=0.0)
    86400.0
    """
    if match := AGO.fullmatch(text.strip().lower()):
        return now_s - float(match[1]) * SECONDS[match[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError as error:
        msg = (
            f"'{text}' is no time; give a date (2026-11-30), a time (2026-11-30T18:30) or how "
            "long ago, a number with s, m, h, d or w (36h)"
        )
        raise InputError(msg) from error
