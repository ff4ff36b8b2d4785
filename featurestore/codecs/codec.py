"""Codecs of features: how the codes of a tile become float16 values again.

`int8` has a code for each value: a straight line per channel. `pq16` has a code for each 8
neighbouring values: the nearest of 255 learned pieces, 1/16 of the bytes of float16 (product
quantisation; Jegou et al. 2011). Decoding is arithmetic on single values, or a look-up, so it gives
the same bits on every machine. Code 255 in all places is a tile that the teacher left out.

Shape letters: N tiles, D values of a tile, W width of a token (D if the column has one), C codes of
a tile, P pieces of a token, K entries of a book, V values of a piece.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

INT8 = "int8"
PRODUCT = re.compile(r"pq(4|8|16|32|64)")
ABSENT = 255
ENTRIES = 255
ROWS_AT_ONCE = 1024
NAMES = "int8, pq4, pq8, pq16, pq32 or pq64"


def piece_values(codec: str) -> int:
    """Return the number of values that share a code.

    >>> piece_values("int8"), piece_values("pq16")
    (1, 8)

    Raises:
        LakeError: there is no such codec.
    """
    if codec == INT8:
        return 1
    if product := PRODUCT.fullmatch(codec):
        return int(product[1]) // 2
    msg = f"no codec '{codec}'; give {NAMES} (a 16th of the bytes of float16: pq16)"
    raise LakeError(msg)


def codes_of_tile(codec: str, dim: int, tokens: int = 1) -> int:
    """Return the number of codes of a tile with `dim` values in `tokens` tokens.

    Raises:
        LakeError: there is no such codec, or a token can't be cut into whole pieces.
    """
    values, width = piece_values(codec), dim // tokens
    if width % values:
        msg = f"{width} values can't be cut into pieces of {values}, as {codec} does; take int8"
        raise LakeError(msg)
    return dim // values


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A fitted codec of one column.

    Attributes:
        name: `int8`, or `pq` and how many times smaller than float16 it is.
        dim: values of a tile, D.
        tokens: tokens of a tile; all have the same codec.
        arrays: of int8 `low` and `step`, float32 [W]; of a product `book`, float16 [P, K, V].
    """

    name: str
    dim: int
    tokens: int
    arrays: Mapping[str, npt.NDArray[np.generic]]

    @property
    def codes(self) -> int:
        """Return the number of codes of a tile."""
        return codes_of_tile(self.name, self.dim, self.tokens)

    def decode(self, codes_NC: UInt8Array) -> Float16Array:
        """Return the features [N, D] of codes; NaN where a teacher left a tile out."""
        decoded_ND = np.empty((len(codes_NC), self.dim), np.float16)
        self.decode_into(codes_NC, decoded_ND)
        return decoded_ND

    def decode_into(self, codes_NC: UInt8Array, into_ND: Float16Array) -> None:
        """Decode into an array [N, D]."""
        decode = self._decoded_lines if self.name == INT8 else self._decoded_pieces
        rows = max(1, ROWS_AT_ONCE // self.tokens)
        for start in range(0, len(codes_NC), rows):
            some_NC = codes_NC[start : start + rows]
            decode(some_NC, into_ND[start : start + rows])
        into_ND[codes_NC[:, 0] == ABSENT] = np.nan

    def _decoded_lines(self, codes_NC: UInt8Array, into_ND: Float16Array) -> None:
        codes = codes_NC.reshape(-1, len(self.arrays["low"]))
        # torch halves numbers three times as fast, to the same bits; it is not imported for that.
        if torch := sys.modules.get("torch"):
            # torch refuses arrays that can't be written, as those of Arrow and of files.
            arrays = (codes, self.arrays["step"], self.arrays["low"])
            line, step, low = (torch.from_numpy(np.require(a, None, ["C", "W"])) for a in arrays)
            line = line.float().mul_(step).add_(low)
            into_ND[:] = line.half().numpy().reshape(into_ND.shape)
            return
        line = codes.astype(np.float32)
        line *= self.arrays["step"]
        line += self.arrays["low"]
        into_ND[:] = line.reshape(into_ND.shape)

    def _decoded_pieces(self, codes_NC: UInt8Array, into_ND: Float16Array) -> None:
        pieces, entries, values = self.arrays["book"].shape
        # Each entry of a book as one item, so that a look-up copies it whole.
        book = np.ascontiguousarray(self.arrays["book"]).reshape(-1, values).view(f"V{2 * values}")
        first = np.tile(np.arange(pieces) * entries, self.tokens)
        at = np.minimum(codes_NC, entries - 1) + first  # absent ones are overwritten
        into_ND[:] = np.take(book.ravel(), at).view(np.float16).reshape(into_ND.shape)

    def encode(self, features_ND: Float16Array) -> UInt8Array:
        """Return the codes [N, C] of features; rows of NaN have the code 255 alone."""
        codes_NC = np.empty((len(features_ND), self.codes), np.uint8)
        encode = self._line_codes if self.name == INT8 else self._piece_codes
        rows = max(1, ROWS_AT_ONCE // self.tokens)
        for start in range(0, len(features_ND), rows):
            some = features_ND[start : start + rows]
            tokens = np.nan_to_num(some.astype(np.float32)).reshape(-1, self.dim // self.tokens)
            codes_NC[start : start + rows] = encode(tokens).reshape(len(some), -1)
        codes_NC[np.isnan(features_ND[:, 0])] = ABSENT
        return codes_NC

    def _line_codes(self, x_NW: Float32Array) -> UInt8Array:
        low, step = (np.asarray(self.arrays[name], np.float32) for name in ("low", "step"))
        codes: UInt8Array = np.clip(np.rint((x_NW - low) / step), 0, ABSENT - 1).astype(np.uint8)
        return codes

    def _piece_codes(self, x_NW: Float32Array) -> UInt8Array:
        book = np.asarray(self.arrays["book"], np.float32)
        pieces, _, values = book.shape
        codes = np.empty((len(x_NW), pieces), np.uint8)
        for piece in range(pieces):
            x_NV = x_NW[:, piece * values : (piece + 1) * values]
            half_norm_K = 0.5 * np.square(book[piece]).sum(axis=1)
            codes[:, piece] = np.argmax(x_NV @ book[piece].T - half_norm_K, axis=1)
        return codes


@dataclass(frozen=True, kw_only=True)
class CodecLoss:
    """How far decoded features are from the stored ones, over some tiles.

    Attributes:
        tiles: number of tiles.
        cosine: mean cosine of a tile's (a token's) two vectors.
        cosine_least: the least of these.
        error: norm of all differences over the norm of all features.
        clipped: share of int8 values outside of the range that was fitted.
    """

    tiles: int
    cosine: float
    cosine_least: float
    error: float
    clipped: float = 0.0


def loss_of(codec: Codec, features_ND: Float16Array) -> CodecLoss:
    """Return the loss of a codec on features, without rows of NaN.

    Raises:
        LakeError: no tile has features.
    """
    kept = features_ND[~np.isnan(features_ND[:, 0])]
    if not len(kept):
        msg = "no tile has features to compare"
        raise LakeError(msg)
    width = codec.dim // codec.tokens
    x = kept.astype(np.float64).reshape(-1, width)
    y = codec.decode(codec.encode(kept)).astype(np.float64).reshape(-1, width)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = np.where(norms > 0, (x * y).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    clipped = 0.0
    if codec.name == INT8:
        low = np.asarray(codec.arrays["low"], np.float64)
        high = low + (ABSENT - 1) * np.asarray(codec.arrays["step"], np.float64)
        slack = 1e-3 * (high - low)
        clipped = float(((x < low - slack) | (x > high + slack)).mean())
    return CodecLoss(
        tiles=len(kept),
        cosine=float(cosine.mean()),
        cosine_least=float(cosine.min()),
        error=float(np.linalg.norm(x - y) / max(np.linalg.norm(x), np.finfo(np.float64).tiny)),
        clipped=clipped,
    )
