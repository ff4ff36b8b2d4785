"""The places of slides' rows, looked up in the catalog: of chosen slides, or of one after another.

A look-up of one slide takes two scans with an index, about as long as reading some ten thousand
rows of the catalog in one piece. So bags are looked up one by one until that has cost as much as
one scan of the whole catalog would; then that scan is made, and its result is kept for as long as
the lake object, which reads one version and no other. At most twice the least time is spent (the
rule of "rent or buy"), whether one bag is read or all of them.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.messages import listing
from featurestore.read.lake_view import LakeView, similar_slide
from featurestore.read.selection import Int64Array, Selection
from featurestore.storage.read_errors import ADVICE

#: Rows of the catalog that are read in one piece in the time of one look-up of a slide.
ROWS_A_LOOKUP = 20_000
PLACE = ("slide", "slide_id", "fragment", "row_start", "tiles")


def select(
    lake: LakeView, teachers: Sequence[str], *, mpp: float, slide_ids: Sequence[str] | None
) -> Selection:
    """Return the slides to read; slides without tissue, which have no tiles, are left out.

    Args:
        lake: read at its own version.
        teachers: every slide must have the features of all of them.
        mpp: microns per pixel of the tiles.
        slide_ids: names of the slides; None for all slides with tiles at this mpp.

    Raises:
        LakeError: a slide is not in the lake at this mpp, or lacks features; the first are named.
        DamageError: the catalog's rows of a teacher differ from those of the tiles.
    """
    mpp = lake.known_mpp(mpp)
    rows = lake.places_of(teachers, mpp=mpp, slide_ids=slide_ids)
    tiles = rows.filter(pl.col("teacher").is_null())
    unknown = sorted(set(slide_ids or ()) - set(tiles["slide_id"]))
    if unknown:
        msg = f"not in {lake.uri} at mpp {mpp_name(mpp)}: {listing(unknown)}"
        msg += similar_slide(lake, unknown[0])
        raise LakeError(msg)
    tiles = tiles.filter(pl.col("tiles") > 0)
    crc32: dict[str, Int64Array] = {}
    for teacher in teachers:
        with_features = rows.filter(pl.col("teacher") == teacher)
        missing = tiles.join(with_features, on="slide", how="anti")["slide_id"].to_list()
        if missing:
            msg = (
                f"{len(missing)} of {tiles.height} slides have no features of '{teacher}' at mpp "
                f"{mpp_name(mpp)}: {listing(missing)}; run slidelake extract, or name other slides"
            )
            raise LakeError(msg)
        sums = checksums_of(tiles, with_features)
        if sums.has_nulls():
            other = tiles.filter(sums.is_null())["slide_id"].to_list()
            msg = f"the catalog gives '{teacher}' other rows than the tiles: {listing(other)}"
            raise DamageError(msg)
        crc32[teacher] = sums.to_numpy().astype(np.int64)
    return Selection(tiles, mpp, crc32)


def checksums_of(tiles: pl.DataFrame, with_features: pl.DataFrame) -> pl.Series:
    """Return the checksum of one teacher's features of each slide; null where there is none.

    Args:
        tiles: the catalog's rows of slides' tiles.
        with_features: the catalog's rows of the teacher; what has another place than the tiles, or
            is there twice, is none.
    """
    place = ["slide", "fragment", "row_start", "tiles"]
    once = with_features.filter(pl.col("slide").is_unique()).select(*place, of="crc32")
    return tiles.select(place).join(once, on=place, how="left", maintain_order="left")["of"]


@dataclass(frozen=True, kw_only=True)
class _Held:
    """The places of all slides with tiles at one mpp.

    Attributes:
        tiles: the catalog's rows of the slides' tiles, in the columns of `PLACE` and `crc32`.
        row: row of each slide in `tiles`, by name.
        crc32: checksums of each teacher's features, -1 where a slide has none [S].
        selection: the same as a selection of all slides.
    """

    tiles: pl.DataFrame
    row: dict[str, int]
    crc32: dict[str, Int64Array]
    selection: Selection


class BagPlaces:
    """The places of the bags of one lake version. Safe for several threads.

    Args:
        lake: the lake, at its own version.
    """

    def __init__(self, lake: LakeView) -> None:
        self._lake = lake
        self._lock = threading.Lock()
        self._lookups = 0
        self._held: dict[float, _Held] = {}

    def find(self, slide_id: str, teachers: Sequence[str], mpp: float) -> tuple[Selection, int]:
        """Return a selection that holds a slide with all teachers, and the slide's number in it.

        Raises:
            LakeError: the slide or a teacher's features of it are not in the lake.
            DamageError: the catalog contradicts itself about the slide.
        """
        with self._lock:
            held = self._holding(teachers, mpp)
        if held is not None and slide_id in held.row:
            row = held.row[slide_id]
            if all(held.crc32[name][row] >= 0 for name in teachers):
                return held.selection, row
        return look_up(self._lake, slide_id, teachers, mpp), 0

    def _holding(self, teachers: Sequence[str], mpp: float) -> _Held | None:
        """Return the places of all slides with these teachers; None while look-ups are cheaper."""
        held = self._held.get(mpp)
        if held is not None and held.crc32.keys() >= set(teachers):
            return held
        self._lookups += 1
        if self._lookups * ROWS_A_LOOKUP < self._lake.catalog_rows():
            return None
        self._lookups = 0  # further teachers are paid for anew
        names = [name for name in teachers if held is None or name not in held.crc32]
        rows = self._lake.places_of(names, mpp=mpp)
        self._held[mpp] = _held_places(rows, names, mpp, {} if held is None else held.crc32)
        return self._held[mpp]


def _held_places(
    rows: pl.DataFrame, teachers: Sequence[str], mpp: float, kept: dict[str, Int64Array]
) -> _Held:
    """Return the places of all slides from rows of the catalog."""
    tiles = rows.filter(pl.col("teacher").is_null(), pl.col("tiles") > 0)
    # What the catalog has twice is looked up by itself, and refused there.
    tiles = tiles.filter(pl.col("slide_id").is_unique()).select(*PLACE, "crc32")
    crc32 = dict(kept)
    for name in teachers:
        sums = checksums_of(tiles, rows.filter(pl.col("teacher") == name))
        crc32[name] = sums.cast(pl.Int64).fill_null(-1).to_numpy()
    selection = Selection(tiles, mpp, crc32)
    row = {name: at for at, name in enumerate(selection.slide_ids)}
    return _Held(tiles=tiles, row=row, crc32=crc32, selection=selection)


def look_up(lake: LakeView, slide_id: str, teachers: Sequence[str], mpp: float) -> Selection:
    """Return the place of one slide's rows with features of all teachers, and their checksums.

    Raises:
        LakeError: the slide or a teacher's features of it are not in the lake.
        DamageError: the catalog gives a teacher other rows than the tiles.
    """
    rows = lake.places_of(teachers, mpp=mpp, slide_ids=[slide_id])
    tiles = rows.filter(pl.col("teacher").is_null())
    crc32 = dict(rows.select("teacher", "crc32").iter_rows())
    missing = [name for name in teachers if name not in crc32]
    if missing:
        msg = f"slide '{slide_id}' is not in {lake.uri} at mpp {mpp_name(mpp)}"
        if not tiles.height:
            msg += similar_slide(lake, slide_id)
        else:
            msg = f"slide '{slide_id}' has no features of '{missing[0]}' yet: run extract"
        if tiles["tiles"].to_list() == [0]:
            msg = f"slide '{slide_id}' has no tiles at mpp {mpp_name(mpp)}: it has no tissue"
        raise LakeError(msg)
    if rows.select(PLACE).unique().height != 1 or tiles.height != 1:
        named = ", ".join(f"'{name}'" for name in teachers)
        fault = f"slide '{slide_id}': the catalog gives {named} other rows than its tiles"
        msg = f"{fault}; {ADVICE}"
        raise DamageError(msg)
    sums = {name: np.array([crc32[name]], np.int64) for name in teachers}
    return Selection(tiles, lake.known_mpp(mpp), sums)
