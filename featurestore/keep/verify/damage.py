"""The damage of a lake as `verify` reports it, by the parts that `repair` treats alike."""

from dataclasses import dataclass, field
from typing import Any

from featurestore.notebook.shown import Shown

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
#: A table of slides' vectors; `slidelake encode` makes it again once it is dropped.
ENCODING = "slide encoding"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One damaged part of a lake: it differs from the committed part.

    Attributes:
        slide: slide_id; None if a table or a file is meant.
        mpp: mpp of the damaged part; None for a row of `slides`.
        teacher: column of the features; None for tiles, shards and rows.
        description: one line for the user.
        part: `table` (a table as a whole), `root` (`lake.json`, `roots.json`, a snapshot), `row`
            (of `slides`), `tiles` (rows of a features table), `features`, `shard` (pixels only),
            `shard index`, `table index`, `stray` (rows that the catalog does not name),
            `annotation` (an annotation's table), `slide encoding` (a table of slides' vectors),
            `file` (any other file).
        fragment: number of the fragment, or None.
        number: the slide's number, if it is known.
        path: the damaged file or table, relative to the lake, or None.
    """

    slide: str | None = None
    mpp: float | None = None
    teacher: str | None = None
    description: str
    part: str
    fragment: int = -1
    number: int = -1
    path: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the damage as `verify --json` prints it."""
        return {
            "slide": self.slide,
            "mpp": self.mpp,
            "teacher": self.teacher,
            "what": self.description,
            "part": self.part,
            "path": self.path,
        }


@dataclass(kw_only=True, repr=False)
class Verdict(Shown):
    """The parts of a lake that were checked, and the damage among them.

    Attributes:
        version: version of the lake; 0 if no version of its catalog can be opened.
        checked: numbers of slides, tiles, features (one teacher on one slide), shards, bytes.
        damage: all of it.
        unchecked: numbers of files without a checksum, by kind; `repair --checksums` adds them.
        whole: versions of the lake with undamaged tables, newest first; searched only
            if a table is damaged.
        parts: number and bytes of parts of columns, which no version names: of an extract that is
            at work, or was cut short and goes on from them; `vacuum` removes them.

    Examples:
        >>> verdict = sl.verify(sl.open_lake("my-lake"))
        >>> verdict.ok, verdict.checked["tiles"], verdict.damage
        (True, 325, [])
    """

    version: int
    checked: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("slides", "tiles", "features", "shards", "bytes"), 0)
    )
    damage: list[Damage] = field(default_factory=list)
    unchecked: dict[str, int] = field(default_factory=dict)
    whole: list[int] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=lambda: {"files": 0, "bytes": 0})

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged.

        Examples:
            >>> sl.verify(sl.open_lake("my-lake")).ok
            True
        """
        return not self.damage

    @property
    def broken_tables(self) -> list[Damage]:
        """Return the damage of whole tables: while there is any, nothing else can be judged.

        Examples:
            >>> sl.verify(sl.open_lake("my-lake")).broken_tables
            []
        """
        return [one for one in self.damage if one.part == TABLE]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as `verify --json` prints it.

        Examples:
            >>> sl.verify(sl.open_lake("my-lake")).as_dict()["damage"]
            []
        """
        return {
            "ok": self.ok,
            "version": self.version,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "whole_versions": self.whole,
            "parts": self.parts,
            "damage": [one.as_dict() for one in self.damage],
        }
