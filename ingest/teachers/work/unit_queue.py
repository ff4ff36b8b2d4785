"""Sharing out the rows of fragments among workers; no Ray and no files in here.

A unit is as large as is done in two minutes at the measured rate, so that a lost worker costs
no more, and smaller towards the end, so that all workers end at about the same time (guided
self-scheduling: Polychronopoulos and Kuck 1987). A fragment that is one unit needs no parts.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from featurestore.tables import PartName, column_key
from ingest.teachers.work.units import Join, Outcome, Unit, tiles_between, unit_end

#: A unit is done in about so many seconds, and in no fewer as long as there is a choice.
UNIT_S, LEAST_S = 120.0, 10.0
#: Bytes of a column's part.
PART_BYTES = 1 << 30
#: Workers that may die at one unit before it is given up.
TRIES = 3
#: Shares of what is left that a worker gets, with one or several workers.
SHARES = 2


@dataclass(frozen=True, kw_only=True)
class UnitSizes:
    """Numbers of tiles that bound units.

    Attributes:
        first: tiles of a unit as long as no rate is known.
        least: tiles below which a unit is not worth its start.
        most: tiles of the largest unit.
        grain: tiles that a network gets at once; slides are cut at a multiple of it.
    """

    first: int
    least: int
    most: int
    grain: int


SIZES: dict[Literal["cuda", "cpu"], UnitSizes] = {
    "cpu": UnitSizes(first=512, least=256, most=65_536, grain=32),
    "cuda": UnitSizes(first=4096, least=1024, most=65_536, grain=256),
}


@dataclass(kw_only=True, eq=False)
class _Fragment:
    """The state of a fragment: rows to be given out, rows that are out, and whole parts."""

    whole: Unit
    gaps: list[tuple[int, int]]
    parts: set[tuple[int, int]] = field(default_factory=set)
    out: int = 0
    failed: bool = False
    queued: bool = True

    @cached_property
    def keys(self) -> tuple[str, ...]:
        whole = self.whole
        return tuple(column_key(column, whole.mpp, whole.slides) for column in whole.fields)

    def tiles_in_gaps(self) -> int:
        return sum(tiles_between(self.whole.slides, *gap) for gap in self.gaps)


class UnitQueue:
    """The units of an extract that are to be done, of fragments in a given order.

    Args:
        fragments: whole fragments with the columns that each lacks.
        parts: parts that the lake has, by fragment and column, as `parts_in` returns them.
        workers: number of workers.
        sizes: bounds of the units.

    Attributes:
        workers: number of workers; it may change while they work.
        features: number of tile features of all fragments.
        reused: number of tile features in parts of an earlier run that are not computed again.
    """

    def __init__(
        self,
        fragments: Sequence[Unit],
        parts: Mapping[tuple[int, str], Sequence[PartName]],
        *,
        workers: int,
        sizes: UnitSizes,
    ) -> None:
        self.workers, self.reused, self._sizes = workers, 0, sizes
        self._rate: float | None = None  # tile features a second, of one worker
        self._fragments: dict[tuple[float, int], _Fragment] = {}
        self._deaths: dict[tuple[float, int, int, int], int] = {}
        self._joins: deque[Join] = deque()
        self._order: deque[_Fragment] = deque()
        self._out = 0
        with_parts = {number for number, _ in parts}  # a key takes 0.1 ms a column
        for unit in fragments:
            fragment = _Fragment(whole=unit, gaps=_gaps(unit, set()))
            if unit.fragment in with_parts:
                of_fragment = [parts.get((unit.fragment, key), ()) for key in fragment.keys]
                fragment.parts = _common_parts(of_fragment)
                fragment.gaps = _gaps(unit, fragment.parts)
            tiles = sum(tiles_between(unit.slides, *part) for part in fragment.parts)
            self.reused += tiles * len(unit.fields)
            self._fragments[unit.mpp, unit.fragment] = fragment
            self._order.append(fragment)
            self._join_if_whole(fragment)
        self._left = sum(fragment.tiles_in_gaps() for fragment in self._order)
        self.features = sum(unit.tiles * len(unit.fields) for unit in fragments)

    @property
    def tiles_left(self) -> int:
        """Return the number of tiles that no worker has been given."""
        return self._left

    @property
    def most_workers(self) -> int:
        """Return how many workers the tiles that are left have use for, at least 1."""
        return max(1, -(-self._left // self._sizes.least))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left and nothing is out."""
        return not self._joins and not self._out and not self._left

    def take_join(self) -> Join | None:
        """Return the next fragment whose parts are all there."""
        if not self._joins:
            return None
        join = self._joins.popleft()
        self._count_out(self._of(join.unit), 1)
        return join

    def take(self) -> Unit | None:
        """Return the next unit; None if all rows have been given out."""
        while self._order and not self._order[0].gaps:
            self._order.popleft().queued = False
        if not self._order:
            return None
        fragment = self._order[0]
        whole = fragment.whole
        first, last = fragment.gaps[0]
        aim = self._aim(whole)
        stop = unit_end(whole.slides, first, last, aim=aim, grain=self._sizes.grain)
        rest = [(stop, last)] if _has_tiles(whole, stop, last) else []
        fragment.gaps[0:1] = rest
        self._count_out(fragment, 1)
        unit = _unit_of(fragment, first, stop if rest else last)
        self._left -= unit.tiles
        return unit

    def _aim(self, unit: Unit) -> int:
        """Return the number of tiles that the next unit is to have."""
        sizes, columns = self._sizes, len(unit.fields)
        by_time = sizes.first if self._rate is None else self._rate * UNIT_S / columns
        least = sizes.least if self._rate is None else self._rate * LEAST_S / columns
        share = self._left / (SHARES * self.workers) if self.workers > 1 else self._left
        widest = max(column.type.list_size for column in unit.fields)
        most = min(sizes.most, by_time, PART_BYTES / (2 * widest))
        return max(1, int(min(max(share, least, sizes.least), most)))

    def put_back(self, task: Unit | Join, *, worker_died: bool) -> str | None:
        """Take back what a lost worker had in hand; return the reason if it is given up.

        Args:
            task: the unit or join.
            worker_died: whether the worker died and its node did not: then the task may be the
                cause, and is given up after some deaths.
        """
        if isinstance(task, Join):
            self._count_out(self._of(task.unit), -1)
            self._joins.appendleft(task)
            return None
        place = (task.mpp, task.fragment, task.first, task.end)
        self._deaths[place] = self._deaths.get(place, 0) + worker_died
        if self._deaths[place] >= TRIES:
            reason = f"the worker died on it {TRIES} times (out of memory, or a crash in a decoder)"
            self.finished(Outcome(unit=task, reason=reason))
            return reason
        fragment = self._of(task)
        self._count_out(fragment, -1)
        if not fragment.failed:
            self._add_gap(fragment, task.first, task.end)
        return None

    def finished(self, outcome: Outcome) -> None:
        """Note that a unit or a join is done, and what of it failed."""
        unit = outcome.unit
        fragment = self._of(unit)
        self._count_out(fragment, -1)
        if outcome.damaged is not None:
            fragment.parts.discard(outcome.damaged)
            self._add_gap(fragment, *outcome.damaged)
        elif outcome.reason is not None:
            self._left -= fragment.tiles_in_gaps()
            fragment.failed, fragment.gaps = True, []
        elif not outcome.files:
            fragment.parts.add((unit.first, unit.end))
            self._join_if_whole(fragment)
        if outcome.tiles and outcome.wall_s > 0:
            rate = unit.tiles * len(unit.fields) / outcome.wall_s
            self._rate = rate if self._rate is None else (self._rate + rate) / 2

    def whole(self, unit: Unit) -> Unit:
        """Return the fragment that a unit belongs to."""
        return self._of(unit).whole

    def _of(self, unit: Unit) -> _Fragment:
        return self._fragments[unit.mpp, unit.fragment]

    def _add_gap(self, fragment: _Fragment, first: int, stop: int) -> None:
        fragment.gaps = sorted([*fragment.gaps, (first, stop)])
        self._left += tiles_between(fragment.whole.slides, first, stop)
        if not fragment.queued:
            fragment.queued = True
            self._order.appendleft(fragment)

    def _count_out(self, fragment: _Fragment, change: int) -> None:
        fragment.out += change
        self._out += change

    def _join_if_whole(self, fragment: _Fragment) -> None:
        if fragment.gaps or fragment.out or fragment.failed:
            return
        whole = fragment.whole
        parts = {
            column.name: tuple(
                PartName(fragment=whole.fragment, key=key, first=first, stop=stop)
                for first, stop in sorted(fragment.parts)
            )
            for column, key in zip(whole.fields, fragment.keys, strict=True)
        }
        self._joins.append(Join(unit=whole, parts=parts))


