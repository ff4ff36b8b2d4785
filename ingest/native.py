"""What tiles slides store themselves: a lake that takes these as they are decodes none of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ingest.errors import InputError, SlideError
from ingest.grid import plan_grids
from ingest.remote import local_slide
from ingest.sources import Source
from ingest.tiff_reader import TiffReader

LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True)
class NativeTiles:
    """Tiles that a slide stores.

    Attributes:
        tile_px: side of the tiles at the finest mpp.
        mpps: at which of the asked mpps tiles of that side are stored, finest first.
        slide_id: whose tiles they are.
    """

    tile_px: int
    mpps: tuple[float, ...]
    slide_id: str


def native_tiles(
    sources: Sequence[Source], ratios: dict[float, int], *, mpp_override: float | None = None
) -> NativeTiles:
    """The stored tiles of the first of the slides that has any at the finest mpp.

    Args:
        sources: slides; the first 16 are looked at.
        ratios: the asked mpps, finest first, with their ratio to the finest.
        mpp_override: microns per pixel of slides whose manifest gives none.

    Raises:
        InputError: none of the slides has.
    """
    reasons = []
    for source in sources[:LOOKED_AT]:
        mpp = source.mpp if source.mpp is not None else mpp_override
        try:
            if found := _of_slide(source, ratios, mpp):
                return found
        except SlideError as error:
            reasons.append(str(error))
    why = reasons[0] if reasons else "no JPEG tiles of a square side are stored at it"
    msg = (
        f"none of the first {len(sources[:LOOKED_AT])} slides has tiles at {min(ratios)} mpp that "
        f"can be copied ({why}); give --tile-px a number to have tiles encoded"
    )
    raise InputError(msg)


def _of_slide(source: Source, ratios: dict[float, int], mpp: float | None) -> NativeTiles | None:
    with local_slide(source.uri) as local, TiffReader(local.path, mpp=mpp) as slide:
        tile_px = slide.stored_tile_px(min(ratios))
        if tile_px is None:
            return None
        grids = plan_grids(slide.size_px, slide.mpp, tile_px, ratios)
        mpps = tuple(m for m, grid in grids.items() if slide.stored_level(grid) is not None)
    return NativeTiles(tile_px=tile_px, mpps=mpps, slide_id=source.slide_id) if mpps else None
