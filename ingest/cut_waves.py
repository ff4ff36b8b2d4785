"""Slides in units and waves, so that the driver of an ingest does not grow with the slides."""

from collections.abc import Iterator, Sequence
from typing import Any

#: Slides that one task cuts: a large one, or as many small ones.
UNIT_SLIDES, UNIT_BYTES, UNITS_A_WORKER = 16, 64 << 20, 16
#: Units that Ray is given at once.
WAVE_UNITS, WAVE_UNITS_A_WORKER = 2048, 64

Row = dict[str, Any]


def waves(todo: Sequence[Row], workers: int) -> Iterator[list[list[Row]]]:
    """Yield the slides in waves of units; a unit is cut by one task, small slides several.

    Ray Data keeps about 14 kB of every unit that it was given, and takes 1 ms to be given it, so
    units are given a wave at a time: at least 64 of them a worker, so that the time of workers that
    have nothing left at the end of a wave is about a hundredth.

    Args:
        todo: rows of slides, with their bytes.
        workers: number of workers that cut at the same time.
    """
    most_slides = max(1, min(UNIT_SLIDES, len(todo) // (UNITS_A_WORKER * workers)))
    most_units = max(WAVE_UNITS, int(WAVE_UNITS_A_WORKER * workers))
    wave: list[list[Row]] = []
    size = 0
    for row in todo:
        row_bytes = row["bytes"] or 0
        if wave and len(wave[-1]) < most_slides and size + row_bytes <= UNIT_BYTES:
            wave[-1].append(row)
            size += row_bytes
            continue
        if len(wave) == most_units:
            yield wave
            wave = []
        wave.append([row])
        size = row_bytes
    if wave:
        yield wave
