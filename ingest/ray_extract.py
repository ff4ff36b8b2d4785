"""Teachers over tiles as a Ray Data job: each shard is read once, decoded once, and seen by all.

The unit of work is a fragment of a features table: an actor reads its slides' shards, runs the
teachers that the fragment lacks, and writes one file per teacher. Embeddings never travel through
Ray's object store (4-6 times slower than a file written where they are made, measured).
"""

import pickle
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster import progress, ray_session
from featurestore import ColumnFile, ColumnWriter, Lake, ShardReader, Store, open_lake
from featurestore.lance_tables import open_table
from featurestore.lock import writer_lease
from featurestore.schema import features_table
from ingest.errors import SlideError
from ingest.teachers import load_teacher, teacher_identity

if TYPE_CHECKING:
    from ingest.encoder import TimmEncoder

BATCH_TILES = 32
COMMIT_FRAGMENTS = 16
COMMIT_S = 15.0

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A fragment to run teachers on, with the catalog rows of the slides in it."""

    mpp: float
    fragment: int
    fields: tuple[pa.Field, ...]
    slides: tuple[Row, ...]
    rows: int

    @property
    def tiles(self) -> int:
        """Rows of the fragment."""
        return sum(int(row["tiles"]) for row in self.slides)


@dataclass(kw_only=True)
class Outcome:
    """What became of a unit: its files, or the reason why there are none."""

    unit: Unit
    files: list[ColumnFile] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    decode_s: float = 0.0
    reason: str | None = None


@dataclass(kw_only=True)
class ExtractResult:
    """What an extract did: per teacher tiles, seconds of computing, share of time decoding."""

    teachers: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0


def extract(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    address: str | None = None,
) -> ExtractResult:
    """Run teachers on every tile that lacks their features.

    Args:
        lake_uri: the lake.
        teachers: names of cards, or of students in the lake.
        mpps: where to run them; everywhere if None.
        address: a Ray cluster; a local Ray is started if None.

    Raises:
        TeacherError: a teacher is not known or its weights are not here.
        IdentityError: a column of that name holds another encoder's features.
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri)
    chosen = [lake.known_mpp(mpp) for mpp in mpps or lake.config.mpps]
    units = plan(lake, list(dict.fromkeys(teachers)), chosen)
    result = ExtractResult(
        teachers={name: {"tiles": 0, "seconds": 0.0, "stall": 0.0} for name in teachers}
    )
    if units:
        what = f"extract of {', '.join(teachers)}"
        with writer_lease(lake.store, what), ray_session(address=address):
            _run(lake, units, result)
    result.seconds = round(time.perf_counter() - start, 3)
    return result


def plan(lake: Lake, teachers: Sequence[str], mpps: Sequence[float]) -> list[Unit]:
    """The fragments that lack features of these teachers, largest first.

    The teachers' columns are made, empty, where they are not there yet.
    """
    known = {name: teacher_identity(lake.store, name) for name in teachers}
    lake.committer.recover()
    units: list[Unit] = []
    for mpp in mpps:
        fields = {
            name: lake.committer.add_teacher(mpp, name, card.dim, identity)
            for name, (card, identity) in known.items()
        }
        units += _units(lake.refreshed(), mpp, fields)
    return sorted(units, key=lambda unit: -unit.tiles)


def _units(lake: Lake, mpp: float, fields: dict[str, pa.Field]) -> Iterator[Unit]:
    table = open_table(lake.store, features_table(mpp))
    done = {name: set(lake.features_of(name, mpp=mpp)["slide"]) for name in fields}
    slides = defaultdict(list)
    # Features that were imported have no pixels to run a teacher on.
    with_pixels = lake.tiles_of(mpp=mpp).drop_nulls("shard").sort("row_start")
    for row in with_pixels.iter_rows(named=True):
        slides[row["fragment"]].append(row)
    for fragment in table.get_fragments():
        rows = slides.get(fragment.fragment_id, [])
        missing = [
            found
            for name, found in fields.items()
            if any(row["slide"] not in done[name] for row in rows)
        ]
        if missing:
            yield Unit(
                mpp=mpp,
                fragment=fragment.fragment_id,
                fields=tuple(missing),
                slides=tuple(rows),
                rows=fragment.physical_rows,
            )


