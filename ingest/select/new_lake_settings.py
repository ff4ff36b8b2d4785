"""Settings of the lake that an ingest makes, from a user's options and the slides' own tiles."""

from collections.abc import Sequence

from featurestore import LakeConfig, LakeError, Store, settings_for
from ingest.errors import InputError
from ingest.native_tiles import native_tiles
from ingest.select.named_slides import IngestOptions
from ingest.select.sources import chosen, resolve

NATIVE = "native"


def settings(
    lake_uri: str,
    inputs: Sequence[str],
    options: IngestOptions,
    *,
    tile_px: str | None = None,
    stride_px: int | None = None,
    mpps: Sequence[float] | None = None,
    tissue_min: float | None = None,
    mix_codecs: bool | None = None,
) -> LakeConfig:
    """Return the settings for a lake; an argument of None takes the lake's value or the default.

    Args:
        lake_uri: a lake that may be there already.
        inputs: slides; with `native`, the tiles that the first slides store decide.
        options: which of the slides to cut, and how.
        tile_px: side of a tile in pixels, or `native`.
        stride_px: pixels from one tile to the next.
        mpps: microns per pixel of the tiles, in any order.
        tissue_min: least share of tissue in a tile.
        mix_codecs: with `native`, encode slides that store no such tiles.

    Raises:
        InputError: `tile_px` is no number or `native`, or no slide stores tiles that can be copied.
        LakeError: the lake's tiles are not copied, but `native` was given.
    """
    ordered = tuple(sorted(mpps)) if mpps else None
    user_settings = {
        "stride_px": stride_px,
        "mpps": ordered,
        "tissue_min": tissue_min,
        "mix_codecs": mix_codecs,
    }
    if tile_px != NATIVE:
        return settings_for(lake_uri, tile_px=_pixels(tile_px), **user_settings)
    config = settings_for(lake_uri, **user_settings)
    if Store(lake_uri).exists("lake.json"):
        if not config.passthrough:
            msg = f"{lake_uri} holds encoded tiles of {config.tile_px} px; make another lake"
            raise LakeError(msg)
        return config
    sources = chosen(
        resolve(inputs, distinct_ids=options.get("distinct_ids", False)), options.get("only", ())
    )
    ratios = {mpp: config.ratio(mpp) for mpp in config.mpps}
    native = native_tiles(sources, ratios, mpp_override=options.get("mpp_override"))
    return settings_for(lake_uri, tile_px=native.tile_px, passthrough=native.mpps, **user_settings)


def _pixels(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        msg = f"--tile-px {text} given; it is a number of pixels, or native"
        raise InputError(msg)
    return int(text)
