"""The tiles of a unit as decoded batches: shards are opened, and tiles decoded, ahead of use."""

import contextlib
import functools
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore import LakeConfig, ShardReader, Store
from featurestore.shards import check_shard
from featurestore.storage import DiskFullError
from featurestore.tables import FragmentKeys
from ingest.errors import SlideError
from ingest.stain_normalisation import SAMPLE_TILES, Normalisation, Normaliser, fitted
from ingest.teachers.outputs import drawn, in_share
from ingest.teachers.views.field_of_view import FieldOfView
from ingest.teachers.views.region_tiles import (
    FETCHED_SHARE,
    OwnTiles,
    RegionPixels,
    RegionSource,
)
from ingest.teachers.work.units import Row, Unit
from ingest.tile_jpeg import decode_tiles

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The rows of one slide in a unit, and the open sources of their pixels.

    Attributes:
        slide: number of the slide.
        start: number of the first row in the fragment.
        ids: keys of the tiles in these rows.
        chosen: places among `ids` of the tiles that teachers are run on.
        sources: the stored tiles under these rows, with the fields of view that they are for.
        normalisers: normalisers of the slide's stains; None where it has too little tissue.
    """

    slide: int
    start: int
    ids: Int64Array
    chosen: Int64Array
    sources: Sequence[tuple[RegionSource, Sequence[FieldOfView]]]
    normalisers: Mapping[Normalisation, Normaliser | None]

    def close(self) -> None:
        """Close all sources."""
        for source, _ in self.sources:
            source.close()


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


@dataclass(frozen=True, kw_only=True)
class SeenTiles:
    """The tiles of a batch in one field of view.

    Attributes:
        places: places among the piece's `ids` of the tiles with pixels [B]: those that are not
            filled beyond what the field of view allows.
        pixels: RGB [B, H, W, 3].
        filled: share of each tile of the batch that was filled with background.
    """

    places: Int64Array
    pixels: RgbArray
    filled: Float32Array


#: The tiles of a batch by field of view; none for a batch without tiles.
Seen = Mapping[FieldOfView, SeenTiles]


@contextlib.contextmanager
def tile_feed(
    store: Store, unit: Unit, views: Sequence[FieldOfView], *, threads: int, batch_tiles: int
) -> Generator[Iterator[tuple[PieceBatch, Seen]]]:
    """Yield an iterator over the batches of a unit in row order, with their pixels.

    Args:
        store: the lake's files.
        unit: the rows.
        views: the fields of view that pixels are wanted in.
        threads: number of threads that decode; two batches more than threads are ahead at most.
        batch_tiles: tiles of a batch.
    """
    feed = _Feed(store, unit, views, threads, batch_tiles)
    try:
        yield iter(feed)
    finally:
        feed.close()


class _Feed:
    """A thread that hands out batches to decoding threads, in order, a bounded number ahead."""

    def __init__(
        self,
        store: Store,
        unit: Unit,
        views: Sequence[FieldOfView],
        threads: int,
        batch_tiles: int,
    ) -> None:
        self._opener = _Opener(store, unit, views)
        self._batch_tiles = batch_tiles
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._room = threading.Semaphore(threads + 2)
        self._closed = False
        self._queue: queue.SimpleQueue[tuple[PieceBatch, Future[Seen]] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._produce, name="open-shards", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for piece in self._opener.pieces():
                for batch in _batches(piece, self._batch_tiles):
                    self._room.acquire()
                    if self._closed:
                        return
                    self._queue.put((batch, self._decoders.submit(_decoded, batch)))
        except BaseException as error:  # noqa: BLE001 - it is raised where the tiles are used
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[tuple[PieceBatch, Seen]]:
        while (entry := self._queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            batch, decoded = entry
            seen_tiles = decoded.result()
            if batch.is_last:
                batch.piece.close()
            yield batch, seen_tiles
            self._room.release()

    def close(self) -> None:
        """Stop both kinds of threads; tiles that were not used are dropped."""
        self._closed = True
        self._room.release()
        self._thread.join()
        self._decoders.shutdown(cancel_futures=True)


class _Opener:
    """Opener of the slides of a unit.

    Args:
        store: the lake's files.
        unit: the rows.
        views: the fields of view that pixels are wanted in.
    """

    def __init__(self, store: Store, unit: Unit, views: Sequence[FieldOfView]) -> None:
        self._store, self._unit = store, unit
        self._views_by_source: dict[tuple[float, int], list[FieldOfView]] = {}
        for view in views:
            self._views_by_source.setdefault((view.mpp, view.ratio), []).append(view)
        named = (view.normalisation for view in views if view.normalisation is not None)
        self._normalisations = list(dict.fromkeys(named))

    def pieces(self) -> Iterator[Piece]:
        """Yield the rows of each slide; the next slide is opened, and fetched, meanwhile."""
        unit = self._unit
        with ThreadPoolExecutor(1) as opener:
            waiting = list(unit.slides)[::-1]
            numbers = [row["slide"] for row in waiting]
            keys = FragmentKeys(self._store, unit.mpp, unit.fragment, numbers)
            opened = opener.submit(self._opened, keys, waiting.pop()) if waiting else None
            while opened is not None:
                piece = opened.result()
                opened = opener.submit(self._opened, keys, waiting.pop()) if waiting else None
                yield piece

    def _opened(self, keys: FragmentKeys, row: Row) -> Piece:
        """Open the sources of a slide's pixels.

        Raises:
            DamageError: a shard is gone, damaged or replaced.
            SlideError: the shard holds other tiles than the table.
        """
        ids, chosen = _chosen_tiles(self._unit, keys, row)
        first = max(0, self._unit.first - row["row_start"])
        stop = min(len(ids), self._unit.end - row["row_start"])
        chosen = chosen[(chosen >= first) & (chosen < stop)]
        sources: list[tuple[RegionSource, Sequence[FieldOfView]]] = []
        normalisers: dict[Normalisation, Normaliser | None] = {}
        if self._normalisations:
            sample = self._sample(row, ids)
            normalisers = {name: fitted(name, sample) for name in self._normalisations}
        for views in self._views_by_source.values():
            if views[0].ratio > 1:
                source: RegionSource = self._regions(row, ids[first:stop], chosen - first, views)
            else:
                source = OwnTiles(self._own_shard(row, ids, chosen, first, stop), ids[first:stop])
            sources.append((source, views))
        return Piece(
            slide=row["slide"],
            start=row["row_start"] + first,
            ids=ids[first:stop],
            chosen=chosen - first,
            sources=sources,
            normalisers=normalisers,
        )

    def _sample(self, row: Row, ids: Int64Array) -> RgbArray:
        """Return the tiles of a slide that its stains are fitted on [B, H, W, 3]."""
        check_shard(self._store, row)
        with ShardReader.of(self._store, row) as shard:
            return decode_tiles(shard.jpegs(ids[drawn(ids, SAMPLE_TILES)]))

    def _own_shard(
        self, row: Row, ids: Int64Array, chosen: Int64Array, first: int, stop: int
    ) -> ShardReader:
        """Open a slide's own shard, and compare it with the rows of its tiles."""
        # Features of damaged pixels would be wrong for good, under a checksum of their own.
        check_shard(self._store, row)
        shard = ShardReader.of(self._store, row)
        if not np.array_equal(shard.tile_id, ids):
            shard.close()
            msg = f"shard {row['shard']} does not hold the tiles of slide {row['slide_id']}"
            raise SlideError(msg)
        if len(chosen) > FETCHED_SHARE * (stop - first):
            with contextlib.suppress(DiskFullError):  # tiles are then read where they lie
                shard.fetch(first, stop)
        return shard

    @functools.cached_property
    def _config(self) -> LakeConfig:
        return LakeConfig.from_json(self._store.read_bytes("lake.json"), uri=self._store.uri)

    def _regions(
        self, row: Row, ids: Int64Array, chosen: Int64Array, views: Sequence[FieldOfView]
    ) -> RegionPixels:
        """Open the finer tiles under a slide's rows."""
        regions = RegionPixels(self._store, self._config, row, ids, views)
        regions.fetch(chosen)
        return regions


