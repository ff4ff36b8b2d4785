"""What `verify` finds, and what `repair` does about each part."""

from dataclasses import dataclass, field
from typing import Any

#: Parts of a slide that can be damaged by themselves, worst first.
TABLE, TILES, FEATURES, SHARD, STRAY = "table", "tiles", "features", "shard", "stray"
#: A table of an annotation; `slidelake annotate --replace` writes it again.
ANNOTATION = "annotation"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not as it was committed.

    Attributes:
        slide: slide_id; None if a whole table is meant.
        mpp: where; None for a row of `slides`.
        teacher: whose features; None for tiles, shards and rows.
        what: one line for people.
        part: `table` (a row or a whole table), `tiles` (rows of a features table), `features`,
            `shard` (pixels only), `stray` (rows that the catalog does not name).
        fragment: the fragment, where there is one.
        number: the slide's number, if it is known.
    """

    slide: str | None
    mpp: float | None
    teacher: str | None
    what: str
    part: str
    fragment: int = -1
    number: int = -1

    def as_dict(self) -> dict[str, Any]:
        """The damage as `verify --json` prints it."""
        return {"slide": self.slide, "mpp": self.mpp, "teacher": self.teacher, "what": self.what}


@dataclass(kw_only=True)
class Verdict:
    """What was checked, and what of it is damaged.

    Attributes:
        version: of the lake.
        checked: how many slides, tiles, features (one teacher on one slide), shards, bytes.
        damage: everything found.
    """

    version: int
    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("slides", "tiles", "features", "shards", "bytes"), 0)
    )
    damage: list[Damage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    def as_dict(self) -> dict[str, Any]:
        """The verdict as `verify --json` prints it."""
        return {
            "ok": self.ok,
            "version": self.version,
            "checked": self.checked,
            "damage": [found.as_dict() for found in self.damage],
        }
