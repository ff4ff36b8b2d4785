"""Cards of slides for people to look at: which slides to show, and what each card shows.

Tiles are found by slide in the fragments that the catalog names: 400 slides of 5,000 take 0.8 s so,
7 s by a query over the whole table. Slides are read a few at a time, so memory stays at those.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ingest.pages.slide_pictures import (
    Tiles,
    data_uri,
    decode_mask,
    decode_rgb,
    draw_slide,
    encode_jpeg,
    scaled,
)

if TYPE_CHECKING:
    from featurestore import Lake

Row = dict[str, Any]

CARD_COLUMNS = (
    "slide",
    "slide_id",
    "patient_id",
    "state",
    "reason",
    "verdict",
    "why",
    "uri",
    "bytes",
    "bytes_read",
    "width_px",
    "height_px",
    "mpp",
    "mpp_source",
    "objective",
    "vendor",
    "reader",
    "fallback",
    "notes",
    "tissue",
    "pen",
    "seconds",
)
"""Of `lake.slides()`, what cards are made from."""

PICTURE_PX = 360
OK = "ok"
_RANKS = {"mostly pen": 1, "suspicious": 2, OK: 4}
_OTHER_RANK = 3
_AT_ONCE = 32


def card_slides(lake: "Lake") -> pl.DataFrame:
    """Return `CARD_COLUMNS` of all slides; columns that an early lake lacks are null."""
    slides = lake.slides()
    stored_columns = slides.collect_schema().names()
    columns = [pl.col(n) if n in stored_columns else pl.lit(None).alias(n) for n in CARD_COLUMNS]
    return slides.select(columns).collect()


def choose_slides(
    slides: pl.DataFrame, *, most: int, most_failed: int, first: str | None = None
) -> pl.DataFrame:
    """Return the slides to show: failed, the named one, doubtful, then the others in order.

    Slides that wait to be cut are left out: they have no picture yet.

    Args:
        slides: rows with slide, slide_id, uri, state and verdict.
        most: greatest number of slides.
        most_failed: greatest number of failed slides among them.
        first: file name of a slide to show in any case, or None.
    """
    failed = pl.col("state") == "failed"
    some_failed = slides.filter(failed).sort("slide").head(most_failed)
    named = pl.col("uri").str.ends_with(f"/{first}") if first else pl.lit(value=False)
    doubt = pl.col("verdict").fill_null(OK).replace_strict(_RANKS, default=_OTHER_RANK)
    rank = pl.when(named).then(0).otherwise(doubt)
    others = slides.filter(pl.col("state") == "ready").with_columns(rank=rank)
    return pl.concat([some_failed, others.sort("rank", "slide").drop("rank")]).head(most)


def make_cards(lake: "Lake", chosen: pl.DataFrame, *, longest_px: int = PICTURE_PX) -> list[Row]:
    """Return a card for each chosen slide: its row, its tiles per mpp, and its picture.

    Args:
        lake: the lake of the slides.
        chosen: rows with `CARD_COLUMNS`.
        longest_px: pixels of the picture's longer side.

    Returns:
        The row's columns; `kind` (`failed`, or the verdict); `tiles` (mpp -> count); `codecs`
        (mpp -> codec -> count); `with_pen` (tiles of the finest mpp with pen, None if that is not
        known); `picture` (data URI, or None without one); `damage` (why there is no picture).
    """
    cards = {}
    for part in chosen.sort("slide").iter_slices(_AT_ONCE):
        cards.update({card["slide"]: card for card in _cards(lake, part, longest_px)})
    return [cards[slide] for slide in chosen["slide"].to_list()]


def _cards(lake: "Lake", slides: pl.DataFrame, longest_px: int) -> Iterator[Row]:
    pictures = _pictures(lake, slides)
    tiles = {mpp: _tiles(lake, slides, mpp) for mpp in lake.config.mpps}
    for row in slides.iter_rows(named=True):
        number = row["slide"]
        tiles_by_mpp = {
            mpp: slide_tiles[number] for mpp, slide_tiles in tiles.items() if number in slide_tiles
        }
        yield {
            **row,
            "kind": "failed" if row["state"] == "failed" else row["verdict"] or OK,
            "tiles": {mpp: len(slide_tiles.x) for mpp, slide_tiles in tiles_by_mpp.items()},
            "codecs": {mpp: slide_tiles.codecs for mpp, slide_tiles in tiles_by_mpp.items()},
            "with_pen": _with_pen(tiles_by_mpp.get(lake.config.mpps[0])),
            **_picture(pictures.get(number, {}), row, tiles_by_mpp, longest_px),
        }


def _pictures(lake: "Lake", slides: pl.DataFrame) -> dict[int, Row]:
    """Return thumbnail and tissue mask by slide number, of some slides at once."""
    from featurestore.tables import SLIDES

    # By the indexed column: `slide` has no index in this table.
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in slides["slide_id"])
    names = ["slide", "thumbnail", "tissue_mask"]
    pictures = lake.table(SLIDES).to_table(columns=names, filter=f"slide_id IN ({quoted})")
    return {row["slide"]: row for row in pictures.to_pylist()}


def _tiles(lake: "Lake", slides: pl.DataFrame, mpp: float) -> dict[int, Tiles]:
    """Return the tiles at one mpp by slide number, for slides that have been cut."""
    places = lake.tiles_of(mpp=mpp, slide_ids=slides["slide_id"].to_list())
    rows = _tile_rows(lake, places.filter(pl.col("tiles") > 0), mpp)
    by_slide = rows.partition_by("slide", as_dict=True)
    tiles = {}
    for slide, side_px in places.select("slide", "tile_px_level0").iter_rows():
        slide_rows = by_slide.get((slide,), rows.clear())
        tiles[slide] = Tiles(
            side_px=side_px or 1,
            x=slide_rows["x"].to_numpy(),
            y=slide_rows["y"].to_numpy(),
            pen=slide_rows["pen"].fill_null(np.nan).to_numpy(),
            codecs=dict(slide_rows["codec"].drop_nulls().value_counts().iter_rows()),
        )
    return tiles


def _tile_rows(lake: "Lake", places: pl.DataFrame, mpp: float) -> pl.DataFrame:
    """Return the rows of the tiles that catalog rows name, from their fragments alone.

    By slide, not by the catalog's row offsets: those count rows that were deleted when a slide
    was scanned again, and Lance's scanner does not.
    """
    from featurestore.tables import features_table

    table = lake.table(features_table(mpp))
    fragments = [table.get_fragment(number) for number in places["fragment"].unique().to_list()]
    numbers = ", ".join(str(number) for number in places["slide"].to_list())
    columns = ["slide", "x", "y", "pen", "codec"]
    if not fragments:
        return pl.DataFrame(table.schema.empty_table().select(columns))
    scanner = table.scanner(columns=columns, filter=f"slide IN ({numbers})", fragments=fragments)
    return pl.DataFrame(scanner.to_table())


def _with_pen(finest: Tiles | None) -> int | None:
    if finest is None or np.isnan(finest.pen).all():
        return None
    return int(finest.with_pen.sum())


def _picture(
    pictures: Row, row: Mapping[str, Any], tiles: Mapping[float, Tiles], longest_px: int
) -> Row:
    """Return the slide's annotated picture as a data URI, or why there is none."""
    from featurestore import DamageError

    thumbnail, mask = pictures.get("thumbnail"), pictures.get("tissue_mask")
    if thumbnail is None or not row["width_px"]:
        return {"picture": None, "damage": None}
    try:
        drawn = draw_slide(
            scaled(decode_rgb(thumbnail), longest_px),
            decode_mask(mask) if mask is not None else None,
            [tiles[mpp] for mpp in sorted(tiles)],
            width_px=row["width_px"],
        )
    except DamageError as error:
        # One damaged picture is named on its card: the others are still shown.
        return {"picture": None, "damage": str(error)}
    return {"picture": data_uri(encode_jpeg(drawn), "image/jpeg"), "damage": None}
