"""How `slidelake verify` and `slidelake repair` describe damage."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore import Verdict


def damage_line(damage: dict[str, Any]) -> str:
    """Return a line that names the place of a damage, and what is wrong there."""
    place = [f"slide {damage['slide']}" if damage["slide"] else "the lake"]
    place += [f"at {damage['mpp']} mpp"] if damage["mpp"] is not None else []
    place += [f"teacher {damage['teacher']}"] if damage["teacher"] else []
    return f"{', '.join(place)}: {damage['what']}"


def advice(lake: str, verdict: "Verdict") -> str:
    """Return what to do about a damaged lake."""
    from featurestore.keep import way_back

    if verdict.broken_tables:
        return way_back(lake, verdict)
    return "`slidelake repair` takes it out or makes it again; --dry-run shows what it would do"