def _unit_of(fragment: _Fragment, first: int, stop: int) -> Unit:
    """Return some rows of a fragment as a unit, or the fragment itself if these are all."""
    whole = fragment.whole
    if not fragment.parts and tiles_between(whole.slides, first, stop) == whole.tiles:
        return whole
    slides = tuple(
        row
        for row in whole.slides
        if row["row_start"] < stop and row["row_start"] + row["tiles"] > first
    )
    return replace(whole, slides=slides, first=first, stop=stop, keys=fragment.keys)


def _has_tiles(unit: Unit, first: int, stop: int) -> bool:
    return tiles_between(unit.slides, first, stop) > 0


def _common_parts(by_column: Sequence[Sequence[PartName]]) -> set[tuple[int, int]]:
    """Return runs of rows of which each column has a part; none overlaps another."""
    common = set.intersection(*({(part.first, part.stop) for part in parts} for parts in by_column))
    chosen: set[tuple[int, int]] = set()
    at = 0
    for first, stop in sorted(common, key=lambda rows: (rows[0], -rows[1])):
        if first >= at:
            chosen.add((first, stop))
            at = stop
    return chosen


def _gaps(unit: Unit, parts: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs of rows with tiles between the parts."""
    edges = [0, *(row for part in sorted(parts) for row in part), unit.rows]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(first, stop) for first, stop in gaps if _has_tiles(unit, first, stop)]
