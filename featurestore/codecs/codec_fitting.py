"""Codecs fitted on features: the range of each channel, or books of pieces by k-means.

Shape letters as in `featurestore.codecs.codec`.
"""

import numpy as np
import numpy.typing as npt

from featurestore.codecs.codec import (
    ABSENT,
    ENTRIES,
    INT8,
    Codec,
    Float16Array,
    Float32Array,
    codes_of_tile,
    piece_values,
)
from featurestore.errors import LakeError

ROUNDS = 12  # of k-means: further ones move the error in the third digit
TOKENS_MOST = 32_768  # of a sample for k-means, about 128 for each entry of a book


def fit_codec(name: str, features_ND: Float16Array, *, tokens: int = 1, seed: int = 0) -> Codec:
    """Return a codec fitted on a sample of features; rows of NaN are left out.

    Args:
        name: `int8`, or `pq4` to `pq64`.
        features_ND: the sample.
        tokens: tokens of a tile; all of them share one codec.
        seed: seed of the k-means.

    Raises:
        LakeError: there is no such codec, no tile has features, or a token can't be cut in pieces.
    """
    dim = features_ND.shape[1]
    codes_of_tile(name, dim, tokens)
    kept = features_ND[~np.isnan(features_ND[:, 0])]
    if not len(kept):
        msg = "no tile has features: there is nothing to fit a codec on"
        raise LakeError(msg)
    x_NW = kept.reshape(-1, dim // tokens)
    arrays: dict[str, npt.NDArray[np.generic]]
    if name == INT8:
        low = x_NW.min(axis=0).astype(np.float32)
        span = x_NW.max(axis=0).astype(np.float32) - low
        # A channel that never changes has a step all the same: it divides.
        arrays = {"low": low, "step": np.where(span > 0, span / (ABSENT - 1), 1).astype("f4")}
    else:
        arrays = {"book": _book(x_NW, piece_values(name), seed)}
    return Codec(name=name, dim=dim, tokens=tokens, arrays=arrays)


def _book(x_NW: Float16Array, values: int, seed: int) -> Float16Array:
    """Return a book of pieces for each place of a token [P, K, V]."""
    rng = np.random.default_rng(seed)
    if len(x_NW) > TOKENS_MOST:
        x_NW = x_NW[np.sort(rng.choice(len(x_NW), TOKENS_MOST, replace=False))]
    pieces = x_NW.shape[1] // values
    x_NPV = x_NW.astype(np.float32).reshape(len(x_NW), pieces, values)
    book = [_entries(np.ascontiguousarray(x_NPV[:, piece]), seed) for piece in range(pieces)]
    return np.stack(book).astype(np.float16)


def _entries(x_NV: Float32Array, seed: int) -> Float32Array:
    """Return the centres of k-means [K, V]; of few different pieces, the pieces themselves."""
    distinct = np.unique(x_NV, axis=0)
    if len(distinct) <= ENTRIES:
        return distinct[np.minimum(np.arange(ENTRIES), len(distinct) - 1)]
    from sklearn.cluster import KMeans

    kmeans = KMeans(ENTRIES, init="random", n_init=1, max_iter=ROUNDS, random_state=seed)
    centres: Float32Array = kmeans.fit(x_NV).cluster_centers_.astype(np.float32)
    return centres
