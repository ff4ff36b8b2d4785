"""The rules by which places of tiles are told to slide encoders: pure functions of coordinates.

Shape letters: N tiles of a slide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

#: `none`: the network sees no places. `cells`: whole tiles from the slide's corner. `cells from the
#: first tile`: whole tiles from the leftmost and the topmost tile. `level-0 pixels`: as they are.
PlaceRule = Literal["none", "cells", "cells from the first tile", "level-0 pixels"]

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TilePlaces:
    """The places of a slide's tiles.

    Attributes:
        x: left edges in level-0 pixels [N].
        y: top edges in level-0 pixels [N].
        tile_px_level0: side of a tile in level-0 pixels.
    """

    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    tile_px_level0: int

    @property
    def xy_N2(self) -> Int64Array:  # noqa: N802 - a shape suffix
        """Return the left and top edges in level-0 pixels [N, 2]."""
        return np.stack([self.x, self.y], axis=1).astype(np.int64)


def no_places(places: TilePlaces) -> Int64Array:
    """Return zeros [N, 2]: the network sees no places."""
    return np.zeros((len(places.x), 2), np.int64)


def cells(places: TilePlaces) -> Int64Array:
    """Return the column and the row of each tile in a grid of tiles from the slide's corner [N, 2].

    >>> where = TilePlaces(x=np.int32([0, 1030]), y=np.int32([512, 2048]), tile_px_level0=512)
    >>> cells(where).tolist()
    [[0, 1], [2, 4]]
    """
    return places.xy_N2 // places.tile_px_level0


def cells_from_first(places: TilePlaces) -> Int64Array:
    """Return columns and rows counted from the leftmost and the topmost tile [N, 2].

    >>> where = TilePlaces(x=np.int32([100, 1130]), y=np.int32([512, 2048]), tile_px_level0=512)
    >>> cells_from_first(where).tolist()
    [[0, 0], [2, 3]]
    """
    xy_N2 = places.xy_N2
    cells_N2: Int64Array = (xy_N2 - xy_N2.min(axis=0)) // places.tile_px_level0
    return cells_N2


def level0_pixels(places: TilePlaces) -> Int64Array:
    """Return the left and top edges in level-0 pixels [N, 2]."""
    return places.xy_N2


PLACE_RULES: Mapping[PlaceRule, Callable[[TilePlaces], Int64Array]] = {
    "none": no_places,
    "cells": cells,
    "cells from the first tile": cells_from_first,
    "level-0 pixels": level0_pixels,
}
