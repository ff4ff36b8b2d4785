"""Who is in a study, in a line for the console and the page. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any


def outcome_text(counts: Mapping[str, Any], patients: int) -> str:
    """Return the patients of each class, or events and follow-up, in a line.

    >>> outcome_text({"patients": {"no": 40, "yes": 50}}, 90)
    'no 40, yes 50'
    >>> outcome_text({"events": 34, "median_follow_up": 31.24}, 90)
    '34 events of 90 patients, median follow-up 31.2'
    """
    if "events" in counts:
        followed = counts["median_follow_up"]
        text = "not reached" if followed is None else f"{followed:.3g}"
        others = sum(counts.get("competing", {}).values())
        beside = f" ({others} of other kinds)" if others else ""
        return f"{counts['events']} events{beside} of {patients} patients, median follow-up {text}"
    if "patients" in counts:
        return ", ".join(f"{name} {count}" for name, count in counts["patients"].items())
    if "median" in counts:
        return "{least:.4g} to {most:.4g}, median {median:.4g}".format(**counts)
    return ""
