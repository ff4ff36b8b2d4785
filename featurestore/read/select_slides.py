"""The slides that a training run reads, looked up in the catalog once."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.messages import listing
from featurestore.read.lake_view import LakeView, similar_slide
from featurestore.read.selection import Int64Array, Selection


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
