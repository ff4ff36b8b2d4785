"""The slides that a training run reads, looked up in the catalog once."""

from collections.abc import Sequence

import polars as pl

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.messages import listing
from featurestore.read.lake_view import LakeView, similar_slide
from featurestore.read.selection import Selection


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
    tiles = lake.tiles_of(mpp=mpp, slide_ids=slide_ids)
    unknown = sorted(set(slide_ids or ()) - set(tiles["slide_id"]))
    if unknown:
        msg = f"not in {lake.uri} at mpp {mpp_name(mpp)}: {listing(unknown)}"
        msg += similar_slide(lake, unknown[0])
        raise LakeError(msg)
    tiles = tiles.filter(pl.col("tiles") > 0)
    place = ["slide", "fragment", "row_start", "tiles"]
    crc32: dict[str, Sequence[int]] = {}
    for teacher in teachers:
        with_features = lake.features_of(teacher, mpp=mpp, slide_ids=slide_ids)
        missing = tiles.join(with_features, on="slide", how="anti")["slide_id"].to_list()
        if missing:
            msg = (
                f"{len(missing)} of {tiles.height} slides have no features of '{teacher}' at mpp "
                f"{mpp_name(mpp)}: {listing(missing)}; run slidelake extract, or name other slides"
            )
            raise LakeError(msg)
        other = tiles.join(with_features, on=place, how="anti")["slide_id"].to_list()
        if other:
            msg = f"the catalog gives '{teacher}' other rows than the tiles: {listing(other)}"
            raise DamageError(msg)
        sums = tiles.join(
            with_features.select("slide", of="crc32"), on="slide", maintain_order="left"
        )
        crc32[teacher] = sums["of"].to_list()
    return Selection(tiles, mpp, crc32)
