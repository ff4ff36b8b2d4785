"""Sharing out rows: where units end, who gets what, and what comes back from the dead."""

import heapq
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.tables import PartName, column_key
from ingest.teachers.work.unit_queue import LEAST_S, SIZES, TRIES, UNIT_S, UnitQueue, UnitSizes
from ingest.teachers.work.units import Join, Outcome, Unit, unit_end

SMALL = UnitSizes(first=16, least=8, most=32, grain=4)
NO_PARTS: Mapping[tuple[int, str], Sequence[PartName]] = {}


def rows_of(tiles: Sequence[int], *, gap: int = 0) -> tuple[dict[str, Any], ...]:
    """Catalog rows of slides one after the other, with `gap` deleted rows before each."""
    rows, start = [], 0
    for slide, count in enumerate(tiles):
        start += gap
        rows.append({"slide": slide, "slide_id": f"s{slide}", "row_start": start, "tiles": count})
        start += count
    return tuple(rows)


def fragment(number: int, tiles: Sequence[int], *, columns: int = 1, gap: int = 0) -> Unit:
    slides = rows_of(tiles, gap=gap)
    fields = tuple(pa.field(f"t{n}", pa.list_(pa.float16(), 4)) for n in range(columns))
    rows = sum(tiles) + gap * len(tiles)
    return Unit(mpp=0.5, fragment=number, fields=fields, slides=slides, rows=rows, tile_px=256)


@pytest.mark.parametrize(
    ("tiles", "first", "aim", "end"),
    [
        ([10, 10, 10], 0, 10, 10),  # at a slide's end
        ([10, 10, 10], 0, 12, 10),  # at the nearest one
        ([10, 10, 10], 0, 16, 20),
        ([10, 10, 10], 10, 20, 30),  # all that is left
        ([10, 10, 10], 0, 21, 30),  # a rest of less than half a unit goes along
        ([100, 10], 0, 30, 32),  # inside a slide, at a multiple of the grain
        ([100, 10], 32, 30, 64),
        ([5, 100], 0, 20, 21),  # a multiple of the slide's own tiles: 5 + 16
        ([100], 96, 30, 100),
    ],
)
def test_where_a_unit_ends(tiles: list[int], first: int, aim: int, end: int) -> None:
    assert unit_end(rows_of(tiles), first, sum(tiles), aim=aim, grain=4) == end


