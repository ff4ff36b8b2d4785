"""A segmenter of a user's own: one Python file with a `SEGMENTER` and a function `build`.

`build()` returns a function from an overview to a mask: `build` is called once in a process,
its function once for each slide. See `examples/own_segmenter.py`.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest.errors import InputError, SlideError
from ingest.teachers.own_file import own_weights, run_file
from ingest.teachers.weights.file_hash import sha256_of

MPP_RANGE = (1.0, 64.0)

BoolArray = npt.NDArray[np.bool_]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """The name of a user's segmenter, and the pixels that it reads.

    Attributes:
        name: name that is kept with each slide that the segmenter was used on.
        mpp: microns per pixel of the overview that it reads, 1 to 64.
        isolated: whether a tile is kept for any tissue in it, as for single cells, and not for
            the lake's least share.
        licence: licence of the segmenter's weights.
        source: where the segmenter comes from, in words.

    Examples:
        >>> sl.Segmenter(name="my_unet", mpp=8.0).isolated
        False
    """

    name: str
    mpp: float
    isolated: bool = False
    licence: str = "not stated"
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse an mpp that no slide's overview can have."""
        if not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            msg = f"segmenter '{self.name}': mpp {self.mpp} given; allowed are 1 to 64"
            raise InputError(msg)


@dataclass(frozen=True, kw_only=True)
class OwnSegmenter:
    """A segmenter's file as it travels to the workers: its text, not its code."""

    card: Segmenter
    source: str
    where: str
    sha256: str

    @property
    def name(self) -> str:
        """Return the segmenter's unique name: its own name, and a hash of its file and weights."""
        return f"{self.card.name} ({self.sha256[:12]})"

    def mask(self, overview: RgbArray) -> BoolArray:
        """Return the pixels [H, W] of an overview [H, W, 3] at `card.mpp` that are tissue.

        Raises:
            SlideError: the segmenter fails, or returns something else than a mask.
        """
        segment = _built(self.source, self.where)
        try:
            values = np.asarray(segment(overview))
        except Exception as error:
            msg = f"{self.where} failed on it: {type(error).__name__}: {error}"
            raise SlideError(msg) from error
        if values.shape != overview.shape[:2] or not np.isfinite(values).all():
            msg = (
                f"{self.where} gave {values.dtype} of shape {list(values.shape)}; a mask of finite "
                f"numbers from 0 to 1, or bool, of shape {list(overview.shape[:2])} is wanted"
            )
            raise SlideError(msg)
        tissue: BoolArray = values.astype(np.float32) > 0.5
        return tissue


def read_segmenter(path: str) -> OwnSegmenter:
    """Read and check a segmenter's file; nothing is built.

    Raises:
        InputError: the file can't be read or run, defines no `SEGMENTER` or no `build`, or its
            `WEIGHTS` are missing.
    """
    try:
        source = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} can't be read: {error}"
        raise InputError(msg) from error
    module = run_file(source, path, InputError)
    card = getattr(module, "SEGMENTER", None)
    if not isinstance(card, Segmenter) or not callable(getattr(module, "build", None)):
        msg = (
            f"{path} must define SEGMENTER, a slidelake.Segmenter, and build(), which gives a "
            "function of an overview"
        )
        raise InputError(msg)
    digest = hashlib.sha256(source.encode())
    if (weights := own_weights(module, path, InputError)) is not None:
        digest.update(sha256_of(weights).encode())
    return OwnSegmenter(card=card, source=source, where=path, sha256=digest.hexdigest())


@functools.lru_cache(maxsize=1)
def _built(source: str, where: str) -> Callable[[RgbArray], Any]:
    module = run_file(source, where, SlideError)
    try:
        segment: Callable[[RgbArray], Any] = module.build()
    except Exception as error:
        msg = f"{where}: build() failed: {type(error).__name__}: {error}"
        raise SlideError(msg) from error
    return segment
