"""From stored JPEGs to pixels of the size that a network reads.

A network smaller than the tile needs fewer pixels than the JPEG has. libjpeg can leave out the high
frequencies of a block while it decodes (to 1/2, 1/4 or 1/8 of the side), which costs less than all
pixels and a resize. These differ by some grey levels from the pixels of a full decode and a bicubic
resize; so `decode` is a setting of whoever reads, and never chosen by the machine.

Shape letters: B samples, H W pixels, C channels.
"""

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import simplejpeg

from featurestore.errors import LakeError

Decode = Literal["full", "scaled"]
UInt8Array = npt.NDArray[np.uint8]
SCALES = (8, 4, 2)  # libjpeg's fast ones; 7/8 and the like are slower than all pixels


class NotATileError(ValueError):
    """Raised for bytes that are no JPEG of the lake's size."""


@dataclass(frozen=True, kw_only=True)
class PixelDecoder:
    """Decoder of stored tiles to squares of one size.

    Attributes:
        tile_px: side of the stored tiles.
        input_px: side of the decoded squares; None for `tile_px`.
        decode: "full" for all pixels and an antialiased bicubic resize, "scaled" for libjpeg's
            scaled decode to the nearest of 1/2, 1/4, 1/8 that has `input_px` pixels, resized from
            there if it has more.

    Raises:
        LakeError: a setting is not allowed.
    """

    tile_px: int
    input_px: int | None = None
    decode: Decode = "full"

    def __post_init__(self) -> None:
        if self.decode not in get_args(Decode) or not (
            self.input_px is None or 0 < self.input_px <= self.tile_px
        ):
            msg = (
                f"decode='{self.decode}', input_px={self.input_px} given; allowed: "
                f"{', '.join(get_args(Decode))}; 1 to {self.tile_px}, the side of a stored tile"
            )
            raise LakeError(msg)

    @functools.cached_property
    def side_px(self) -> int:
        """Return the side of the decoded squares."""
        return self.input_px or self.tile_px

    @functools.cached_property
    def scale(self) -> int:
        """Return by how much libjpeg divides the side of a tile: 1, 2, 4 or 8.

        >>> [PixelDecoder(tile_px=256, input_px=px, decode="scaled").scale for px in (224, 128, 96)]
        [1, 2, 2]
        """
        if self.decode == "full":
            return 1
        return next((n for n in SCALES if -(-self.tile_px // n) >= self.side_px), 1)

    @property
    def mark(self) -> str:
        """Return what decides the pixels beside the JPEG, with the versions that compute them."""
        versions = [importlib.metadata.version(name) for name in ("simplejpeg", "torch")]
        return f"{self.tile_px} {self.side_px} {self.scale} {' '.join(versions)}"

    def decoded(self, jpeg: bytes | memoryview, into: UInt8Array) -> None:
        """Decode one tile into an array [side, side, C].

        Raises:
            NotATileError: the bytes are no JPEG of the lake's size.
        """
        side = -(-self.tile_px // self.scale)
        if side == self.side_px:
            self._decoded(jpeg, into)
            return
        whole = np.empty((side, side, 3), np.uint8)
        self._decoded(jpeg, whole)
        into[:] = resized(whole[None], self.side_px)[0]

    def _decoded(self, jpeg: bytes | memoryview, into: UInt8Array) -> None:
        try:
            if self.scale == 1:
                size = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into).shape[:2]
            else:
                size = simplejpeg.decode_jpeg_header(jpeg)[:2]
                if size == (self.tile_px, self.tile_px):
                    least = {"min_height": into.shape[0], "min_width": into.shape[1]}
                    simplejpeg.decode_jpeg(
                        jpeg, colorspace="RGB", buffer=into, min_factor=self.scale, **least
                    )
        except ValueError as error:
            msg = f"can't be decoded: {error}"
            raise NotATileError(msg) from error
        if size != (self.tile_px, self.tile_px):
            msg = f"is {size[1]} x {size[0]} px, not {self.tile_px}"
            raise NotATileError(msg)


def resized(tiles: UInt8Array, side_px: int) -> UInt8Array:
    """Resize tiles [B, H, W, C] to squares by an antialiased bicubic filter, as `extract` does."""
    import torch  # most who open a lake read no pixels

    x_BCHW = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    y_BCHW = torch.nn.functional.interpolate(
        x_BCHW, (side_px, side_px), mode="bicubic", antialias=True
    )
    squares: UInt8Array = y_BCHW.permute(0, 2, 3, 1).numpy()
    return squares


def empty_tiles(tiles: int, side_px: int) -> UInt8Array:
    """Return an array [B, side, side, C] that is not filled yet."""
    return np.empty((tiles, side_px, side_px, 3), np.uint8)


def split_range(start: int, stop: int, piece: int) -> Sequence[tuple[int, int]]:
    """Return a range cut into pieces.

    >>> split_range(0, 70, 32)
    [(0, 32), (32, 64), (64, 70)]
    """
    return [(first, min(first + piece, stop)) for first in range(start, stop, piece)]
