"""Rows of `slides` and `catalog` that do not fit each other: twice there, or of what is not there.

Whole frames are compared at once: a lake of 500,000 slides has millions of catalog rows.
"""

from collections.abc import Iterator

import polars as pl

from featurestore.damage import ROW, SHARD, TABLE, Damage
from featurestore.schema import CATALOG, READY, SLIDES

MARK = r"-([^-/]*)\.tar$"
TEACHERS = 1 << 24  # more than a lake can have
PLACE = ["fragment", "row_start", "tiles"]
# Enough to see what is wrong: a lost part of the catalog would be a line for every slide in it.
MOST = 1000


def misfits(slides: pl.DataFrame | None, catalog: pl.DataFrame) -> Iterator[Damage]:
    """Yield what does not fit.

    Args:
        slides: `slide`, `slide_id`, `state` of all slides; None if they can't be read.
        catalog: the catalog's rows; `slide_id` may be null in rows of teachers.
    """
    # Only the columns that are compared: a filter copies what it lets through.
    places = catalog.select("slide", "slide_id", "mpp", "teacher", *PLACE)
    for mpp in sorted(catalog["mpp"].unique().to_list()):
        yield from _of_one_mpp(places.filter(pl.col("mpp") == mpp))
    tiles = catalog.select("slide", "slide_id", "mpp", "tiles", "shard").filter(
        catalog["teacher"].is_null()
    )
    yield from halves(tiles)
    if slides is not None:
        yield from _slides_misfits(slides, tiles)


def _of_one_mpp(rows: pl.DataFrame) -> Iterator[Damage]:
    teacher = pl.col("teacher").to_physical().cast(pl.Int64).fill_null(-1)
    key = rows.select(pl.col("slide").cast(pl.Int64) * TEACHERS + teacher).to_series()
    yield from _in_catalog(rows, key.is_duplicated(), "it is in the catalog twice")
    is_teacher = rows["teacher"].is_not_null()
    alone = is_teacher & ~rows["slide"].is_in(rows["slide"].filter(~is_teacher).unique().implode())
    yield from _in_catalog(rows, alone, "features without tiles")
    # All rows of a slide name the same rows of the features table.
    places = rows.group_by("slide").agg(*(pl.col(n).max() - pl.col(n).min() for n in PLACE))
    apart = places.filter(pl.any_horizontal(*(pl.col(name) > 0 for name in PLACE)))["slide"]
    elsewhere = is_teacher & rows["slide"].is_in(apart.implode())
    yield from _in_catalog(rows, elsewhere, "its features lie beside its tiles")


def _slides_misfits(slides: pl.DataFrame, tiles: pl.DataFrame) -> Iterator[Damage]:
    for row in _twice(slides, "slide_id").head(MOST).iter_rows(named=True):
        yield _row(row, "it is in slides.lance twice")
    named = tiles.select("slide", "slide_id", "mpp").join(
        slides.select("slide", name="slide_id"), on="slide", how="left"
    )
    strangers = named.filter(pl.col("slide_id").ne_missing(pl.col("name")))
    for row in strangers.head(MOST).iter_rows(named=True):
        what = f"the catalog has its tiles, but {SLIDES} has no row of it"
        yield Damage(slide=row["slide_id"], mpp=row["mpp"], what=what, part=TABLE, path=SLIDES)
    ready = slides.filter(pl.col("state") == READY)
    for row in (
        ready.join(tiles.select("slide"), on="slide", how="anti").head(MOST).iter_rows(named=True)
    ):
        yield _row(row, "it is ready, but the catalog has no tiles of it")


def _row(row: dict[str, object], what: str) -> Damage:
    return Damage(
        slide=str(row["slide_id"]),
        what=what,
        part=ROW,
        number=int(str(row["slide"])),
        path=SLIDES,
    )


def _twice(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    return rows.filter(pl.col(key).is_duplicated())


def _in_catalog(rows: pl.DataFrame, which: pl.Series, what: str) -> Iterator[Damage]:
    for row in rows.filter(which).head(MOST).iter_rows(named=True):
        yield Damage(
            slide=row["slide_id"],
            mpp=row["mpp"],
            teacher=row["teacher"],
            what=f"slide number {row['slide']}, {what}: {CATALOG} is not what was committed",
            part=TABLE,
            number=row["slide"],
            path=CATALOG,
        )


def halves(tiles: pl.DataFrame) -> Iterator[Damage]:
    """Yield slides whose shards at several mpps are not of one cutting.

    A shard's name carries a mark of the file's fingerprint and of the settings, so all shards of a
    slide have one mark. A slide that was cut again and published by halves has two.
    """
    with_tiles = tiles.filter(pl.col("shard").is_not_null(), pl.col("tiles") > 0)
    mark = pl.col("shard").str.extract(MARK)
    marks = (
        with_tiles.select("slide", mark=mark)
        .group_by("slide")
        .agg(first=pl.col("mark").min(), last=pl.col("mark").max())
    )
    mixed = marks.filter(pl.col("first") != pl.col("last"))["slide"].sort().head(MOST)
    for number in mixed:
        rows = with_tiles.filter(pl.col("slide") == number).sort("mpp")
        mpps = ", ".join(str(mpp) for mpp in rows["mpp"])
        row = rows.row(0, named=True)
        yield Damage(
            slide=row["slide_id"],
            what=f"its shards at {mpps} mpp are of different scans or settings",
            part=SHARD,
            number=row["slide"],
        )