@given(
    tiles=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    gap=st.integers(0, 3),
    workers=st.integers(1, 5),
    columns=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_every_row_is_computed_once_whatever_is_lost(
    tiles: list[int], gap: int, workers: int, columns: int, seed: int
) -> None:
    """Units in any order, some put back; the parts of a join cover all tiles without overlap."""
    chance = random.Random(seed)
    units = [fragment(0, tiles, columns=columns, gap=gap), fragment(1, tiles[:2], columns=columns)]
    queue = UnitQueue(units, NO_PARTS, workers=workers, sizes=SMALL)
    out: list[Unit | Join] = []
    computed: dict[int, set[int]] = {0: set(), 1: set()}
    joined: list[int] = []
    while not queue.is_done:
        while (task := queue.take_join() or queue.take()) is not None and len(out) < workers:
            out.append(task)
        if task is not None:
            out.append(task)
        task = out.pop(chance.randrange(len(out)))
        if chance.random() < 0.2:
            queue.put_back(task, worker_died=False)
            continue
        if isinstance(task, Join):
            joined.append(task.unit.fragment)
            for parts in task.parts.values():
                spans = [(part.first, part.stop) for part in parts]
                assert all(one[1] <= other[0] for one, other in pairwise(spans))
                covered = {row for first, stop in spans for row in range(first, stop)}
                assert tile_rows(task.unit) <= covered
            queue.finished(Outcome(unit=task.unit, files=[_file()]))
            continue
        rows = tile_rows(task)
        assert rows
        assert not rows & computed[task.fragment]
        computed[task.fragment] |= rows
        files = [] if task.keys else [_file()]
        outcome = Outcome(unit=task, files=files, tiles=len(rows), wall_s=len(rows) / 3)
        queue.finished(outcome)
    assert computed == {unit.fragment: tile_rows(unit) for unit in units}
    assert len(joined) == len(set(joined))
    assert queue.tiles_left == 0


def tile_rows(unit: Unit) -> set[int]:
    return {
        row
        for slide in unit.slides
        for row in range(slide["row_start"], slide["row_start"] + slide["tiles"])
        if unit.first <= row < unit.end
    }


def _file() -> Any:  # noqa: ANN401 - the queue only looks whether there is one
    return object()


def test_a_small_fragment_is_one_unit_without_parts() -> None:
    whole = fragment(0, [7, 9])
    queue = UnitQueue([whole], NO_PARTS, workers=1, sizes=SMALL)
    assert queue.take() is whole
    assert not whole.part_names()
    queue.finished(Outcome(unit=whole, files=[_file()], tiles=16, wall_s=1.0))
    assert queue.is_done


def test_a_resumed_run_takes_the_parts_that_are_there() -> None:
    whole = fragment(3, [40, 40], columns=2)
    keys = [column_key(column, 0.5, whole.slides) for column in whole.fields]
    spans = {keys[0]: [(0, 16), (16, 40), (56, 80)], keys[1]: [(0, 16), (56, 80), (48, 72)]}
    parts = {
        (3, key): [PartName(fragment=3, key=key, first=a, stop=b) for a, b in some]
        for key, some in spans.items()
    }
    queue = UnitQueue([whole], parts, workers=1, sizes=SMALL)
    assert queue.reused == 2 * (16 + 24)  # both columns have these
    assert queue.features == 160
    left = []
    while (unit := queue.take()) is not None:
        left.append((unit.first, unit.end))
        queue.finished(Outcome(unit=unit, tiles=unit.tiles, wall_s=1.0))
    assert (left[0][0], left[-1][1]) == (16, 56)
    join = queue.take_join()
    assert join is not None
    assert [(part.first, part.stop) for part in join.parts["t1"]] == sorted(
        [(0, 16), *left, (56, 80)]
    )


def test_parts_of_another_encoder_slide_or_choice_are_none() -> None:
    whole = fragment(0, [40, 40])
    (column,) = whole.fields
    key = column_key(column, 0.5, whole.slides)
    first, second = whole.slides
    others = [
        column_key(column.with_metadata({b"identity": b"other"}), 0.5, whole.slides),
        column_key(column, 2.0, whole.slides),
        column_key(column, 0.5, [first]),
        column_key(column, 0.5, [first, {**second, "shard_crc32": 1}]),
        column_key(column, 0.5, [first, {**second, "where": "tissue > 0.5"}]),
    ]
    assert len({key, *others}) == 6


def test_all_parts_there_is_a_join_and_nothing_else() -> None:
    whole = fragment(0, [40, 40])
    key = column_key(whole.fields[0], 0.5, whole.slides)
    parts = [PartName(fragment=0, key=key, first=a, stop=b) for a, b in [(0, 40), (40, 80)]]
    queue = UnitQueue([whole], {(0, key): parts}, workers=2, sizes=SMALL)
    assert queue.take() is None
    join = queue.take_join()
    assert join is not None
    queue.finished(Outcome(unit=join.unit, damaged=(0, 40)))  # one of them is computed again
    unit = queue.take()
    assert unit is not None
    assert unit.first == 0


def test_a_unit_that_kills_workers_is_given_up_and_the_others_go_on() -> None:
    bad, good = fragment(0, [40, 40]), fragment(1, [8])
    queue = UnitQueue([bad, good], NO_PARTS, workers=2, sizes=SMALL)
    reasons: list[str | None] = []
    done = []
    while not queue.is_done:
        unit = queue.take()
        assert unit is not None
        if unit.fragment == 0 and unit.first == 0:
            reasons.append(queue.put_back(unit, worker_died=True))
        else:
            done.append(unit.fragment)
            files = [] if unit.keys else [_file()]
            queue.finished(Outcome(unit=unit, files=files, tiles=unit.tiles, wall_s=1.0))
    assert reasons[:-1] == [None] * (TRIES - 1)
    assert "died on it 3 times" in str(reasons[-1])
    assert 1 in done
    assert queue.take_join() is None


def test_lost_nodes_are_no_fault_of_a_unit() -> None:
    queue = UnitQueue([fragment(0, [40])], NO_PARTS, workers=1, sizes=SMALL)
    for _ in range(10 * TRIES):
        unit = queue.take()
        assert unit is not None
        assert queue.put_back(unit, worker_died=False) is None


def run_simulated(
    units: Sequence[Unit],
    *,
    workers: int,
    tiles_per_s: float,
    start_s: float = 1.0,
    lost_at_s: float | None = None,
) -> tuple[float, float]:
    """Run a queue on workers of a clock; return seconds, and the tiles that the lost one had.

    One worker is lost at a moment, and another is up two minutes later.
    """
    queue = UnitQueue(units, NO_PARTS, workers=workers, sizes=SIZES["cuda"])
    events: list[tuple[float, int, Unit | Join | None]] = [(0.0, n, None) for n in range(workers)]
    lost, now, free = 0.0, 0.0, set[int]()
    while events:
        now, number, task = heapq.heappop(events)
        if lost_at_s is not None and now >= lost_at_s and isinstance(task, Unit):
            queue.put_back(task, worker_died=False)
            lost, lost_at_s = float(task.tiles), None
            heapq.heappush(events, (now + 120.0, number, None))
            continue
        if isinstance(task, Join):
            queue.finished(Outcome(unit=task.unit, files=[_file()]))
        elif task is not None:
            files = [] if task.keys else [_file()]
            took = task.tiles / tiles_per_s
            queue.finished(Outcome(unit=task, files=files, tiles=task.tiles, wall_s=took))
        free.add(number)
        for number in sorted(free):
            following = queue.take_join() or queue.take()
            if following is None:
                break
            free.discard(number)
            seconds = 2.0 if isinstance(following, Join) else following.tiles / tiles_per_s
            heapq.heappush(events, (now + start_s + seconds, number, following))
    assert queue.is_done
    return now, lost


@pytest.mark.parametrize("tiles_per_s", [300.0, 3000.0])
def test_a_hundred_slides_keep_eight_gpus_busy(tiles_per_s: float) -> None:
    """In fragments of 64 slides, as `ingest` makes them: two, for eight GPUs."""
    chance = random.Random(0)
    tiles = [max(200, round(chance.lognormvariate(9.4, 0.6))) for _ in range(100)]
    units = [fragment(0, tiles[:64]), fragment(1, tiles[64:])]
    seconds, _ = run_simulated(units, workers=8, tiles_per_s=tiles_per_s)
    busy = sum(tiles) / tiles_per_s / 8 / seconds
    assert busy > (0.93 if tiles_per_s == 300 else 0.75)


def test_a_preempted_node_loses_minutes() -> None:
    tiles = [15_000] * 100
    units = [fragment(0, tiles[:64]), fragment(1, tiles[64:])]
    whole, _ = run_simulated(units, workers=8, tiles_per_s=300)
    seconds, lost = run_simulated(units, workers=8, tiles_per_s=300, lost_at_s=200.0)
    assert 0 < lost <= 1.5 * UNIT_S * 300
    assert seconds < whole + UNIT_S / 2 + LEAST_S
