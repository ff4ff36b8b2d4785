"""Stored tiles under rows, put together: what fields of view are taken from.

Letters in names: B rows of a batch, r stored tiles side by side under a row's tile.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg

from featurestore import LakeConfig, ShardReader, Store
from featurestore.read import child_cells, children_of, nesting
from featurestore.shards import check_shard
from featurestore.storage import DiskFullError
from ingest.teachers.views.field_of_view import FieldOfView
from ingest.teachers.views.missing_tiles import WHITE, MissingTiles
from ingest.tile_jpeg import decode_tiles

#: Share of a slide's tiles above which all of its shard is fetched from a bucket.
FETCHED_SHARE = 0.25

MISSING, UNSEEN = -1, -2

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]
RgbArray = npt.NDArray[np.uint8]
Row = Mapping[str, Any]


class RegionSource(Protocol):
    """The stored tiles under a slide's rows. Safe for several threads at once."""

    def read(self, places: Int64Array) -> tuple[RgbArray, BoolArray]:
        """Return the regions of rows [B, H, W, 3], and which of their tiles are filled [B, r, r].

        Args:
            places: places of the rows among the keys of the source [B].

        Raises:
            DamageError: a shard is not what was written.
        """
        ...

    def close(self) -> None:
        """Close its files."""
        ...


class OwnTiles:
    """The rows' own tiles.

    Args:
        shard: the open shard.
        ids: keys of the tiles.
    """

    def __init__(self, shard: ShardReader, ids: Int64Array) -> None:
        self._shard, self._ids = shard, ids

    def read(self, places: Int64Array) -> tuple[RgbArray, BoolArray]:
        """Return the pixels of tiles [B, H, W, 3]; none is filled [B, 1, 1]."""
        tiles = decode_tiles(self._shard.jpegs(self._ids[places]))
        return tiles, np.zeros((len(places), 1, 1), bool)

    def close(self) -> None:
        """Close the shard."""
        self._shard.close()


class RegionPixels:
    """Regions of r x r tiles of a finer mpp under the rows' tiles.

    A tile that the lake did not keep is cut from the slide, or filled with background. Beyond the
    edge of the slide is white, as slide readers return it, and counts as no filling.

    Args:
        store: the lake's files.
        config: settings of the lake.
        row: row of the slide in the catalog, with `finer`, its rows at finer mpps, and `origin`.
        ids: keys of the rows.
        views: fields of view of several tiles, of one mpp; tiles that none of them has stay white.

    Raises:
        DamageError: the finer shard is gone, damaged or replaced.
        LakeError: the slide's grids do not nest.
    """

    def __init__(
        self,
        store: Store,
        config: LakeConfig,
        row: Row,
        ids: Int64Array,
        views: Sequence[FieldOfView],
    ) -> None:
        self._tile_px, self._ratio = config.tile_px, views[0].ratio
        self._is_seen: BoolArray = np.any([view.shares() > 0 for view in views], axis=0)
        self._missing = MissingTiles(store, config, row, views[0].mpp)
        self._shard: ShardReader | None = None
        fine = row["finer"].get(views[0].mpp)
        apart = config.tile_px // config.step_px
        self._edge = (np.iinfo(np.int64).max,) * 2
        if fine is not None:
            apart = nesting(self._ratio, row, fine).apart
            self._edge = (fine["grid_height"], fine["grid_width"])
        self._y, self._x = np.broadcast_arrays(*child_cells(ids, self._ratio, apart=apart))
        self._children = np.full(self._y.shape, -1)
        if fine is not None and fine["shard"] is not None:
            # Features of damaged pixels would be wrong for good, under a checksum of their own.
            check_shard(store, fine)
            self._shard = ShardReader.of(store, fine)
            self._children = children_of(ids, self._shard.tile_id, self._ratio, apart=apart)

    def fetch(self, places: Int64Array) -> None:
        """Copy the tiles under some rows to this machine's disk, if they lie in a bucket.

        Args:
            places: places of the rows that will be read.
        """
        children = self._children[places]
        stored = children[(children >= 0) & self._is_seen]
        if self._shard is None or not len(stored):
            return
        first, stop = int(stored.min()), int(stored.max()) + 1
        if len(stored) > FETCHED_SHARE * (stop - first):
            with contextlib.suppress(DiskFullError):  # tiles are then read where they lie
                self._shard.fetch(first, stop)

    def read(self, places: Int64Array) -> tuple[RgbArray, BoolArray]:
        """Return the regions of rows [B, H, W, 3], and which of their tiles are filled [B, r, r].

        Raises:
            DamageError: a shard is not what was written.
            ValueError: a tile has another size than the lake's.
        """
        ratio, tile_px = self._ratio, self._tile_px
        regions: RgbArray = np.full((len(places), *(ratio * tile_px,) * 2, 3), WHITE, np.uint8)
        # A view of them by tile: [B, r, r, tile_px, tile_px, 3].
        tiles = regions.reshape(len(places), ratio, tile_px, ratio, tile_px, 3).swapaxes(2, 3)
        children = np.where(self._is_seen, self._children[places], UNSEEN)
        self._put_stored(tiles, children)
        filled = np.zeros(children.shape, bool)
        for place in map(tuple, np.argwhere(children == MISSING).tolist()):
            row, *child = place
            filled[place] = self._put_missing(tiles[place], (int(places[row]), *child))
        return regions, filled

    def _put_stored(self, tiles: RgbArray, children: Int64Array) -> None:
        """Decode the tiles that are stored into their places, each once."""
        stored = np.argwhere(children >= 0)
        if self._shard is None or not len(stored):
            return
        once, which = np.unique(children[children >= 0], return_inverse=True)
        jpegs = self._shard.jpegs(self._shard.tile_id[once])
        pixels: RgbArray = np.empty((self._tile_px, self._tile_px, 3), np.uint8)
        last = -1
        for at in np.argsort(which, kind="stable").tolist():
            if which[at] != last:  # where tiles overlap, several rows have one
                last = which[at]
                _decode(jpegs[last], pixels)
            tiles[tuple(stored[at])] = pixels

    def _put_missing(self, pixels: RgbArray, place: tuple[int, ...]) -> bool:
        """Put a tile that was not kept into its place; return whether it is filled."""
        y, x = int(self._y[place]), int(self._x[place])
        if y >= self._edge[0] or x >= self._edge[1]:
            return False
        tile = self._missing.tile(y, x)
        pixels[:] = self._missing.background if tile is None else tile
        return tile is None

    def close(self) -> None:
        """Close the shard and the slide."""
        self._missing.close()
        if self._shard is not None:
            self._shard.close()


def _decode(jpeg: memoryview, into: RgbArray) -> None:
    """Decode a tile into an array of its size.

    Raises:
        ValueError: it has another size.
    """
    height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    if (height, width) != into.shape[:2]:
        msg = f"a tile has {width} x {height} px, the lake's have {into.shape[1]}"
        raise ValueError(msg)
    simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=into)
