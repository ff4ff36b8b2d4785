"""The tiles of a unit as decoded batches: shards are opened, and tiles decoded, ahead of use."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore import ShardReader, Store
from featurestore.shards import check_shard
from featurestore.storage import DiskFullError
from featurestore.tables import FragmentKeys
from ingest.errors import SlideError
from ingest.teachers.outputs import in_share
from ingest.teachers.work.units import Row, Unit
from ingest.tile_jpeg import decode_tiles

#: Share of a slide's tiles above which all of its shard is fetched from a bucket.
FETCHED_SHARE = 0.25

Int64Array = npt.NDArray[np.int64]
RgbArray = npt.NDArray[np.uint8]
NO_TILES: RgbArray = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The rows of one slide in a unit, and its open shard.

    Attributes:
        slide: number of the slide.
        start: number of the first row in the fragment.
        ids: keys of the tiles in these rows.
        chosen: places among `ids` of the tiles that teachers are run on.
        shard: the open shard.
    """

    slide: int
    start: int
    ids: Int64Array
    chosen: Int64Array
    shard: ShardReader


@dataclass(frozen=True, kw_only=True)
class PieceBatch:
    """Tiles of a slide that networks get at once.

    Attributes:
        piece: rows that they are of.
        places: places among the piece's `ids`; none if no tile of the piece is chosen.
        is_last: whether no other batch of the piece follows.
    """

    piece: Piece
    places: Int64Array
    is_last: bool


@contextlib.contextmanager
def tile_feed(
    store: Store, unit: Unit, *, threads: int, batch_tiles: int
) -> Generator[Iterator[tuple[PieceBatch, RgbArray]]]:
    """Yield an iterator over the batches of a unit in row order, with their pixels [B, H, W, 3].

    Args:
        store: the lake's files.
        unit: the rows.
        threads: number of threads that decode; two batches more than threads are ahead at most.
        batch_tiles: tiles of a batch.
    """
    feed = _Feed(store, unit, threads, batch_tiles)
    try:
        yield iter(feed)
    finally:
        feed.close()


class _Feed:
    """A thread that hands out batches to decoding threads, in order, a bounded number ahead."""

    def __init__(self, store: Store, unit: Unit, threads: int, batch_tiles: int) -> None:
        self._store, self._unit, self._batch_tiles = store, unit, batch_tiles
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._room = threading.Semaphore(threads + 2)
        self._closed = False
        self._queue: queue.SimpleQueue[
            tuple[PieceBatch, Future[RgbArray]] | BaseException | None
        ] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._produce, name="open-shards", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for piece in _pieces(self._store, self._unit):
                for batch in _batches(piece, self._batch_tiles):
                    self._room.acquire()
                    if self._closed:
                        return
                    self._queue.put((batch, self._decoders.submit(_decoded, batch)))
        except BaseException as error:  # noqa: BLE001 - it is raised where the tiles are used
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[tuple[PieceBatch, RgbArray]]:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            batch, pixels = entry
            tiles = pixels.result()
            if batch.is_last:
                batch.piece.shard.close()
            yield batch, tiles
            self._room.release()

    def close(self) -> None:
        """Stop both kinds of threads; tiles that were not used are dropped."""
        self._closed = True
        self._room.release()
        self._thread.join()
        self._decoders.shutdown(cancel_futures=True)


def _pieces(store: Store, unit: Unit) -> Iterator[Piece]:
    """Yield the rows of each slide; the next slide is opened, and fetched, meanwhile."""
    with ThreadPoolExecutor(1) as opener:
        waiting = list(unit.slides)[::-1]
        numbers = [row["slide"] for row in waiting]
        keys = FragmentKeys(store, unit.mpp, unit.fragment, numbers)
        opened = opener.submit(_opened_piece, store, unit, keys, waiting.pop()) if waiting else None
        while opened is not None:
            piece = opened.result()
            opened = (
                opener.submit(_opened_piece, store, unit, keys, waiting.pop()) if waiting else None
            )
            yield piece


def _batches(piece: Piece, size: int) -> Iterator[PieceBatch]:
    """Yield the chosen tiles of a piece in batches; one without tiles if none is chosen."""
    for at in range(0, max(1, len(piece.chosen)), size):
        places = piece.chosen[at : at + size]
        yield PieceBatch(piece=piece, places=places, is_last=at + size >= len(piece.chosen))


def _opened_piece(store: Store, unit: Unit, keys: FragmentKeys, row: Row) -> Piece:
    """Open a slide's shard, and compare it with the rows of its tiles.

    Raises:
        DamageError: the shard is gone, damaged or replaced.
        SlideError: the shard holds other tiles.
    """
    # Features of damaged pixels would be wrong for good, under a checksum of their own.
    check_shard(store, row)
    ids, chosen = _chosen_tiles(unit, keys, row)
    first = max(0, unit.first - row["row_start"])
    stop = min(len(ids), unit.end - row["row_start"])
    chosen = chosen[(chosen >= first) & (chosen < stop)]
    shard = ShardReader.of(store, row)
    if not np.array_equal(shard.tile_id, ids):
        shard.close()
        msg = f"shard {row['shard']} does not hold the tiles of slide {row['slide_id']}"
        raise SlideError(msg)
    if len(chosen) > FETCHED_SHARE * (stop - first):
        with contextlib.suppress(DiskFullError):  # tiles are then read where they lie
            shard.fetch(first, stop)
    return Piece(
        slide=row["slide"],
        start=row["row_start"] + first,
        ids=ids[first:stop],
        chosen=chosen - first,
        shard=shard,
    )


def _chosen_tiles(unit: Unit, keys: FragmentKeys, row: Row) -> tuple[Int64Array, Int64Array]:
    """Return the keys of a slide's tiles, and the places of the chosen ones among them."""
    slide, where = row["slide"], row.get("where", unit.choice.where)
    ids = keys.of(slide)
    is_chosen = np.ones(len(ids), bool)
    if where is not None:
        is_chosen = np.isin(ids, keys.of(slide, where))
    if unit.choice.share is not None:
        is_chosen &= in_share(ids, unit.choice.share)
    return ids, np.flatnonzero(is_chosen)


def _decoded(batch: PieceBatch) -> RgbArray:
    if not len(batch.places):
        return NO_TILES
    piece = batch.piece
    return decode_tiles(piece.shard.jpegs(piece.ids[batch.places]))
