"""Teachers over the tiles of one fragment: what an actor of the job does. No Ray in here.

Shards are read once and decoded once, ahead of the networks; every teacher sees the same tiles.
"""

import contextlib
import functools
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore import BucketError, ColumnFile, ColumnWriter, ShardReader, Store
from featurestore.shards import check_shard
from featurestore.storage import DiskFullError, disk_full_error, missing_keys_error
from featurestore.tables import identity_of, keys_in
from ingest.errors import SlideError
from ingest.stain import stain_variant
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.find_teacher import Teacher, load_encoder
from ingest.teachers.outputs import Output, in_share, only
from ingest.tile_jpeg import decode_tile

if TYPE_CHECKING:
    from ingest.teachers.encoder import Encoder, RunningBatch

BATCH_TILES, GPU_BATCH_TILES = 32, 256

#: Share of a slide's tiles above which all of its shard is fetched from a bucket.
FETCHED_SHARE = 0.25

Row = dict[str, Any]
Int64Array = npt.NDArray[np.int64]
RgbArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice of tiles that teachers are run on; features of other tiles are NaN.

    Attributes:
        where: a predicate on the tiles' columns, as `tissue > 0.5 AND pen < 0.05`; None for all.
        share: share of the tiles, the same for every teacher; None for all.
        marks: values of the annotations that `where` names: other values choose other tiles.
    """

    where: str | None = None
    share: float | None = None
    marks: Mapping[str, str] | None = None

    def identity(self) -> dict[str, Any]:
        """Return the part of the choice that decides the numbers of a column."""
        choice = {"where": self.where, "share": self.share, "annotations": self.marks or None}
        return {name: setting for name, setting in choice.items() if setting is not None}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A fragment to run teachers on, with the catalog rows of the slides in it."""

    mpp: float
    fragment: int
    fields: tuple[pa.Field, ...]
    slides: tuple[Row, ...]
    rows: int
    choice: Choice = Choice()

    @property
    def tiles(self) -> int:
        """Return the number of rows of the fragment."""
        return sum(int(row["tiles"]) for row in self.slides)


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a unit: its files, or the reason why there are none.

    Attributes:
        unit: unit that was to be computed.
        files: file of each column.
        seconds: seconds in which its network ran, by column; shared time is divided among columns.
        wall_s: seconds of the whole run, without the time to build networks.
        tiles: number of tiles that the networks were run on.
        reason: why the unit failed.
        no_keys: whether it failed because its machine has no keys of the bucket.
    """

    unit: Unit
    files: list[ColumnFile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    tiles: int = 0
    reason: str | None = None
    no_keys: bool = False


class Extractor:
    """The Ray actor that computes fragment after fragment, and builds each network once."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._encoders: dict[tuple[str, Precision, Engine], Encoder] = {}

    def __call__(self, task_row: Row) -> Row:
        """Compute one pickled unit and return its pickled outcome."""
        unit: Unit = pickle.loads(task_row["unit"])
        self._store, self._threads = Store(task_row["store"]), int(task_row["threads"])
        self._device = task_row["device"]
        outcome = Outcome(unit=unit)
        try:
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
        unit, store = outcome.unit, self._store
        outcome.seconds = dict.fromkeys((column.name for column in unit.fields), 0.0)
        work, start = list(self._work(unit, teachers)), time.perf_counter()
        writers = {f.name: ColumnWriter(store, unit.mpp, f, unit.fragment) for f in unit.fields}
        for row, ids, rows, shard in _opened_slides(store, unit):
            for writer in writers.values():
                writer.skip(row["row_start"] - writer.rows)
            outcome.tiles += len(rows)
            put = functools.partial(_put, writers, row, ids, outcome, self._threads)
            before: tuple[Int64Array, list[RunningBatch]] | None = None
            for places, tiles in self._batches(shard, rows):
                started = _start(work, tiles, ids[places])
                if before is not None:  # the networks are busy while it is written
                    put(*before)
                before = (places, started)
            if before is not None:
                put(*before)
            for writer in writers.values():
                writer.absent(row["slide"], len(ids) + row["row_start"] - writer.rows)
        for writer in writers.values():
            writer.skip(unit.rows - writer.rows)
        outcome.files = [writer.finish() for writer in writers.values()]
        outcome.wall_s = time.perf_counter() - start

    def _work(
        self, unit: Unit, teachers: Sequence[Teacher]
    ) -> Iterator[tuple["Encoder", list[Output]]]:
        """Yield each network with its columns of one precision, engine and stain."""
        identities = {column.name: identity_of(column) for column in unit.fields}
        for teacher in teachers:
            groups: dict[tuple[Precision, Engine, int | None], list[Output]] = {}
            for output in only(teacher.outputs, list(identities)):
                identity = identities[output.column]
                key = (identity["precision"], identity.get("engine", "torch"), output.stain)
                groups.setdefault(key, []).append(output)
            for (precision, engine, _), outputs in groups.items():
                yield self._encoder(teacher, precision, engine), outputs

    def _batches(
        self, shard: ShardReader, rows: Int64Array
    ) -> Iterator[tuple[Int64Array, RgbArray]]:
        """Yield a slide's tiles in batches, decoded while the networks work on earlier batches."""
        size = GPU_BATCH_TILES if self._device == "cuda" else BATCH_TILES
        with ThreadPoolExecutor(self._threads) as pool:
            ahead: deque[tuple[Int64Array, Future[RgbArray]]] = deque()
            waiting = [rows[at : at + size] for at in range(0, len(rows), size)][::-1]
            while waiting or ahead:
                while waiting and len(ahead) <= self._threads:
                    places = waiting.pop()
                    ahead.append((places, pool.submit(_decoded, shard, places)))
                places, future = ahead.popleft()
                yield places, future.result()


