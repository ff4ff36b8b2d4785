"""Tiles with cached features, in a shuffled order that depends on seed and epoch alone.

JPEGs are read by position and decoded in threads, one batch ahead of the training step; features
come by row from Lance and are joined by key: a row whose key is not the tile's is an error.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from featurestore import DamageError, Lake, ShardReader, matrix
from featurestore.schema import features_table
from ingest.cards import Interpolation
from ingest.encoder import decode, resized

INTERPOLATION: Interpolation = "bicubic"

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TileBatch:
    """Tiles of one mpp.

    Attributes:
        mpp: of all tiles in the batch.
        tile_id: [B].
        pixels: uint8 RGB [B, H, W, 3].
        features: raw float16 [B, D] per teacher.
    """

    mpp: float
    tile_id: Int64Array
    pixels: npt.NDArray[np.uint8]
    features: dict[str, npt.NDArray[np.float16]]


class TileSet:
    """The tiles of named slides at one mpp, with features of some teachers.

    Args:
        lake: read at its own version.
        slide_ids: whose tiles.
        mpp: of the tiles.
        teachers: whose features come with them.
        input_px: side that tiles are decoded to.
    """

    def __init__(
        self,
        lake: Lake,
        slide_ids: Sequence[str],
        *,
        mpp: float,
        teachers: Sequence[str],
        input_px: int,
    ) -> None:
        self._lake, self.mpp, self._teachers = lake, lake.known_mpp(mpp), list(teachers)
        self._input_px = input_px
        self._table = lake.table(features_table(self.mpp))
        rows = lake.tiles_of(mpp=mpp).sort("slide")
        self._slides = [
            row for row in rows.iter_rows(named=True) if row["slide_id"] in set(slide_ids)
        ]
        counts = [row["tiles"] for row in self._slides]
        # Which slide each tile is of, and where its row is: two integers a tile in memory.
        self._slide_at = np.repeat(np.arange(len(counts)), counts)
        self._position = np.concatenate([np.arange(n) for n in counts] or [np.arange(0)])
        starts = self._fragment_starts()
        first = np.array([starts[r["fragment"]] + r["row_start"] for r in self._slides], np.int64)
        self._row = first[self._slide_at] + self._position if counts else first
        self._shard = lru_cache(maxsize=64)(self._open)

    def __len__(self) -> int:
        return len(self._row)

    def _fragment_starts(self) -> dict[int, int]:
        fragments = self._table.get_fragments()
        ends = np.cumsum([0, *(fragment.physical_rows for fragment in fragments)])
        return {f.fragment_id: int(end) for f, end in zip(fragments, ends, strict=False)} | {-1: 0}

    def _open(self, slide: int) -> ShardReader:
        return ShardReader(self._lake.store, self._slides[slide]["shard"])

    def batch(self, which: Int64Array) -> TileBatch:
        """The tiles at the given places (0 to len - 1), in that order.

        Raises:
            DamageError: pixels and features of a place are not of the same tile.
        """
        tile_id, features = self._features(which)
        keys = zip(which.tolist(), tile_id.tolist(), strict=True)
        tiles = np.stack([decode(self._jpeg(place, key)) for place, key in keys])
        # Resized just as `extract` will do it when the student is run.
        pixels = resized(tiles, self._input_px, INTERPOLATION)
        return TileBatch(mpp=self.mpp, tile_id=tile_id, pixels=pixels, features=features)

    def _features(self, which: Int64Array) -> tuple[Int64Array, dict[str, npt.NDArray[np.float16]]]:
        order = np.argsort(self._row[which])
        back = np.argsort(order)
        table = self._table.take(
            self._row[which][order].tolist(), columns=["tile_id", *self._teachers]
        )
        features = {name: matrix(table[name])[back] for name in self._teachers}
        return table["tile_id"].to_numpy()[back], features

    def _jpeg(self, place: int, tile_id: int) -> bytes:
        shard = self._shard(int(self._slide_at[place]))
        position = int(self._position[place])
        if shard.tile_id[position] != tile_id:
            msg = f"shard {shard.path}: tile {tile_id} is not where its features' row says"
            raise DamageError(msg)
        return shard.jpeg(position)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which tiles every step of every epoch sees, for one rank of several.

    Args:
        sizes: tiles in each tile set.
        batch_tiles: tiles in a step over all ranks.
        seed: another seed gives another order.
        rank: of this worker.
        world: number of workers.
    """

    sizes: tuple[int, ...]
    batch_tiles: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return sum(max(1, size // self.batch_tiles) for size in self.sizes if size)

    def epoch(self, number: int) -> list[tuple[int, Int64Array]]:
        """(tile set, places in it) of this rank's part of each step of an epoch."""
        rng = np.random.default_rng([self.seed, number])
        batches = []
        for index, size in enumerate(self.sizes):
            order = rng.permutation(size)
            for start in range(
                0, max(1, size // self.batch_tiles) * self.batch_tiles, self.batch_tiles
            ):
                whole = order[start : start + self.batch_tiles]
                batches.append((index, whole[self.rank :: self.world]))
        picked = rng.permutation(len(batches))
        return [batches[i] for i in picked if len(batches[i][1])]


def prefetched(
    sets: Sequence[TileSet], batches: Sequence[tuple[int, Int64Array]], *, threads: int = 2
) -> Iterator[TileBatch]:
    """Batches in order, made ahead in threads (never in forked processes: Lance would hang)."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[TileBatch]] = []
        for index, which in batches:
            waiting.append(pool.submit(sets[index].batch, which))
            if len(waiting) > threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
