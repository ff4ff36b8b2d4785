"""Teachers over the tiles of a unit: what a worker of the job does. No Ray in here.

Reading, decoding, networks and writing overlap, across the slides of a unit: one thread opens
shards and hands out batches to threads that decode them, a bounded number ahead; each batch is
started on the networks as soon as it is decoded, and written once later batches have been started.
Each shard is read once and decoded once; every teacher sees the same tiles.
"""

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore import BucketError, ColumnWriter, Store
from featurestore.storage import disk_full_error, missing_keys_error
from featurestore.tables import (
    PartDamageError,
    PartName,
    PartWriter,
    identity_of,
    join_parts,
)
from ingest.stain import stain_variant
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.find_teacher import Teacher, load_encoder
from ingest.teachers.outputs import FILLED, Output, only
from ingest.teachers.views.field_of_view import FieldOfView
from ingest.teachers.work.tile_feed import PieceBatch, Seen, tile_feed
from ingest.teachers.work.units import Join, Outcome, Unit, outcome_of

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa

    from ingest.teachers.encoder import Encoder, RunningBatch

BATCH_TILES, GPU_BATCH_TILES = 32, 256

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A network with columns that it computes from the same pixels."""

    encoder: "Encoder"
    outputs: list[Output]
    view: FieldOfView


@dataclass(frozen=True, kw_only=True)
class _Started:
    """Features of some tiles of a batch that are computed, or known.

    Attributes:
        places: places of the tiles among the keys of the batch's piece [B].
        running: the batch on a network; None for `shares`.
        shares: filled shares [B, 1] of the tiles by column, which no network computes.
        left_out: number of tiles that are left out for their share.
    """

    places: Int64Array
    running: "RunningBatch | None" = None
    shares: Mapping[str, Float32Array] = field(default_factory=dict)
    left_out: int = 0


class Extractor:
    """The worker that computes unit after unit, and builds each network once."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._encoders: dict[tuple[str, Precision, Engine], Encoder] = {}

    def __call__(self, task_row: dict[str, Any]) -> dict[str, Any]:
        """Compute one pickled unit, or join the parts of a fragment; return a pickled outcome."""
        task: Unit | Join = pickle.loads(task_row["unit"])
        self._store, self._threads = Store(task_row["store"]), int(task_row["threads"])
        self._device = task_row["device"]
        outcome = outcome_of(task)
        try:
            if isinstance(task, Join):
                _join(self._store, task, outcome)
            else:
                self._fill(outcome, pickle.loads(task_row["teachers"]))
        except Exception as error:  # noqa: BLE001 - the other fragments go on
            fault = disk_full_error(error, self._store.uri) or missing_keys_error(error)
            outcome.reason = str(fault) if fault else f"{type(error).__name__}: {error}"
            outcome.no_keys = isinstance(fault, BucketError)
            outcome.files = []
        return {"outcome": pickle.dumps(outcome)}

    def _encoder(self, teacher: Teacher, precision: Precision, engine: Engine) -> "Encoder":
        key = (teacher.card.name, precision, engine)
        if key not in self._encoders:
            from ingest.teachers.encoder import one_thread_each

            self._pool = self._pool or one_thread_each(self._threads)
            self._encoders[key] = load_encoder(
                self._store,
                teacher,
                pool=self._pool,
                device=self._device,
                precision=precision,
                engine=engine,
            )
        return self._encoders[key]

    def _fill(self, outcome: Outcome, teachers: Sequence[Teacher]) -> None:
        unit = outcome.unit
        outcome.seconds = dict.fromkeys((column.name for column in unit.fields), 0.0)
        work, start = list(self._work(unit, teachers)), time.perf_counter()
        shares = _columns_of_shares(unit)
        views = list(dict.fromkeys([*(part.view for part in work), *shares.values()]))
        # So many batches are on the networks that each thread has a part to compute.
        least = min((part.encoder.part_tiles for part in work), default=1)
        size = GPU_BATCH_TILES if self._device == "cuda" else BATCH_TILES
        size = max(least, size // max((view.ratio for view in views), default=1) ** 2)
        ahead = 1 + -(-self._threads * least // size)
        with contextlib.ExitStack() as stack:
            writers = _writers(self._store, unit, stack)
            feed = tile_feed(self._store, unit, views, threads=self._threads, batch_tiles=size)
            running: deque[tuple[PieceBatch, list[_Started]]] = deque()
            for batch, seen_tiles in stack.enter_context(feed):
                outcome.tiles += len(batch.places)
                running.append((batch, _start(work, shares, batch, seen_tiles)))
                while len(running) > ahead:  # the networks are busy while it is written
                    _put(writers, outcome, self._threads, *running.popleft())
            while running:
                _put(writers, outcome, self._threads, *running.popleft())
            for writer in writers.values():
                writer.skip(unit.end - writer.rows)
            for writer in writers.values():
                if isinstance(writer, PartWriter):
                    writer.finish()
                else:
                    outcome.files.append(writer.finish())
        outcome.wall_s = time.perf_counter() - start

    def _work(self, unit: Unit, teachers: Sequence[Teacher]) -> Iterator[_Work]:
        """Yield each network with its columns of one precision, engine, stain and view."""
        identities = {column.name: identity_of(column) for column in unit.fields}
        for teacher in teachers:
            groups: dict[tuple[Precision, Engine, int | None, FieldOfView], list[Output]] = {}
            for output in only(teacher.outputs, list(identities)):
                identity = identities[output.column]
                view = unit.view_of(identity)
                engine = identity.get("engine", "torch")
                key = (identity["precision"], engine, output.stain, view)
                groups.setdefault(key, []).append(output)
            for (precision, engine, _, view), outputs in groups.items():
                encoder = self._encoder(teacher, precision, engine)
                yield _Work(encoder=encoder, outputs=outputs, view=view)


def _columns_of_shares(unit: Unit) -> dict[str, FieldOfView]:
    """Return the columns of shares that were filled, each with the field that it is about."""
    identities = {column.name: identity_of(column) for column in unit.fields}
    return {
        name: unit.view_of(identity)
        for name, identity in identities.items()
        if identity.get("pooling") == FILLED
    }


def _writers(
    store: Store, unit: Unit, stack: contextlib.ExitStack
) -> dict[str, ColumnWriter | PartWriter]:
    """Return a writer for each column: of the fragment's file if the unit is all of it."""
    names = unit.part_names()
    writers: dict[str, ColumnWriter | PartWriter] = {}
    for column in unit.fields:
        if names:
            part = PartWriter(store, names[column.name], column)
            stack.callback(part.discard)
            writers[column.name] = part
        else:
            whole = ColumnWriter(store, unit.mpp, column, unit.fragment)
            writers[column.name] = stack.enter_context(whole)
    return writers


def _start(
    work: Sequence[_Work], shares: Mapping[str, FieldOfView], batch: PieceBatch, seen_tiles: Seen
) -> list[_Started]:
    """Start all networks on some tiles."""
    if not len(batch.places):
        return []
    stained: dict[tuple[FieldOfView, int | None], RgbArray] = {}
    started = []
    for part in work:
        tiles, stain = seen_tiles[part.view], part.outputs[0].stain
        if not len(tiles.places):
            continue
        tile_id, key = batch.piece.ids[tiles.places], (part.view, stain)
        if key not in stained:
            stained[key] = (
                tiles.pixels if stain is None else stain_variant(tiles.pixels, tile_id, stain)
            )
        running = part.encoder.start(stained[key], tile_id, part.outputs)
        started.append(_Started(places=tiles.places, running=running))
    for column, view in shares.items():
        values = {column: seen_tiles[view].filled[:, None]}
        left_out = len(batch.places) - len(seen_tiles[view].places)
        started.append(_Started(places=batch.places, shares=values, left_out=left_out))
    return started


def _put(
    writers: dict[str, ColumnWriter | PartWriter],
    outcome: Outcome,
    threads: int,
    batch: PieceBatch,
    started: Sequence[_Started],
) -> None:
    """Write the features of some tiles of a slide; tiles between them were not chosen."""
    piece = batch.piece
    for writer in writers.values():
        writer.skip(max(0, piece.start - writer.rows))
    for part in started:
        places, running = part.places, part.running
        embeddings = part.shares if running is None else running.result()
        runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1)
        for name, values in embeddings.items():
            writer = writers[name]
            if running is None:
                outcome.count_filled(name, values, part.left_out)
            else:
                outcome.seconds[name] += running.seconds / threads / len(embeddings)
            for run in runs:
                written = writer.rows - piece.start
                writer.absent(piece.slide, int(places[run[0]]) - written)
                writer.add(piece.slide, piece.ids[places[run]], values[run])
    if batch.is_last:
        for writer in writers.values():
            writer.absent(piece.slide, len(piece.ids) + piece.start - writer.rows)


def _join(store: Store, join: Join, outcome: Outcome) -> None:
    """Join the parts of each column of a fragment; a part that is not whole is removed."""
    unit = join.unit
    fields: dict[str, pa.Field] = {column.name: column for column in unit.fields}
    try:
        for name, parts in join.parts.items():
            paths = [part.path for part in parts]
            column = fields[name]
            file = join_parts(store, unit.mpp, column, unit.fragment, unit.rows, paths)
            outcome.files.append(file)
            outcome.joined += paths
    except PartDamageError as error:
        damaged: PartName = next(
            part for parts in join.parts.values() for part in parts if part.path == error.path
        )
        store.remove([error.path])
        outcome.files, outcome.joined = [], []
        outcome.damaged = (damaged.first, damaged.stop)