def _opened_slides(
    store: Store, unit: Unit
) -> Iterator[tuple[Row, Int64Array, Int64Array, ShardReader]]:
    """Yield each slide with its keys, the places of its chosen tiles, and its open shard.

    The next slide is opened, and fetched from a bucket, while the caller works on this one.
    """
    with ThreadPoolExecutor(1) as opener:
        waiting = list(unit.slides)[::-1]
        opened = opener.submit(_opened_slide, store, unit, waiting.pop()) if waiting else None
        while opened is not None:
            slide = opened.result()
            opened = opener.submit(_opened_slide, store, unit, waiting.pop()) if waiting else None
            with slide[-1]:
                yield slide


def _opened_slide(
    store: Store, unit: Unit, row: Row
) -> tuple[Row, Int64Array, Int64Array, ShardReader]:
    """Open a slide's shard, and compare it with the rows of its tiles.

    Raises:
        DamageError: the shard is gone, damaged or replaced.
        SlideError: the shard holds other tiles.
    """
    # Features of damaged pixels would be wrong for good, under a checksum of their own.
    check_shard(store, row)
    ids, rows = _chosen_tiles(store, unit, row)
    shard = ShardReader.of(store, row)
    if not np.array_equal(shard.tile_id, ids):
        shard.close()
        msg = f"shard {row['shard']} does not hold the tiles of slide {row['slide_id']}"
        raise SlideError(msg)
    if len(rows) > FETCHED_SHARE * len(ids):
        with contextlib.suppress(DiskFullError):  # tiles are then read where they lie
            shard.fetch()
    return row, ids, rows, shard


def _chosen_tiles(store: Store, unit: Unit, row: Row) -> tuple[Int64Array, Int64Array]:
    """Return the keys of a slide's tiles, and the places of the chosen ones among them."""
    slide, where = row["slide"], row.get("where", unit.choice.where)
    ids = keys_in(store, unit.mpp, unit.fragment, slide)
    is_chosen = np.ones(len(ids), bool)
    if where is not None:
        is_chosen = np.isin(ids, keys_in(store, unit.mpp, unit.fragment, slide, where))
    if unit.choice.share is not None:
        is_chosen &= in_share(ids, unit.choice.share)
    return ids, np.flatnonzero(is_chosen)


def _decoded(shard: ShardReader, places: Int64Array) -> RgbArray:
    return np.stack([decode_tile(jpeg) for jpeg in shard.jpegs(shard.tile_id[places])])


def _start(
    work: Sequence[tuple["Encoder", list[Output]]], tiles: RgbArray, tile_id: Int64Array
) -> list["RunningBatch"]:
    """Start all networks on some tiles."""
    stained: dict[int | None, RgbArray] = {None: tiles}
    started = []
    for encoder, outputs in work:
        stain = outputs[0].stain
        if stain is not None and stain not in stained:
            stained[stain] = stain_variant(tiles, tile_id, stain)
        started.append(encoder.start(stained[stain], tile_id, outputs))
    return started


def _put(
    writers: dict[str, ColumnWriter],
    row: Row,
    ids: Int64Array,
    outcome: Outcome,
    threads: int,
    places: Int64Array,
    started: Sequence["RunningBatch"],
) -> None:
    """Write the features of some tiles of a slide; tiles between them were not chosen."""
    runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) != 1) + 1)
    for batch in started:
        embeddings = batch.result()
        for name, values in embeddings.items():
            writer = writers[name]
            outcome.seconds[name] += batch.seconds / threads / len(embeddings)
            for run in runs:
                written = writer.rows - row["row_start"]
                writer.absent(row["slide"], int(places[run[0]]) - written)
                writer.add(row["slide"], ids[places[run]], values[run])
