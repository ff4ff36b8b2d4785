"""Tiles with their neighbours to the right, below and diagonal, for views across a tile's border.

A stream's order depends on places in the list of its rows, not on the rows themselves: four streams
over lists in which the neighbours of a tile have its place read side by side. Each row is decoded
up to four times an epoch.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import TileBatch, tile_ids, tile_parts
from featurestore.read import Stream

#: Steps down and across to the three neighbours.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1))

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, repr=False)
class MosaicBatch(TileBatch):
    """Tiles with their neighbours.

    Attributes:
        neighbours: the tiles to the right, below, and below to the right of each tile.
    """

    neighbours: tuple[TileBatch, ...] = ()


class MosaicStream:
    """A stream of tiles with their neighbours.

    Args:
        streams: streams of the tiles and of their three neighbours, in one order.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    @property
    def steps(self) -> int:
        """Return the number of batches in an epoch of one rank."""
        return self._streams[0].steps

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream after its last batch."""
        return self._streams[0].state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the last batch of a state."""
        for stream in self._streams:
            place = {key: state[key] for key in ("epoch", "given")}
            stream.load_state_dict({**stream.state_dict(), **place})

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch."""
        for stream in self._streams:
            stream.set_epoch(epoch)

    def __iter__(self) -> Generator[MosaicBatch]:
        with contextlib.ExitStack() as stack:
            iterators = [
                stack.enter_context(contextlib.closing(iter(stream))) for stream in self._streams
            ]
            for tiles, *neighbours in zip(*iterators, strict=True):
                own = {field.name: getattr(tiles, field.name) for field in fields(TileBatch)}
                yield MosaicBatch(**own, neighbours=tuple(neighbours))


def neighbour_rows(keys_N: Int64Array) -> Int64Array:
    """Return the rows of each tile's three neighbours [N, 3] among a slide's tiles; -1 if none.

    Args:
        keys_N: keys of the slide's tiles at one mpp, in row order.

    >>> keys = tile_ids(0, 0.5, [0, 0, 1, 1], [0, 1, 0, 1])
    >>> neighbour_rows(keys).tolist()
    [[1, 2, 3], [-1, 3, -1], [3, -1, -1], [-1, -1, -1]]
    """
    if not len(keys_N):
        return np.empty((0, len(NEIGHBOURS)), np.int64)
    slide, mpp, grid_y, grid_x = tile_parts(keys_N)
    order = np.argsort(keys_N)
    rows = []
    for down, across in NEIGHBOURS:
        wanted_N = tile_ids(int(slide[0]), float(mpp[0]), grid_y + down, grid_x + across)
        places = np.searchsorted(keys_N[order], wanted_N).clip(max=len(keys_N) - 1)
        rows.append(np.where(keys_N[order[places]] == wanted_N, order[places], -1))
    return np.stack(rows, axis=1)
