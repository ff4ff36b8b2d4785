"""Rows of `slides` and `catalog` that contradict each other: doubled, or without a counterpart.

Columns of numbers are sorted and compared, one mpp after the other: a lake of 500,000 slides has
millions of catalog rows. Only rows that do not fit are read again to be named.
"""

from collections.abc import Iterator

import numpy as np

from featurestore.keep.verify.compact_rows import (
    NO_MARK,
    STATES,
    TILES,
    CatalogRows,
    IntArray,
    Row,
    SlideRows,
    apart,
    groups_of,
    twice,
)
from featurestore.keep.verify.damage import ROW, SHARD, TABLE, Damage
from featurestore.tables.schema import CATALOG, READY, SLIDES

TEACHERS = 1 << 24  # more than a lake can have
# Enough to see what is wrong: a lost part of the catalog would be a line for every slide in it.
MOST = 1000


def misfits(slides: SlideRows | None, catalog: CatalogRows) -> Iterator[Damage]:
    """Yield the rows that do not fit each other.

    Args:
        slides: rows of all slides; None if they can't be read.
        catalog: the catalog's rows.
    """
    for _, code in sorted(catalog.codes.mpps.items()):
        yield from _of_one_mpp(catalog, np.flatnonzero(catalog.mpp == code))
    yield from _mixed_shards(catalog)
    if slides is not None:
        yield from _slides_misfits(slides, catalog)


def _of_one_mpp(catalog: CatalogRows, rows: IntArray) -> Iterator[Damage]:
    key = catalog.slide[rows].astype(np.int64) * TEACHERS + catalog.teacher[rows] + 1
    rows = rows[np.argsort(key, kind="stable")]
    del key
    yield from _in_catalog(catalog, _several(catalog, rows), "it is in the catalog twice")
    # Runs of rows of one slide: that of its tiles comes first.
    starts, group = groups_of(catalog.slide[rows])
    teacher = catalog.teacher[rows]
    alone = (teacher[starts] != TILES)[group]
    yield from _in_catalog(catalog, rows[alone], "features without tiles")
    # All rows of a slide name the same rows of the features table.
    places = (catalog.fragment, catalog.row_start, catalog.tiles)
    elsewhere = apart([column[rows] for column in places], starts)[group] & (teacher != TILES)
    yield from _in_catalog(catalog, rows[elsewhere], "its features lie beside its tiles")


def _several(catalog: CatalogRows, rows: IntArray) -> IntArray:
    """Return the rows, sorted by slide and teacher, that have the same two as a neighbour."""
    slide, teacher = catalog.slide[rows], catalog.teacher[rows]
    same = (slide[1:] == slide[:-1]) & (teacher[1:] == teacher[:-1])
    several: IntArray = rows[np.concatenate([[False], same]) | np.concatenate([same, [False]])]
    return several


def _slides_misfits(slides: SlideRows, catalog: CatalogRows) -> Iterator[Damage]:
    for row in slides.again(twice(slides.name)[:MOST]):
        yield _row(row, "it is in slides.lance twice")
    tiles = catalog.tiles_rows
    order = np.argsort(slides.slide, kind="stable")
    numbers = slides.slide[order]
    at = np.minimum(np.searchsorted(numbers, catalog.slide[tiles]), max(len(numbers) - 1, 0))
    strangers = tiles
    if len(numbers):
        same = numbers[at] == catalog.slide[tiles]
        same &= slides.name[order[at]] == catalog.name
        strangers = tiles[~same]
    for row in catalog.again(strangers[:MOST]):
        text = f"the catalog has its tiles, but {SLIDES} has no row of it"
        yield Damage(
            slide=row["slide_id"], mpp=row["mpp"], description=text, part=TABLE, path=SLIDES
        )
    without = (slides.state == STATES[READY]) & ~np.isin(slides.slide, catalog.slide[tiles])
    for row in slides.again(np.flatnonzero(without)[:MOST]):
        yield _row(row, "it is ready, but the catalog has no tiles of it")


def _row(row: Row, text: str) -> Damage:
    return Damage(
        slide=row["slide_id"], description=text, part=ROW, number=row["slide"], path=SLIDES
    )


def _in_catalog(catalog: CatalogRows, positions: IntArray, text: str) -> Iterator[Damage]:
    for row in catalog.again(np.sort(positions)[:MOST]):
        yield Damage(
            slide=row["slide_id"],
            mpp=row["mpp"],
            teacher=row["teacher"],
            description=f"slide number {row['slide']}, {text}: {CATALOG} is not what was committed",
            part=TABLE,
            number=row["slide"],
            path=CATALOG,
        )


def _mixed_shards(catalog: CatalogRows) -> Iterator[Damage]:
    """Yield slides with shards from different ingests at different mpps.

    A shard's name carries a mark of the file's fingerprint and of the settings, so all shards of a
    slide have one mark. A slide that was cut again and published in part has two marks.
    """
    rows = catalog.tiles_rows
    with_tiles = np.flatnonzero((catalog.mark != NO_MARK) & (catalog.tiles[rows] > 0))
    with_tiles = with_tiles[np.argsort(catalog.slide[rows[with_tiles]], kind="stable")]
    rows, mark = rows[with_tiles], catalog.mark[with_tiles]
    starts, _ = groups_of(catalog.slide[rows])
    stops = np.concatenate([starts[1:], [len(rows)]])
    mixed = np.flatnonzero(apart([mark], starts))[:MOST]
    for start, stop in zip(starts[mixed].tolist(), stops[mixed].tolist(), strict=True):
        named = sorted(catalog.again(np.sort(rows[start:stop])), key=lambda row: float(row["mpp"]))
        mpps = ", ".join(str(row["mpp"]) for row in named)
        yield Damage(
            slide=named[0]["slide_id"],
            description=f"its shards at {mpps} mpp are of different scans or settings",
            part=SHARD,
            number=named[0]["slide"],
        )