class Extractor:
    """The actor: takes fragment after fragment, and loads each teacher once."""

    def __init__(self) -> None:
        self._encoders: dict[str, TimmEncoder] = {}

    def __call__(self, item: Row) -> Row:
        """Take one pickled unit and give back its pickled outcome."""
        unit: Unit = pickle.loads(item["unit"])
        self._store = Store(item["store"])
        outcome = Outcome(unit=unit)
        try:
            for name in (found.name for found in unit.fields):
                if name not in self._encoders:
                    threads = item["threads"]
                    self._encoders[name] = load_teacher(self._store, name, threads=threads)
            self._fill(outcome)
        except Exception as error:  # noqa: BLE001 - the other fragments go on
            outcome.files, outcome.reason = [], f"{type(error).__name__}: {error}"
        return {"outcome": pickle.dumps(outcome)}

    def _fill(self, outcome: Outcome) -> None:
        unit = outcome.unit
        writers = [ColumnWriter(self._store, unit.mpp, f, unit.fragment) for f in unit.fields]
        outcome.seconds = dict.fromkeys((f.name for f in unit.fields), 0.0)
        table = open_table(self._store, features_table(unit.mpp)).get_fragment(unit.fragment)
        for row in unit.slides:
            for writer in writers:
                writer.skip(row["row_start"] - writer.rows)
            # By number, not by place: rows of a slide that was scanned again may be deleted.
            where = f"slide = {row['slide']}"
            ids = table.scanner(columns=["tile_id"], filter=where).to_table()["tile_id"].to_numpy()
            for tile_id, tiles in self._batches(row, ids, outcome):
                for writer in writers:
                    at = time.perf_counter()
                    name = writer.field.name
                    writer.add(row["slide"], tile_id, self._encoders[name](tiles))
                    outcome.seconds[name] += time.perf_counter() - at
        for writer in writers:
            writer.skip(unit.rows - writer.rows)
        outcome.files = [writer.finish() for writer in writers]

    def _batches(
        self, row: Row, ids: npt.NDArray[np.int64], outcome: Outcome
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
        from ingest.encoder import decode

        with ShardReader(self._store, row["shard"]) as shard:
            if not np.array_equal(shard.tile_id, ids):
                msg = f"shard {row['shard']} does not hold the tiles of slide {row['slide_id']}"
                raise SlideError(msg)
            for start in range(0, len(ids), BATCH_TILES):
                at = time.perf_counter()
                stop = min(start + BATCH_TILES, len(ids))
                tiles = np.stack([decode(shard.jpeg(i)) for i in range(start, stop)])
                outcome.decode_s += time.perf_counter() - at
                yield ids[start:stop], tiles


def _run(lake: Lake, units: Sequence[Unit], result: ExtractResult) -> None:
    total = sum(unit.tiles * len(unit.fields) for unit in units)
    waiting: dict[float, list[ColumnFile]] = defaultdict(list)
    since = time.monotonic()
    with progress("extract", total=total, unit="tile features") as bar:
        for outcome in _outcomes(lake.store, units):
            _count(outcome, result)
            bar.advance(outcome.unit.tiles * len(outcome.unit.fields))
            if outcome.reason:
                bar.note(f"fragment {outcome.unit.fragment} failed: {outcome.reason}")
            waiting[outcome.unit.mpp] += outcome.files
            files = sum(len(found) for found in waiting.values())
            if files >= COMMIT_FRAGMENTS or time.monotonic() - since > COMMIT_S:
                _commit(lake, waiting)
                since = time.monotonic()
        _commit(lake, waiting)


def _commit(lake: Lake, waiting: dict[float, list[ColumnFile]]) -> None:
    for mpp, files in waiting.items():
        if files:
            lake.committer.commit_columns(mpp, files)
    waiting.clear()


def _count(outcome: Outcome, result: ExtractResult) -> None:
    unit = outcome.unit
    if outcome.reason:
        slides = ", ".join(row["slide_id"] for row in unit.slides)
        result.failed.append({"slide": slides, "mpp": str(unit.mpp), "reason": outcome.reason})
        return
    for name, seconds in outcome.seconds.items():
        counts = result.teachers[name]
        decode_s = counts["stall"] * counts["seconds"] + outcome.decode_s / len(unit.fields)
        counts["tiles"] += unit.tiles
        counts["seconds"] = round(counts["seconds"] + seconds, 3)
        counts["stall"] = round(decode_s / max(counts["seconds"], 1e-9), 4)


def _outcomes(store: Store, units: Sequence[Unit]) -> Iterator[Outcome]:
    import ray
    import ray.data

    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    actors = min(len(units), cpus)
    items = [
        {"unit": pickle.dumps(unit), "store": store.uri, "threads": cpus // actors}
        for unit in units
    ]
    outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Extractor,
        compute=ray.data.ActorPoolStrategy(size=actors),
        # A pool that takes every CPU leaves none for the tasks that feed it, and hangs.
        num_cpus=0.9 * cpus / actors,
    )
    for row in outcomes.iter_rows():
        yield pickle.loads(row["outcome"])
