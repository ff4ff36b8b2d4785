"""What `verify` finds, and what `repair` does about each part."""

from dataclasses import dataclass, field
from typing import Any

#: A table as a whole: with one of them damaged nothing else can be judged.
TABLE = "table"
#: Small files that all else is read by, and of which there is a copy.
ROOT = "root"
#: Parts of a slide that can be damaged by themselves, worst first.
ROW, TILES, FEATURES, SHARD, STRAY = "row", "tiles", "features", "shard", "stray"
#: Files that are made anew from what is whole: indexes of shards, indexes of tables.
SHARD_INDEX, TABLE_INDEX = "shard index", "table index"
#: Files beside the tables (moments, students): their makers make them again.
FILE = "file"
#: A table of an annotation; `slidelake annotate --replace` writes it again.
ANNOTATION = "annotation"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One thing that is not as it was committed.

    Attributes:
        slide: slide_id; None if a table or a file is meant.
        mpp: where; None for a row of `slides`.
        teacher: whose features; None for tiles, shards and rows.
        what: one line for people.
        part: `table` (a table as a whole), `root` (`lake.json`, `roots.json`, a snapshot), `row`
            (of `slides`), `tiles` (rows of a features table), `features`, `shard` (pixels only),
            `shard index`, `table index`, `stray` (rows that the catalog does not name),
            `annotation` (a table of one), `file` (any other file).
        fragment: the fragment, where there is one.
        number: the slide's number, if it is known.
        path: the damaged file or table, relative to the lake, where one is known.
    """

    slide: str | None = None
    mpp: float | None = None
    teacher: str | None = None
    what: str
    part: str
    fragment: int = -1
    number: int = -1
    path: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The damage as `verify --json` prints it."""
        names = ("slide", "mpp", "teacher", "what", "part", "path")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class Verdict:
    """What was checked, and what of it is damaged.

    Attributes:
        version: of the lake; 0 if no version of its catalog can be opened.
        checked: how many slides, tiles, features (one teacher on one slide), shards, bytes.
        damage: everything found.
        unchecked: how many files have no checksum, by kind; `repair --checksums` adds them.
        whole: versions of the lake whose tables can be read in full, newest first; looked for only
            if a table is damaged.
    """

    version: int
    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("slides", "tiles", "features", "shards", "bytes"), 0)
    )
    damage: list[Damage] = field(default_factory=list)
    unchecked: dict[str, int] = field(default_factory=dict)
    whole: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    @property
    def broken_tables(self) -> list[Damage]:
        """Return the damage of whole tables: while there is any, nothing else can be judged."""
        return [one for one in self.damage if one.part == TABLE]

    def as_dict(self) -> dict[str, Any]:
        """The verdict as `verify --json` prints it."""
        return {
            "ok": self.ok,
            "version": self.version,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "whole_versions": self.whole,
            "damage": [one.as_dict() for one in self.damage],
        }
