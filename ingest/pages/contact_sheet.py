"""The contact sheet: `ingest.html` in the lake, a page that shows each slide and what became of it.

One file that loads nothing from elsewhere and works without its few lines of script. 400 cards
take about 3 s and 8 MB; what a larger lake leaves out is named, with the query that lists it.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from featurestore.tables import CATALOG, count_tiles
from ingest.pages.page_templates import environment
from ingest.pages.slide_cards import OK, card_slides, choose_slides, make_cards
from ingest.pages.slide_pictures import PEN_SHOWN

if TYPE_CHECKING:
    from featurestore import Lake

Row = dict[str, Any]

NAME = "ingest.html"
PICTURE_PX = 300
_FAILED = "SELECT slide_id, reason FROM slides WHERE state = 'failed'"
_DOUBTFUL = "SELECT slide_id, verdict, why FROM slides WHERE verdict <> 'ok'"
_ALL = "SELECT slide_id, state, verdict, why, reader, mpp, mpp_source FROM slides"


def write_contact_sheet(lake: "Lake", *, most: int = 400) -> str:
    """Write `ingest.html` at the root of a lake: failed slides first, then doubtful ones.

    Args:
        lake: the lake at the version to show.
        most: greatest number of slides to show; at most half of them are failed slides.

    Returns:
        The page's URI.

    Raises:
        DamageError: A table of the lake is gone.
        LakeError: The bucket refuses a request.
    """
    slides = card_slides(lake)
    chosen = choose_slides(slides, most=most, most_failed=(most + 1) // 2)
    cards = make_cards(lake, chosen, longest_px=PICTURE_PX)
    page = environment().get_template("contact_sheet.html.j2")
    html = page.render(
        uri=lake.uri,
        version=lake.version,
        config=lake.config,
        written=datetime.now(UTC),
        pen_shown=PEN_SHOWN,
        cards=cards,
        kinds=_kinds(cards),
        left_out=_left_out(slides, chosen, lake.uri),
        codecs=_codecs(cards),
        **_totals(lake, slides),
    )
    lake.write_bytes(NAME, html.encode())
    return lake.store.url(NAME)


def _totals(lake: "Lake", slides: pl.DataFrame) -> Row:
    """Return counts over the whole lake."""
    states = slides["state"].value_counts()
    ready = slides.filter(pl.col("state") == "ready")
    travelled = ready.filter(pl.col("bytes_read").is_not_null())
    counts = count_tiles(lake.table(CATALOG))
    columns = [
        (teacher, mpp, dim, counts.tiles[mpp, teacher], counts.tiles[mpp, None])
        for mpp in lake.config.mpps
        for teacher, dim in lake.teachers(mpp=mpp).items()
    ]
    return {
        "columns": columns,
        "states": {"ready": 0, "failed": 0, "pending": 0, **dict(states.iter_rows())},
        "patients": ready["patient_id"].drop_nulls().n_unique(),
        "verdicts": _counted(ready["verdict"].fill_null(OK)),
        "readers": _counted(ready["reader"]),
        "by_objective": ready.filter(pl.col("mpp_source") == "objective").height,
        "bytes": int(ready["bytes"].sum()),
        "travelled": (int(travelled["bytes_read"].sum()), int(travelled["bytes"].sum())),
        "seconds": float(ready["seconds"].sum()),
        "tiles": {mpp: counts.tiles[mpp, None] for mpp in lake.config.mpps},
        "shard_bytes": counts.shard_bytes,
    }


def _counted(values: pl.Series) -> dict[str, int]:
    """Return the number of times that each value occurs, most frequent first.

    >>> _counted(pl.Series(["b", "a", "b", None]))
    {'b': 2, 'a': 1}
    """
    counts = values.drop_nulls().rename("value").value_counts()
    return dict(counts.sort("count", "value", descending=[True, False]).iter_rows())


def _kinds(cards: Sequence[Row]) -> dict[str, int]:
    """Return the number of cards of each kind, in the order of the cards."""
    return dict(Counter(card["kind"] for card in cards))


def _codecs(cards: Sequence[Row]) -> dict[str, int]:
    """Return the shown slides' tiles per codec; for all slides it would scan all tiles."""
    tile_counts: Counter[str] = Counter()
    for card in cards:
        for counts in card["codecs"].values():
            tile_counts.update(counts)
    return dict(tile_counts.most_common())


def _left_out(slides: pl.DataFrame, chosen: pl.DataFrame, uri: str) -> list[tuple[int, str, str]]:
    """Return the numbers of slides that are not shown, by kind, with commands that list them."""
    hidden = slides.filter(pl.col("state") != "pending").join(chosen, on="slide", how="anti")
    failed, doubtful = pl.col("state") == "failed", pl.col("verdict").fill_null(OK) != OK
    parts = [
        ("failed", _FAILED, failed),
        ("mostly pen or suspicious", _DOUBTFUL, ~failed & doubtful),
        ("ready", _ALL, ~failed & ~doubtful),
    ]
    return [
        (count, kind, f'slidelake query {shlex.quote(uri)} "{sql}"')
        for kind, sql, which in parts
        if (count := hidden.filter(which).height)
    ]
