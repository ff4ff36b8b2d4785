"""Units of work of an extract: runs of rows of a fragment, and the joining of their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore import ColumnFile
from featurestore.tables import PartName
from ingest.teachers.outputs import FILLED
from ingest.teachers.views.field_of_view import FieldOfView

Float32Array = npt.NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice of tiles that teachers are run on; features of other tiles are NaN.

    Attributes:
        where: a predicate on the tiles' columns, as `tissue > 0.5 AND pen < 0.05`; None for all.
        share: share of the tiles, the same for every teacher; None for all.
        marks: values of the annotations that `where` names: other values choose other tiles.
    """

    where: str | None = None
    share: float | None = None
    marks: Mapping[str, str] | None = None

    def identity(self) -> dict[str, Any]:
        """Return the part of the choice that decides the numbers of a column."""
        choice = {"where": self.where, "share": self.share, "annotations": self.marks or None}
        return {name: setting for name, setting in choice.items() if setting is not None}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of a fragment to run teachers on, with the catalog rows of the slides in them.

    Attributes:
        mpp: microns per pixel of the fragment's table.
        fragment: the fragment's id.
        fields: the teachers' columns that the fragment lacks.
        slides: catalog rows of the slides, in row order. Where a field of view is put together from
            finer tiles, each has `finer`, the slide's rows at these mpps, and `origin`, where the
            slide is.
        rows: physical rows of the whole fragment.
        tile_px: side of the lake's tiles.
        choice: the tiles to run on.
        first: number of the unit's first row in the fragment.
        stop: number of the row after its last; None for the end of the fragment.
        keys: hash of each column for the names of parts; empty if the unit is a whole fragment,
            whose columns are written directly.
    """

    mpp: float
    fragment: int
    fields: tuple[pa.Field, ...]
    slides: tuple[Row, ...]
    rows: int
    tile_px: int
    choice: Choice = Choice()
    first: int = 0
    stop: int | None = None
    keys: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """Return the number of the row after the unit's last."""
        return self.rows if self.stop is None else self.stop

    @property
    def tiles(self) -> int:
        """Return the number of tiles in the unit's rows."""
        return tiles_between(self.slides, self.first, self.end)

    def view_of(self, identity: Mapping[str, Any]) -> FieldOfView:
        """Return the field of view of a column, from its identity."""
        return FieldOfView.of_identity(identity, tile_px=self.tile_px, mpp=self.mpp)

    def part_names(self) -> dict[str, PartName]:
        """Return the name of each column's part; empty for a whole fragment."""
        return {
            column.name: PartName(fragment=self.fragment, key=key, first=self.first, stop=self.end)
            for column, key in zip(self.fields, self.keys, strict=False)
        }


@dataclass(frozen=True, kw_only=True)
class Join:
    """The joining of a fragment's parts into its columns.

    Attributes:
        unit: the whole fragment.
        parts: names of the parts of each column, in row order.
    """

    unit: Unit
    parts: Mapping[str, tuple[PartName, ...]]


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a unit or of a join: its files, or the reason why there are none.

    Attributes:
        unit: unit that was to be computed; the whole fragment of a join.
        is_join: whether parts were to be joined, and nothing computed.
        files: file of each column, if the unit is a whole fragment or was joined.
        seconds: seconds in which its network ran, by column; shared time is divided among columns.
        wall_s: seconds of the whole run, without the time to build networks.
        tiles: number of tiles that the networks were run on.
        filled: by column: number of tiles of whose field a part was filled with background.
        left_out: by column: number of tiles of whose field too large a part was, so that it is NaN.
        reason: why the unit failed.
        no_keys: whether it failed because its machine has no keys of the bucket.
        joined: paths of the parts that are in the files now, and so of no more use.
        damaged: rows whose parts were not whole, so that a join could not be done.
    """

    unit: Unit
    is_join: bool = False
    files: list[ColumnFile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    tiles: int = 0
    filled: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    no_keys: bool = False
    joined: list[str] = field(default_factory=list)
    damaged: tuple[int, int] | None = None

    def count_filled(self, column: str, shares: Float32Array, left_out: int) -> None:
        """Count tiles with filled fields.

        Args:
            column: column of the shares.
            shares: share of each tile's field that was filled.
            left_out: number of tiles whose share is too large.
        """
        name = column.removesuffix(f"@{FILLED}")
        self.filled[name] = self.filled.get(name, 0) + int((shares > 0).sum())
        self.left_out[name] = self.left_out.get(name, 0) + left_out


def tiles_between(slides: tuple[Row, ...], first: int, stop: int) -> int:
    """Return how many tiles of some slides lie in the rows from `first` to before `stop`."""
    return sum(
        max(0, min(stop, row["row_start"] + row["tiles"]) - max(first, row["row_start"]))
        for row in slides
    )


def unit_end(slides: tuple[Row, ...], first: int, stop: int, *, aim: int, grain: int) -> int:
    """Return the row at which a unit that begins at `first` ends, at most `stop`.

    A unit ends between two slides if one ends near, so that each shard is read once; a slide that
    is larger than a unit is cut at a multiple of `grain` of its tiles.

    Args:
        slides: catalog rows of the slides, in row order.
        first: first row of the unit.
        stop: row at which the rows to be shared out end.
        aim: number of tiles that the unit is to have; it has half of it to one and a half.
        grain: number of tiles that are computed together.
    """
    if 2 * tiles_between(slides, first, stop) <= 3 * aim:
        return stop
    tiles, near = 0, (aim, stop)  # how far from the aim, and where
    for row in slides:
        low = max(first, row["row_start"])
        high = min(stop, row["row_start"] + row["tiles"])
        before, tiles = tiles, tiles + max(0, high - low)
        if aim <= 2 * tiles and 2 * tiles <= 3 * aim:
            near = min(near, (abs(tiles - aim), high))
        elif 2 * tiles > 3 * aim:
            if near[1] == stop:  # no slide ends near: this one is cut
                inside = low - row["row_start"] + aim - before
                near = (0, min(high, row["row_start"] + -(-inside // grain) * grain))
            break
    return near[1]


def outcome_of(task: Unit | Join, reason: str | None = None) -> Outcome:
    """Return the outcome of a task of which nothing is done yet, or that failed."""
    if isinstance(task, Join):
        return Outcome(unit=task.unit, is_join=True, reason=reason)
    return Outcome(unit=task, reason=reason)
