"""What is known of the slides that an estimate is for: from a lake, or from a sample of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from cluster import counted
from featurestore import Lake, LakeConfig, mpp_name
from ingest.errors import InputError
from ingest.estimate.spans import Span
from ingest.select.ingest_plan import sampled_looks
from ingest.select.named_slides import find_named_slides

#: Least share by which a mean of some slides may differ from that of all: scanners and sites do.
LEAST_SHARE = 0.1
#: Standard errors on each side of a mean.
ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """Means over slides that were looked at.

    Attributes:
        source: what was looked at, in words.
        slides: number of slides that the input has.
        counted: number of slides that were looked at.
        tiles: tiles of a slide, by mpp.
        tile_bytes: bytes of a tile in its shard, by mpp.
        cut_s: seconds in which one core cuts a slide; None if not known.
        assumptions: what the means rest on, a sentence each.
    """

    source: str
    slides: int
    counted: int
    tiles: Mapping[float, Span]
    tile_bytes: Mapping[float, Span]
    cut_s: Span | None
    assumptions: Sequence[str] = field(default_factory=tuple)


def facts_of_lake(lake: Lake, mpps: Sequence[float]) -> SlideFacts:
    """Return the means of a lake's slides.

    Raises:
        InputError: no slide is ready, or the lake has no tiles at an mpp.
    """
    tiles, tile_bytes, counted = {}, {}, 0
    for mpp in mpps or lake.config.mpps:
        counts = lake.tiles_of(mpp=lake.known_mpp(mpp)).drop_nulls("shard")
        if not counts["tiles"].sum():
            msg = (
                f"{lake.uri} has no tiles at {mpp:g} mpp to go by; ingest some slides first, or "
                "give a folder or a manifest of slides"
            )
            raise InputError(msg)
        counted = max(counted, counts.height)
        tiles[mpp] = mean_span(counts["tiles"].to_numpy())
        each = float(counts["shard_bytes"].sum()) / float(counts["tiles"].sum())
        tile_bytes[mpp] = Span.around(each, LEAST_SHARE)
    ready = lake.slides().filter(pl.col("state") == "ready").select("seconds").collect()
    seconds = ready["seconds"].drop_nulls().to_numpy()
    return SlideFacts(
        source=f"{_slides_text(counted)} with tiles in {lake.uri}",
        slides=ready.height,
        counted=counted,
        tiles=tiles,
        tile_bytes=tile_bytes,
        cut_s=mean_span(seconds) if len(seconds) else None,
        assumptions=_assumptions(counted),
    )


def facts_of_slides(inputs: Sequence[str], config: LakeConfig) -> SlideFacts:
    """Return the means of a sample of slides, which are opened for it.

    Raises:
        InputError: the inputs name no slide, or none of the sample can be cut.
    """
    named = find_named_slides(inputs, {})
    looks = sampled_looks(named.rows, config)
    good = [look for _, look in looks if look.reason is None and look.tiles]
    if not good:
        reasons = "; ".join(f"{row['slide_id']}: {look.reason}" for row, look in looks[:3])
        msg = f"none of {counted(len(looks), 'slide')} that were looked at can be cut ({reasons})"
        raise InputError(msg)
    tiles, tile_bytes = {}, {}
    for mpp in config.mpps:
        counts = np.array([look.tiles.get(mpp_name(mpp), 0) for look in good], float)
        tiles[mpp] = mean_span(counts)
        # The looks add up the bytes of all grids.
        all_tiles = sum(sum(look.tiles.values()) for look in good)
        each = sum(look.bytes for look in good) / max(1, all_tiles)
        tile_bytes[mpp] = Span.around(each, 2 * LEAST_SHARE)
    failed = len(looks) - len(good)
    more = [f"{failed} of {counted(len(looks), 'slide')} can't be cut; all N are taken as good"]
    return SlideFacts(
        source=f"{len(good):,} of {_slides_text(len(named.rows))}, opened for it",
        slides=len(named.rows),
        counted=len(good),
        tiles=tiles,
        tile_bytes=tile_bytes,
        cut_s=mean_span(np.array([look.seconds for look in good])),
        assumptions=[*_assumptions(len(good)), *(more if failed else [])],
    )


def mean_span(numbers: np.typing.NDArray[np.generic]) -> Span:
    """Return where the mean of all slides lies, by the mean of some: 2 standard errors around it.

    It is at least a tenth wide on each side, and from a half to the double for one slide.

    >>> mean_span(np.array([100]))
    Span(low=50.0, high=200.0)
    >>> mean_span(np.array([90, 110, 100, 100]))
    Span(low=90.0, high=110.00000000000001)
    """
    mean = float(np.mean(numbers.astype(float)))
    if len(numbers) < 2:
        return Span(mean / 2, mean * 2)
    error = ERRORS * float(np.std(numbers.astype(float), ddof=1)) / math.sqrt(len(numbers))
    return Span.around(mean, max(LEAST_SHARE, error / mean if mean else 0.0))


def _slides_text(number: int) -> str:
    return f"{number:,} slide{'' if number == 1 else 's'}"


def _assumptions(counted: int) -> list[str]:
    text = (
        f"slides are like those {counted:,} that were looked at: their mean is taken, with 2 "
        "standard errors and at least 10 % on each side"
    )
    return [text]
