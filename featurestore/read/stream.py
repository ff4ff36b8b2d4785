"""Tiles with cached features and pixels in a shuffled order, for training.

The order depends only on the seed, the epoch and the rank, so a stream resumes at the very next
tile from four numbers. It is read ahead in threads; a forked process would hang in Lance.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, get_args

import polars as pl
import torch
from torch.utils.data import IterableDataset, get_worker_info

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.messages import counted, listing
from featurestore.pixels.pixel_cache import PixelCache, cache_folder
from featurestore.pixels.tile_pixels import PixelDecoder
from featurestore.read.lake_view import LakeView
from featurestore.read.select_slides import select
from featurestore.read.stream_order import Order
from featurestore.read.stream_tiles import (
    PART_ROWS,
    PIECE_TILES,
    BatchWork,
    Buffer,
    Pixels,
    TileBatch,
    TileSource,
)
from featurestore.read.stream_under import below
from featurestore.read.unforked import Unforked

READERS = 4  # threads that read from a bucket, each with several requests at once


@dataclass(frozen=True, kw_only=True)
class StreamPixels:
    """The pixels that come with the tiles of a stream.

    Attributes:
        kind: "none", "jpeg" (as stored) or "uint8" (decoded).
        decoder: what makes pixels of stored tiles.
        cache_bytes: greatest size of the file of decoded tiles on a local disk; 0 for none.
        cache_folder: folder of that file; see `Lake.stream`.
    """

    kind: Pixels
    decoder: PixelDecoder
    cache_bytes: int = 0
    cache_folder: str | None = None

    def check(self) -> None:
        """Raise LakeError if there are settings of decoded pixels, and none are decoded."""
        whole = PixelDecoder(tile_px=self.decoder.tile_px)
        if self.cache_bytes < 0 or (
            self.kind != "uint8" and (self.cache_bytes or self.decoder != whole)
        ):
            msg = (
                f"pixels='{self.kind}' with input_px={self.decoder.input_px}, decode="
                f"'{self.decoder.decode}', cache_pixels_gb={self.cache_bytes / 1e9:g} given; "
                "these are of pixels='uint8', and a cache has 0 GB or more"
            )
            raise LakeError(msg)


class Stream(IterableDataset[TileBatch], Unforked):
    """A stream of batches; each iteration is an epoch, the next one after a whole epoch.

    Only one iterator at a time. In a `DataLoader` use `batch_size=None`; its workers must be
    spawned, count as further ranks, and get the epoch from `set_epoch` before each epoch.

    Args:
        lake: read at its own version.
        teachers: every tile comes with their features.
        mpp: microns per pixel of the tiles.
        slide_ids: names of the tiles' slides; None for all.
        pixels: which pixels come with the tiles.
        under: teachers by finer mpp: every tile comes with the features of the tiles under it.
        order: function that returns the order for a number of `tiles`.
        threads: number of threads that read ahead and decode; None for as many as torch uses in
            this process, one in a `DataLoader`'s worker. The batches do not depend on it.

    Attributes:
        slides: catalog rows of the slides, by number.
        epoch: number of the next epoch, or of the epoch in progress.

    Raises:
        LakeError: a slide is unknown or lacks features or pixels, its grids do not nest, or a
            setting is not allowed.

    Examples:
        >>> stream = sl.open_lake("my-lake").stream("student", mpp=0.5, batch_tiles=100)
        >>> [len(batch.tile_id) for batch in stream]
        [100, 100, 100, 12]
    """

    def __init__(
        self,
        lake: LakeView,
        teachers: Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None,
        pixels: StreamPixels,
        under: Mapping[float, Sequence[str]],
        order: Callable[..., Order],
        threads: int | None,
    ) -> None:
        if pixels.kind not in get_args(Pixels) or (threads is not None and threads < 1):
            allowed = ", ".join(get_args(Pixels))
            msg = f"pixels='{pixels.kind}', threads={threads} given; allowed: {allowed}; 1 or more"
            raise LakeError(msg)
        pixels.check()
        self._cache: PixelCache | None = None
        Unforked.__init__(self)
        self._lake, self._teachers, self._pixels = lake, list(teachers), pixels.kind
        self._decoder = pixels.decoder
        self._cache_bytes, self._cache_folder = pixels.cache_bytes, pixels.cache_folder
        self._threads = threads
        self._selection = select(lake, teachers, mpp=mpp, slide_ids=slide_ids)
        self.slides: pl.DataFrame = self._selection.slides
        self.mpp = self._selection.mpp
        self._refuse_without_pixels()
        self._below = [below(lake, self._selection, mpp, names) for mpp, names in under.items()]
        self._source: TileSource | None = None
        self._order = order(tiles=self._selection.tiles)
        self.epoch, self._batches_given, self._first = 0, 0, 0

    def _refuse_without_pixels(self) -> None:
        bare = self.slides.filter(pl.col("shard").is_null())["slide_id"].to_list()
        if self._pixels != "none" and bare:
            msg = (
                f"{counted(len(bare), 'slide', 'have')} features but no pixels: {listing(bare)}; "
                "use "
                "pixels='none', or name other slides"
            )
            raise LakeError(msg)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_cache": None}

    def __repr__(self) -> str:
        place = f"{self._teachers} at mpp {mpp_name(self.mpp)}"
        return f"Stream({counted(self.tiles, 'tile')} of {place}, {self.steps:,} batches an epoch)"

    @property
    def tiles(self) -> int:
        """Return the number of tiles of all slides.

        Examples:
            >>> sl.open_lake("my-lake").stream("student", mpp=0.5).tiles
            312
        """
        return self._selection.tiles

    @property
    def steps(self) -> int:
        """Return the number of batches in an epoch of one rank.

        Examples:
            >>> sl.open_lake("my-lake").stream("student", mpp=0.5, batch_tiles=100).steps
            4
        """
        return self._order.steps

    @property
    def requests(self) -> int:
        """Return the most requests that an epoch of one rank sends to a bucket, after the first.

        One for each block of neighbours, column and slide that it touches; none to a local lake.
        Finer tiles under the tiles come on top, and in the first epoch the comparison with the
        catalog's checksums, which reads every slide once as a whole.

        Examples:
            >>> sl.open_lake("my-lake").stream("student", mpp=0.5).requests
            0
        """
        if self._lake.store.is_local:
            return 0
        columns = len(self._teachers) + (self._pixels != "none")
        read_at_once = self._order.block_tiles if self._order.shuffle else PART_ROWS
        # A block on the border of two slides is read from each.
        blocks = -(-self._order.rows // read_at_once) + 1
        return columns * (blocks + len(self.slides))

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch; the epoch of a loaded state resumes at the state's position.

        Examples:
            >>> stream = sl.open_lake("my-lake").stream("student", mpp=0.5)
            >>> stream.set_epoch(3)
            >>> stream.epoch
            3
        """
        if epoch != self.epoch:
            self.epoch, self._batches_given, self._first = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream after its last yielded batch, as plain JSON.

        Examples:
            >>> stream = sl.open_lake("my-lake").stream("student", mpp=0.5, batch_tiles=100)
            >>> batches = iter(stream)
            >>> first = next(batches)
            >>> stream.state_dict()["given"]
            1
        """
        return {"epoch": self.epoch, "given": self._batches_given, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the last batch that the stream of a state had yielded.

        Raises:
            LakeError: the state's stream had another order; the settings that differ are named.

        Examples:
            >>> lake = sl.open_lake("my-lake")
            >>> stream = lake.stream("student", mpp=0.5, batch_tiles=100)
            >>> first = next(iter(stream))
            >>> resumed = lake.stream("student", mpp=0.5, batch_tiles=100)
            >>> resumed.load_state_dict(stream.state_dict())
            >>> len(list(resumed))  # of four batches
            3
        """
        own_settings, state_settings = self._settings(), state["settings"]
        other = sorted(
            key
            for key in {*own_settings, *state_settings}
            if own_settings.get(key) != state_settings.get(key)
        )
        if other:
            named = ", ".join(
                f"{key} {state_settings.get(key)} (here {own_settings.get(key)})" for key in other
            )
            msg = f"the state is of a stream in another order: {named}; use the same settings"
            raise LakeError(msg)
        self.epoch, self._batches_given = int(state["epoch"]), int(state["given"])
        self._first = self._batches_given

    def _settings(self) -> dict[str, Any]:
        under = {mpp_name(finer.mpp): finer.selection.digest for finer in self._below}
        return {
            **self._order.settings(),
            "mpp": mpp_name(self.mpp),
            "slides": self._selection.digest,
            **({"under": under} if under else {}),
        }

    def __iter__(self) -> Generator[TileBatch]:
        self.check_process()
        order = self._order_here()
        # A loaded state moves the beginning of one epoch only.
        self._batches_given, self._first = self._first, 0
        with closing(self._batches(order, self.epoch, self._batches_given)) as batches:
            for batch in batches:
                self._batches_given += 1
                yield batch
        self.epoch, self._batches_given = self.epoch + 1, 0

    def _order_here(self) -> Order:
        """Return the order of this process: workers of a DataLoader share their rank's part."""
        worker = get_worker_info()
        if worker is None:
            return self._order
        count = worker.num_workers
        rank = self._order.rank * count + worker.id
        return replace(self._order, rank=rank, world=self._order.world * count)

    def _batches(self, order: Order, epoch: int, first: int) -> Generator[TileBatch]:
        cache = self._open_cache()
        source = self._source or TileSource(
            self._lake,
            self._selection,
            self._teachers,
            self._pixels,
            self._below,
            decoder=self._decoder,
            cache=cache,
        )
        if not self._lake.store.is_local:
            self._source = source  # it keeps the indexes of shards, and the places of tiles
        waiting: deque[BatchWork] = deque()
        threads = self._threads or torch.get_num_threads()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="slidelake-stream")
        # Batches that keep all threads at work, and one that is complete.
        ahead = 1 + max(1, -(-threads * PIECE_TILES // order.batch_tiles))
        # A thread that waits for a bucket would keep a core from decoding.
        remote = not self._lake.store.is_local
        readers = (
            ThreadPoolExecutor(READERS, thread_name_prefix="slidelake-read") if remote else pool
        )
        try:
            for work in _jobs(source, order, epoch, first, readers, pool):
                waiting.append(work)
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Also when the consumer stops early: what was not begun is dropped, threads end.
            readers.shutdown(wait=True, cancel_futures=True)
            pool.shutdown(wait=True, cancel_futures=True)

    def _open_cache(self) -> PixelCache | None:
        """Return the decoded tiles of this process; what others kept meanwhile is in them."""
        if self._cache is not None:
            self._cache.refresh()
        elif self._cache_bytes:
            folder = cache_folder(self._cache_folder)
            self._cache = PixelCache(folder, self.slides, self._decoder, self._cache_bytes)
        return self._cache


def _jobs(
    source: TileSource, order: Order, epoch: int, first: int, readers: Executor, pool: Executor
) -> Iterator[BatchWork]:
    """Yield the batches from step `first` on, in order, while the readers read ahead.

    A pool runs jobs in the order of submission, and all parts of a buffer come before the batches
    that wait for them, so no number of threads can be too small, also if both pools are one. Each
    batch also submits a part of the next buffer, so that reading and decoding go on side by side.
    """

    def buffer(number: int) -> Buffer:
        rows = order.buffer(epoch, number)
        return Buffer(source, rows, order.inside(epoch, number, len(rows)))

    size = order.buffer_rows
    held: dict[int, Buffer] = {}
    for step in range(first, order.steps):
        start, stop = order.batch(step)
        needed = range(start // size, (stop - 1) // size + 1)
        held = {number: held.get(number) or buffer(number) for number in needed} | {
            number: later_buffer for number, later_buffer in held.items() if number > needed[-1]
        }
        for number in needed:
            held[number].start(readers)
        after = needed[-1] + 1
        if after * size < order.rows:
            held[after] = held.get(after) or buffer(after)
            held[after].start(readers, order.batch_tiles)
        picked = [(held[n], max(start - n * size, 0), min(stop - n * size, size)) for n in needed]
        yield BatchWork(source, picked, pool)
