"""Mean and spread of the tiles of bags, bag by bag and of many bags together.

Shape letters: N tiles in a bag, D width of a feature set.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TileMoments:
    """Number, mean and squares of the tiles of a bag, or of many bags.

    Attributes:
        tiles: number of tiles.
        mean: mean of each feature [D]; NaN where any feature of a tile is not finite.
        squares: sum of the squared distances from the mean [D].
    """

    tiles: int
    mean: Floats
    squares: Floats


def bag_moments(features_ND: NDArray[np.float16 | np.float32]) -> TileMoments:
    """Return the moments of one bag's tiles, in float64."""
    x_ND = features_ND.astype(np.float64)
    if not np.isfinite(x_ND).all():
        unknown_D = np.full(x_ND.shape[1], np.nan)
        return TileMoments(tiles=len(x_ND), mean=unknown_D, squares=unknown_D)
    mean_D = x_ND.mean(axis=0)
    return TileMoments(tiles=len(x_ND), mean=mean_D, squares=((x_ND - mean_D) ** 2).sum(axis=0))


def joined_moments(parts: Iterable[TileMoments]) -> TileMoments:
    """Return the moments of all tiles together, whatever the size of the bags.

    Source: the pairwise update of Chan, Golub and LeVeque (1979); a plain sum of squares cancels
    where the mean is large against the spread.
    """
    tiles, mean_D, squares_D = 0, np.zeros(1), np.zeros(1)
    for part in parts:
        shift_D = part.mean - mean_D
        total = tiles + part.tiles
        squares_D = squares_D + part.squares + shift_D**2 * tiles * part.tiles / total
        mean_D = mean_D + shift_D * part.tiles / total
        tiles = total
    return TileMoments(tiles=tiles, mean=mean_D, squares=squares_D)
