"""The buffers of rows with their pixels that a stream reads ahead, and batches picked from them."""

import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurestore.errors import DamageError
from featurestore.ids import tile_parts
from featurestore.notebook.shown import Shown
from featurestore.pixels.pixel_cache import PixelCache
from featurestore.pixels.tile_pixels import NotATileError, PixelDecoder, empty_tiles, split_range
from featurestore.read.lake_view import LakeView
from featurestore.read.selection import Located, Selection
from featurestore.read.stream_under import Below, FineTiles, Under, UnderReader, gathered, joined
from featurestore.shards.tar_shards import ShardReader
from featurestore.storage.side_by_side import side_by_side
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.lance_rows import Ranges, RowReader, Rows

OPEN_SHARDS = 256
PART_ROWS = 1024
PART_ROWS_MIN = 32
KEPT_TILES = 16_000_000  # 256 MB
PIECE_TILES = 32  # that a thread decodes at a time

Pixels = Literal["none", "jpeg", "uint8"]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, repr=False)
class TileBatch(Shown):
    """Tiles of one mpp, in a shuffled order.

    Attributes:
        mpp: microns per pixel of all tiles in the batch.
        tile_id: keys [B].
        x: level-0 pixels of the tiles' left edges [B].
        y: level-0 pixels of the tiles' top edges [B].
        features: raw float16 [B, D] per teacher.
        jpeg: the stored JPEGs of the tiles [B], if the stream has pixels "jpeg".
        pixels: uint8 RGB [B, H, W, 3], if the stream has pixels "uint8"; of the stream's
            `input_px`, if it has one.
        under: the finer tiles under each tile, by mpp, if the stream reads them.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> stream = lake.stream("student", mpp=0.5, batch_tiles=64, shuffle=False)
        >>> batch = next(iter(stream))
        >>> batch.features["student"].shape, batch.x[:3]
        ((64, 64), array([  0, 256, 512], dtype=int32))
    """

    mpp: float
    tile_id: Int64Array
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    features: dict[str, Float16Array]
    jpeg: list[bytes] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    under: dict[float, Under] = field(default_factory=dict)

    @property
    def slide(self) -> Int64Array:
        """Return the numbers of the tiles' slides [B].

        Examples:
            >>> lake = sl.open_lake("my-lake")
            >>> stream = lake.stream("student", mpp=0.5, batch_tiles=64, shuffle=False)
            >>> next(iter(stream)).slide[[0, 24, 48]]
            array([0, 1, 2])
        """
        return tile_parts(self.tile_id)[0]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Pixels and finer tiles of some rows, in addition to their features.

    Attributes:
        jpegs: stored JPEGs of the tiles [N], None where the cache has the pixels; or empty.
        under: the finer tiles under the rows' tiles, by mpp.
    """

    jpegs: list[memoryview | None]
    under: dict[float, FineTiles]


class KeptPlaces:
    """Keys and places of the slides that were read last, 16 bytes a tile. Safe for several threads.

    A block's features are one range of a column's file, its keys and places three short ones more.
    From a bucket those of a whole slide are no more requests than those of a block.

    Args:
        reader: reader of the features table.
        selection: the slides.
        most: number of tiles that are kept.
    """

    def __init__(self, reader: RowReader, selection: Selection, most: int = KEPT_TILES) -> None:
        self._reader, self._selection, self._most = reader, selection, most
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._tiles = 0

    def fill(self, located: Located, into: Rows, at: int) -> None:
        """Fill keys and places of some rows into arrays from row `at` on.

        Raises:
            DamageError: a data file is gone or short.
        """
        numbers = np.unique(located.slide).tolist()
        read = side_by_side(self._reader.store, self._rows_of, numbers)
        by_slide = dict(zip(numbers, read, strict=True))
        ranges = zip(
            located.slide.tolist(),
            located.first.tolist(),
            located.ranges.rows.tolist(),
            strict=True,
        )
        for slide, first, rows in ranges:
            source, target = slice(first, first + rows), slice(at, at + rows)
            into.tile_id[target] = by_slide[slide].tile_id[source]
            into.x[target] = by_slide[slide].x[source]
            into.y[target] = by_slide[slide].y[source]
            at += rows

    def _rows_of(self, slide: int) -> Rows:
        with self._lock:
            if slide in self._kept:
                self._kept.move_to_end(slide)
                return self._kept[slide]
        place: list[npt.NDArray[np.int64]] = [
            np.array([part], np.int64) for part in self._selection.place(slide)
        ]
        fragment, start, rows = place
        read = self._reader.read(Ranges(fragment=fragment, start=start, rows=rows), [])
        with self._lock:
            if slide not in self._kept:
                self._kept[slide] = read
                self._tiles += len(read.tile_id)
            while self._tiles > self._most and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._tiles -= len(oldest.tile_id)
        return read


class TileSource:
    """Reader of the rows of a selection. Safe for several threads.

    Args:
        lake: the lake, read at its own version.
        selection: the slides.
        teachers: names of the teachers to read.
        pixels: whether the stored tiles are read too.
        below: the same slides at finer mpps; fine tiles are read with the tiles above them.
        decoder: what makes pixels of the stored tiles; all pixels of them if None.
        cache: decoded tiles on a local disk, if they are kept.

    Attributes:
        part_rows: rows that one thread reads at a time; fewer with many fine tiles under each.
    """

    def __init__(
        self,
        lake: LakeView,
        selection: Selection,
        teachers: Sequence[str],
        pixels: Pixels,
        below: Sequence[Below] = (),
        *,
        decoder: PixelDecoder | None = None,
        cache: PixelCache | None = None,
    ) -> None:
        self._lake, self.selection, self.pixels = lake, selection, pixels
        self.decoder = decoder or PixelDecoder(tile_px=lake.config.tile_px)
        self.cache = cache
        self._reader = lake.row_reader(mpp=selection.mpp)
        self._dims = {name: lake.teachers(mpp=selection.mpp)[name] for name in teachers}
        self._shard = functools.lru_cache(OPEN_SHARDS)(self._shard_reader)
        # A local file is read in place as fast.
        self._places = None if lake.store.is_local else KeptPlaces(self._reader, selection)
        self._under = [UnderReader(lake, selection, finer) for finer in below]
        children = sum(finer.ratio**2 for finer in below)
        self.part_rows = max(PART_ROWS // max(children, 1), PART_ROWS_MIN)

    def empty(self, rows: int) -> Rows:
        """Return empty arrays for `rows` rows."""
        return Rows.empty(rows, self._dims)

    def read(self, rows: Int64Array, into: Rows, at: int) -> Extra:
        """Read rows into arrays from row `at` on; return the pixels and finer tiles of them.

        Raises:
            DamageError: a table or a shard is not as it was written; slide and tile are named.
        """
        located = self.selection.locate(rows)
        slides = np.unique(located.slide).tolist()
        # All of a slide is read once before its first block is used, here, in a reading thread.
        self._lake.first_reads.compare(self._reader, self.selection, slides, list(self._dims))
        self._reader.fill(located.ranges, into, at, places=self._places is None)
        if self._places is not None:
            self._places.fill(located, into, at)
        tile_id = into.tile_id[at : at + len(rows)]
        self.selection.check(located, tile_id)
        slide = np.repeat(located.slide, located.ranges.rows)
        x, y = (place[at : at + len(rows)] for place in (into.x, into.y))
        return Extra(
            jpegs=self._jpegs(located, tile_id, rows),
            under={reader.mpp: reader.read(slide, tile_id, x, y) for reader in self._under},
        )

    def _shard_reader(self, slide: int) -> ShardReader:
        """Open the shard of a slide of the selection, compared with its checksum first."""
        self._lake.first_reads.compare_shard(self._lake.store, self.selection, slide)
        return ShardReader.of(self._lake.store, self.selection.slides.row(slide, named=True))

    def _jpegs(
        self, located: Located, tile_id: Int64Array, rows: Int64Array
    ) -> list[memoryview | None]:
        """Return the stored JPEGs of some rows, without those of which the cache has the pixels."""
        if self.pixels == "none":
            return []
        is_stored = np.ones(len(rows), bool) if self.cache is None else ~self.cache.has(rows)
        ends = np.cumsum(located.ranges.rows)
        runs = [
            (slide, tile_id[start:end][is_stored[start:end]])
            for slide, start, end in zip(
                located.slide.tolist(), ends - located.ranges.rows, ends, strict=True
            )
            if is_stored[start:end].any()
        ]
        read = itertools.chain.from_iterable(
            side_by_side(self._lake.store, lambda run: self.jpegs(*run), runs)
        )
        return [next(read) if one else None for one in is_stored.tolist()]

    def jpegs(self, slide: int, tile_id: Int64Array) -> list[memoryview]:
        """Return the stored JPEGs of some tiles of a slide of the selection, by their keys.

        Raises:
            DamageError: the shard is not as it was written; slide and tile are named.
        """
        return self._shard(slide).jpegs(tile_id)

    def batch(self, picked: "Picked") -> TileBatch:
        """Return a batch of some rows, without their decoded pixels."""
        parts = [buffer.take(start, stop) for buffer, start, stop in picked]
        rows = Rows.joined(parts)
        jpegs = []
        if self.pixels == "jpeg":
            jpegs = [jpeg for buffer, start, stop in picked for jpeg in buffer.jpegs(start, stop)]
        under = [buffer.under(start, stop) for buffer, start, stop in picked]
        return TileBatch(
            mpp=self.selection.mpp,
            tile_id=rows.tile_id,
            x=rows.x,
            y=rows.y,
            features=rows.by_teacher,
            jpeg=[bytes(jpeg) for jpeg in jpegs if jpeg is not None]
            if self.pixels == "jpeg"
            else None,
            under={mpp: joined([part[mpp] for part in under]) for mpp in under[0]},
        )

    def decode(self, picked: "Picked", into: UInt8Array) -> None:
        """Fill the pixels [B, H, W, 3] of some rows, from the cache or from their JPEGs.

        Raises:
            DamageError: a tile is no JPEG of the lake's size; it is named.
        """
        at = 0
        for buffer, start, stop in picked:
            rows, keys = buffer.rows(start, stop).tolist(), buffer.keys(start, stop).tolist()
            for row, key, jpeg in zip(rows, keys, buffer.jpegs(start, stop), strict=True):
                self._decode(row, key, jpeg, into[at])
                at += 1

    def _decode(self, row: int, key: int, jpeg: memoryview | None, into: UInt8Array) -> None:
        if jpeg is None and self.cache is not None and self.cache.read(row, key, into):
            return
        if jpeg is None:  # what the cache had is not whole
            slide = int(self.selection.locate(np.array([row])).slide[0])
            (jpeg,) = self.jpegs(slide, np.array([key]))
        self._decode_jpeg(jpeg, key, into)
        if self.cache is not None:
            self.cache.write(row, key, into)

    def decoded(self, jpegs: Sequence[memoryview], tile_id: Int64Array) -> UInt8Array:
        """Return the decoded pixels [B, H, W, 3] of JPEGs.

        Raises:
            DamageError: a tile is no JPEG of the lake's size; it is named.
        """
        pixels = empty_tiles(len(jpegs), self.decoder.side_px)
        for jpeg, key, into in zip(jpegs, tile_id.tolist(), pixels, strict=True):
            self._decode_jpeg(jpeg, key, into)
        return pixels

    def _decode_jpeg(self, jpeg: memoryview, key: int, into: UInt8Array) -> None:
        try:
            self.decoder.decoded(jpeg, into)
        except NotATileError as error:
            msg = f"{self._name(key)} {error}"
            raise DamageError(msg) from error

    def _name(self, key: int) -> str:
        slides = self.selection.slides
        row = slides.filter(slides["slide"] == tile_parts(key)[0])
        return f"slide {row['slide_id'][0]}: tile {key}"


class Buffer:
    """Rows that are read ahead in parts and then mixed with each other.

    Args:
        source: reader of the rows.
        rows: numbers of the rows in the selection.
        order: the shuffled order of the rows.
    """

    def __init__(self, source: TileSource, rows: Int64Array, order: Int64Array) -> None:
        self._source, self._rows, self.order = source, rows, order
        self._arrays = source.empty(len(rows))
        self._starts = range(0, len(rows), source.part_rows)
        self._parts: list[Future[Extra]] = []

    def start(self, pool: Executor, rows: int | None = None) -> None:
        """Submit the next parts, of at least `rows` rows, to the pool; all parts if None."""
        parts = None if rows is None else -(-rows // self._source.part_rows)
        for start in list(self._starts[len(self._parts) :])[:parts]:
            self._parts.append(pool.submit(self._read, start))

    def _read(self, start: int) -> Extra:
        return self._source.read(self._rows[start : start + self._starts.step], self._arrays, start)

    def take(self, start: int, stop: int) -> Rows:
        """Return some of the rows in their mixed order, once read."""
        for part in self._parts:
            part.result()
        return self._arrays.take(self.order[start:stop])

    def rows(self, start: int, stop: int) -> Int64Array:
        """Return the numbers of the same rows in the selection."""
        return self._rows[self.order[start:stop]]

    def keys(self, start: int, stop: int) -> Int64Array:
        """Return the keys of the same rows, once read."""
        for part in self._parts:
            part.result()
        return self._arrays.tile_id[self.order[start:stop]]

    def jpegs(self, start: int, stop: int) -> list[memoryview | None]:
        """Return the stored tiles of the same rows, once read; None where the cache has them."""
        parts = [part.result().jpegs for part in self._parts]
        number, row = np.divmod(self.order[start:stop], self._starts.step)
        return [parts[n][r] for n, r in zip(number.tolist(), row.tolist(), strict=True)]

    def under(self, start: int, stop: int) -> dict[float, Under]:
        """Return the tiles under the same rows, by finer mpp, once read."""
        parts = [part.result().under for part in self._parts]
        number, row = np.divmod(self.order[start:stop], self._starts.step)
        return {mpp: gathered([part[mpp] for part in parts], number, row) for mpp in parts[0]}


#: Rows of one buffer or more: (buffer, start, stop), in the buffer's mixed order.
Picked = Sequence[tuple[Buffer, int, int]]


class BatchWork:
    """A batch that the threads of a pool put together: its rows, and its pixels piece by piece.

    Pieces let all threads share the first batch of an epoch and the last, and keep few batches in
    memory for many threads.

    Args:
        source: reader of the rows.
        picked: rows of the batch.
        pool: threads that do it, in the order of submission.
    """

    def __init__(self, source: TileSource, picked: Picked, pool: Executor) -> None:
        self._batch = pool.submit(source.batch, picked)
        self._pixels: UInt8Array | None = None
        self._pieces: list[Future[None]] = []
        if source.pixels != "uint8":
            return
        tiles = sum(stop - start for _, start, stop in picked)
        self._pixels = empty_tiles(tiles, source.decoder.side_px)
        at = 0
        for buffer, start, stop in picked:
            for first, last in split_range(start, stop, PIECE_TILES):
                into = self._pixels[at : at + last - first]
                self._pieces.append(pool.submit(source.decode, [(buffer, first, last)], into))
                at += last - first

    def result(self) -> TileBatch:
        """Return the batch, once it is whole.

        Raises:
            DamageError: a table or a shard is not as it was written; slide and tile are named.
        """
        batch = self._batch.result()
        for piece in self._pieces:
            piece.result()
        return batch if self._pixels is None else replace(batch, pixels=self._pixels)
