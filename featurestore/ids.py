"""The 64-bit key of a tile: a pure function of (slide number, mpp, grid_y, grid_x).

63 bits are used, so the key is positive in a signed column: 23 of slide, 12 of mpp in steps of
0.005 um, 14 each of grid_y and grid_x. Sorting by key sorts by (slide, mpp, y, x).
"""

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError

MPP_STEP = 0.005
SLIDE_BITS, MPP_BITS, GRID_BITS = 23, 12, 14
MAX_SLIDES = 1 << SLIDE_BITS
MAX_GRID = 1 << GRID_BITS

Int64Array = npt.NDArray[np.int64]


def mpp_code(mpp: float) -> int:
    """Return the integer that encodes an mpp in a key.

    Raises:
        LakeError: the mpp is not a multiple of 0.005 between 0.005 and 20.475.

    >>> mpp_code(0.5), mpp_code(2.0)
    (100, 400)
    """
    code = round(mpp / MPP_STEP)
    if not 0 < code < 1 << MPP_BITS or abs(code * MPP_STEP - mpp) > 1e-9:
        msg = f"mpp {mpp} given; it must be a multiple of {MPP_STEP} from {MPP_STEP} to 20.475"
        raise LakeError(msg)
    return code


def mpp_name(mpp: float) -> str:
    """Return an mpp as text with at least one decimal, the form in folder names.

    >>> mpp_name(0.5), mpp_name(2), mpp_name(0.125)
    ('0.5', '2.0', '0.125')
    """
    return str(round(float(mpp), 3))


def tile_ids(slide: int, mpp: float, grid_y: npt.ArrayLike, grid_x: npt.ArrayLike) -> Int64Array:
    """Return the keys of one slide's tiles at one mpp, shaped like `grid_y` and `grid_x`.

    Raises:
        LakeError: the slide number or a grid index does not fit its bits.

    >>> tile_ids(0, 0.5, [0], [1]).tolist(), tile_ids(1, 0.5, [2], [3]).tolist()
    ([26843545601], [1126355206147])
    """
    y, x = np.asarray(grid_y, np.int64), np.asarray(grid_x, np.int64)
    if not 0 <= slide < MAX_SLIDES:
        msg = f"slide number {slide} given; a lake holds numbers from 0 to {MAX_SLIDES - 1}"
        raise LakeError(msg)
    if y.size and (min(y.min(), x.min()) < 0 or max(y.max(), x.max()) >= MAX_GRID):
        msg = f"a grid index is outside 0..{MAX_GRID - 1}: use larger tiles or a coarser mpp"
        raise LakeError(msg)
    head = (slide << MPP_BITS | mpp_code(mpp)) << 2 * GRID_BITS
    keys: Int64Array = np.int64(head) | y << GRID_BITS | x
    return keys


def tile_parts(
    keys: npt.ArrayLike,
) -> tuple[Int64Array, npt.NDArray[np.float64], Int64Array, Int64Array]:
    """Return the slide numbers, mpps, grid_y and grid_x that tile keys encode.

    >>> [part.tolist() for part in tile_parts(tile_ids(7, 2.0, [5], [6]))]
    [[7], [2.0], [5], [6]]
    """
    k = np.asarray(keys, np.int64)
    grid_x = k & (MAX_GRID - 1)
    grid_y = k >> GRID_BITS & (MAX_GRID - 1)
    code = k >> 2 * GRID_BITS & ((1 << MPP_BITS) - 1)
    return k >> 2 * GRID_BITS + MPP_BITS, np.round(code * MPP_STEP, 3), grid_y, grid_x
