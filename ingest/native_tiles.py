"""The tiles that slides store themselves: a lake that copies these tiles decodes none of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import (
    DiedError,
    Extension,
    Isolated,
    counted,
    load_extensions,
    loaded_extensions,
)
from ingest.cut import failure
from ingest.errors import InputError
from ingest.grid import plan_grids
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import ReadOptions
from ingest.remote.local_copy import local_slide
from ingest.remote.remote_files import is_local
from ingest.select.sources import Source

LOOKED_AT, FEW = 16, 2
LOOK_S = 600.0


@dataclass(frozen=True, kw_only=True)
class NativeTiles:
    """Tiles that slides store.

    Attributes:
        tile_px: side of the tiles at the finest mpp.
        mpps: the mpps at which tiles of that side are stored, finest first.
    """

    tile_px: int
    mpps: tuple[float, ...]


def native_tiles(
    sources: Sequence[Source], ratios: dict[float, int], *, mpp_override: float | None = None
) -> NativeTiles:
    """Return the tiles that most slides store, among slides with such tiles at the finest mpp.

    Args:
        sources: slides; the first 16 are read, or the first 2 where they have to travel.
        ratios: the mpps of the lake, finest first, with their ratio to the finest.
        mpp_override: microns per pixel of slides without an mpp in a manifest.

    Raises:
        InputError: no slide stores such tiles.
    """
    some = sources[: LOOKED_AT if all(is_local(source.uri) for source in sources) else FEW]
    reasons, tile_counts = [], Counter[NativeTiles]()
    child = Isolated(f"{__name__}:tiles_or_reason")
    try:
        for source in some:
            mpp = source.mpp if source.mpp is not None else mpp_override
            tiles = _looked_at(child, source, ratios, mpp)
            if isinstance(tiles, str):
                reasons.append(tiles)
            else:
                tile_counts.update(tiles)
    finally:
        child.close()
    if tile_counts:
        return tile_counts.most_common(1)[0][0]
    why = reasons[0] if reasons else "no JPEG tiles of a square side are stored at it"
    msg = (
        f"none of the first {counted(len(some), 'slide')} has tiles at {min(ratios)} mpp that "
        "can be copied "
        f"({why}); give --tile-px a number to have tiles encoded"
    )
    raise InputError(msg)


def _looked_at(
    child: Isolated, source: Source, ratios: dict[float, int], mpp: float | None
) -> list[NativeTiles] | str:
    """Return the tiles that a slide stores, or why they are not known; another process reads it."""
    try:
        tiles: list[NativeTiles] | str = child.call(
            source, ratios, mpp, loaded_extensions(), limit_s=LOOK_S
        )
    except DiedError as error:
        return f"looking at {source.slide_id} {error}"
    return tiles


def tiles_or_reason(
    source: Source,
    ratios: dict[float, int],
    mpp: float | None,
    extensions: Sequence[Extension] = (),
) -> list[NativeTiles] | str:
    """Return the tiles that a slide stores, or why the slide can't be read."""
    try:
        load_extensions(extensions)
        return _of_slide(source, ratios, mpp)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide is its reason
        return str(failure({}, error)["reason"])


def _of_slide(source: Source, ratios: dict[float, int], mpp: float | None) -> list[NativeTiles]:
    options = ReadOptions(mpp=mpp, allow_anisotropic=True)  # whether it may be is decided later
    with (
        local_slide(source.uri) as local,
        open_slide(local.path, options, image=local.image) as slide,
    ):
        tile_px = slide.stored_tile_px(min(ratios))
        if tile_px is None:
            return []
        grids = plan_grids(slide.size_px, slide.mpp, tile_px, ratios)
        mpps = tuple(m for m, grid in grids.items() if slide.stored_level(grid) is not None)
    return [NativeTiles(tile_px=tile_px, mpps=mpps)] if mpps else []
