"""Rows of `slides` and `catalog` that do not fit each other: twice there, or of what is not there.

Whole frames are compared at once: a lake of 500,000 slides has millions of catalog rows.
"""

from collections.abc import Iterator

import polars as pl

from featurestore.damage import ROW, SHARD, TABLE, Damage
from featurestore.schema import CATALOG, READY, SLIDES

KEY = ["slide", "mpp", "teacher"]
PLACE = ["fragment", "row_start", "tiles"]
# Enough to see what is wrong: a lost part of the catalog would be a line for every slide in it.
MOST = 1000


def misfits(slides: pl.DataFrame | None, catalog: pl.DataFrame) -> Iterator[Damage]:
    """Yield what does not fit.

    Args:
        slides: `slide`, `slide_id`, `state` of all slides; None if they can't be read.
        catalog: the catalog's rows, with `slide_id` of rows of tiles.
    """
    tiles = catalog.filter(pl.col("teacher").is_null())
    yield from _in_catalog(_twice(catalog, KEY), "it is in the catalog twice")
    teachers = catalog.filter(pl.col("teacher").is_not_null())
    alone = teachers.join(tiles, on=["slide", "mpp"], how="anti")
    yield from _in_catalog(alone, "features without tiles")
    yield from _in_catalog(_elsewhere(teachers, tiles), "its features lie beside its tiles")
    yield from halves(tiles)
    if slides is not None:
        yield from _slides_misfits(slides, tiles)


def _slides_misfits(slides: pl.DataFrame, tiles: pl.DataFrame) -> Iterator[Damage]:
    for row in _twice(slides, ["slide_id"]).head(MOST).iter_rows(named=True):
        yield _row(row, "it is in slides.lance twice")
    strangers = tiles.join(slides, on=["slide", "slide_id"], how="anti")
    for row in strangers.head(MOST).iter_rows(named=True):
        what = f"the catalog has its tiles, but {SLIDES} has no row of it"
        yield Damage(slide=row["slide_id"], mpp=row["mpp"], what=what, part=TABLE, path=SLIDES)
    ready = slides.filter(pl.col("state") == READY)
    for row in ready.join(tiles, on="slide", how="anti").head(MOST).iter_rows(named=True):
        yield _row(row, "it is ready, but the catalog has no tiles of it")


def _row(row: dict[str, object], what: str) -> Damage:
    return Damage(
        slide=str(row["slide_id"]),
        what=what,
        part=ROW,
        number=int(str(row["slide"])),
        path=SLIDES,
    )


def _twice(rows: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    return rows.filter(pl.struct(key).is_duplicated())


def _elsewhere(teachers: pl.DataFrame, tiles: pl.DataFrame) -> pl.DataFrame:
    """Rows of teachers that name other rows of the features table than the tiles' row does."""
    both = teachers.join(tiles.select("slide", "mpp", *PLACE), on=["slide", "mpp"], suffix="_tiles")
    other = [pl.col(name) != pl.col(f"{name}_tiles") for name in PLACE]
    return both.filter(pl.any_horizontal(other))


def _in_catalog(rows: pl.DataFrame, what: str) -> Iterator[Damage]:
    for row in rows.head(MOST).iter_rows(named=True):
        yield Damage(
            slide=row["slide_id"],
            mpp=row["mpp"],
            teacher=row["teacher"],
            what=f"{what}: {CATALOG} is not what was committed",
            part=TABLE,
            number=row["slide"],
            path=CATALOG,
        )


def halves(tiles: pl.DataFrame) -> Iterator[Damage]:
    """Yield slides whose shards at several mpps are not of one cutting.

    A shard's name carries a mark of the file's fingerprint and of the settings, so all shards of a
    slide have one mark. A slide that was cut again and published by halves has two.
    """
    mark = pl.col("shard").str.split("-").list.last().str.strip_suffix(".tar")
    with_tiles = tiles.filter(pl.col("shard").is_not_null(), pl.col("tiles") > 0)
    marked = with_tiles.with_columns(mark=mark)
    mixed = marked.group_by("slide", "slide_id").agg(
        pl.col("mark").n_unique().alias("marks"), pl.col("mpp").sort()
    )
    for row in mixed.filter(pl.col("marks") > 1).sort("slide").head(MOST).iter_rows(named=True):
        mpps = ", ".join(str(mpp) for mpp in row["mpp"])
        yield Damage(
            slide=row["slide_id"],
            what=f"its shards at {mpps} mpp are of different scans or settings",
            part=SHARD,
            number=row["slide"],
        )
