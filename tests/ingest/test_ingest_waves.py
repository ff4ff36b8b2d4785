"""Slides are given to Ray in waves of units, so that the driver does not grow with the lake."""

from typing import Any

import pytest

from ingest.ray_ingest import UNIT_BYTES, WAVE_UNITS, waves


def rows(count: int, size: int | None) -> list[dict[str, Any]]:
    return [{"slide_id": f"s{number}", "bytes": size} for number in range(count)]


@pytest.mark.parametrize(
    ("count", "size", "cores", "slides_a_unit", "units_a_wave"),
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
    count: int, size: int | None, cores: float, slides_a_unit: int, units_a_wave: int
) -> None:
    todo = rows(count, size)
    made = list(waves(todo, cores))
    assert [row for wave in made for unit in wave for row in unit] == todo
    assert max(len(unit) for wave in made for unit in wave) == slides_a_unit
    assert max(map(len, made)) == units_a_wave
    assert sum(map(len, made)) == -(-count // slides_a_unit)


def test_a_large_slide_among_small_ones_has_a_unit_of_its_own() -> None:
    todo = rows(600, 1000)
    todo[300]["bytes"] = 1 << 30
    (wave,) = waves(todo, 1)
    assert [len(unit) for unit in wave if todo[300] in unit] == [1]
