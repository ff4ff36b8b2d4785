"""Slides are given to Ray in waves of units, so that the driver does not grow with the lake."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cluster import Placement
from cluster.ray_session import quiet_ray_data
from featurestore import LakeConfig, SlideCut, Store
from ingest import ray_ingest
from ingest.cut_waves import UNIT_BYTES, WAVE_UNITS, waves

Row = dict[str, Any]
Units = Sequence[Sequence[Row]]
ONE = Placement(device="cpu", workers=1, cpus_per_worker=1.0, gpus_per_worker=0.0)


def rows(count: int, size: int | None) -> list[Row]:
    return [{"slide_id": f"s{number}", "bytes": size} for number in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "workers", "slides_a_unit", "units_a_wave"),
    [
        (12, 10_000, 2, 1, 12),  # few slides: one a task, so that every core has one
        (300_000, 10_000, 2, 16, WAVE_UNITS),
        (300_000, None, 2, 16, WAVE_UNITS),
        (300_000, 1 << 30, 2, 1, WAVE_UNITS),
        (300_000, UNIT_BYTES // 4, 64, 4, 4096),
        (300_000, 10_000, 2000, 9, 33_334),  # as many as the cores want: all in one wave
    ],
)
def test_units_and_waves(
    count: int, size: int | None, workers: int, slides_a_unit: int, units_a_wave: int
) -> None:
    todo = rows(count, size)
    made = list(waves(todo, workers))
    assert [row for wave in made for unit in wave for row in unit] == todo
    assert max(len(unit) for wave in made for unit in wave) == slides_a_unit
    assert max(map(len, made)) == units_a_wave
    assert sum(map(len, made)) == -(-count // slides_a_unit)


def test_a_large_slide_among_small_ones_has_a_unit_of_its_own() -> None:
    todo = rows(600, 1000)
    todo[300]["bytes"] = 1 << 30
    (wave,) = waves(todo, 1)
    assert [len(unit) for unit in wave if todo[300] in unit] == [1]


def test_slides_that_die_with_another_are_cut_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies takes its unit with it; then only the slide that killed it is lost."""
    given: list[list[str]] = []

    def cut(
        _store: object, _config: object, _limit_s: float, _share: float, units: Units
    ) -> Iterator[Row]:
        for unit in units:
            given.append([row["slide_id"] for row in unit])
            if "s33" not in given[-1]:
                yield from unit

    quiet_ray_data()
    monkeypatch.setattr(ray_ingest, "_cut_by_ray", cut)
    todo = rows(64, 1000)
    outcomes = list(ray_ingest._outcomes(Store("lake"), LakeConfig(), todo, 60.0, ONE))
    names = [outcome["slide_id"] for outcome in outcomes if not isinstance(outcome, SlideCut)]
    assert sorted(names) == sorted(row["slide_id"] for row in todo if row["slide_id"] != "s33")
    assert len(names) == 63
    assert given[16:] == [["s32"], ["s33"], ["s34"], ["s35"]]