def _batches(piece: Piece, size: int) -> Iterator[PieceBatch]:
    """Yield the chosen tiles of a piece in batches; one without tiles if none is chosen."""
    for at in range(0, max(1, len(piece.chosen)), size):
        places = piece.chosen[at : at + size]
        yield PieceBatch(piece=piece, places=places, is_last=at + size >= len(piece.chosen))


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


def _decoded(batch: PieceBatch) -> Seen:
    """Return the pixels of a batch in each field of view."""
    seen_tiles: dict[FieldOfView, SeenTiles] = {}
    if not len(batch.places):
        return seen_tiles
    for source, views in batch.piece.sources:
        regions, is_filled = source.read(batch.places)
        for view in views:
            corner, stop = view.corner_px, view.corner_px + view.side_px
            # As it is stored, so that readers of the shares find the tiles that were left out.
            filled = (is_filled * view.shares()).sum(axis=(1, 2)).astype(np.float16)
            is_kept = filled <= view.filled_at_most
            pixels = regions[:, corner:stop, corner:stop]
            pixels = pixels if is_kept.all() else pixels[is_kept]
            if view.normalisation is not None and len(pixels):
                normalise = batch.piece.normalisers[view.normalisation]
                pixels = pixels if normalise is None else normalise(pixels)
            seen_tiles[view] = SeenTiles(
                places=batch.places[is_kept],
                pixels=pixels,
                filled=filled.astype(np.float32),
            )
    return seen_tiles
