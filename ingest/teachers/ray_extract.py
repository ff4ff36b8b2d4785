"""Teachers over tiles as a Ray Data job: each shard is read once, decoded once, and seen by all.

The unit of work is a fragment of a features table: an actor reads its slides' shards, runs the
teachers that the fragment lacks, and writes one file per teacher. Embeddings never travel through
Ray's object store (4-6 times slower than a file written where they are made, measured).
"""

import contextlib
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from cluster import progress, ray_session, schedulable
from featurestore import (
    ColumnFile,
    Lake,
    LakeError,
    Store,
    Vacuumed,
    free_old_versions,
    open_lake,
)
from featurestore.annotations import Where, slides_of
from featurestore.storage import writer_lease
from featurestore.tables import (
    PENDING,
    READY,
    TILE_COLUMNS,
    features_table,
    identity_of,
    open_table,
)
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.extractor import Choice, Extractor, Outcome, Unit
from ingest.teachers.find_teacher import Teacher, find_teachers
from ingest.teachers.weights.weights_files import has_onnx

COMMIT_FRAGMENTS = 16
COMMIT_S = 15.0
ONNX_TILES = 5000


@dataclass(kw_only=True)
class ExtractResult:
    """What an extract did.

    Attributes:
        teachers: by column: tiles, seconds in which its network ran, tiles_per_s of wall time, and
            stall, the share of the workers' time in which none ran: waiting for tiles, writing.
        failed: slides with their mpp and the reason.
        seconds: of all of it.
        ready: slides that have been cut, and so have tiles to run on.
        pending: slides that an ingest has not cut yet: they have no features.
        freed: what an automatic vacuum removed.
    """

    teachers: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    ready: int = 0
    pending: int = 0
    freed: Vacuumed | None = None

    @property
    def did_nothing(self) -> bool:
        """Whether no tile was computed though slides are missing: none is ready, or some wait."""
        return not any(counts["tiles"] for counts in self.teachers.values()) and (
            self.pending > 0 or not self.ready
        )


def count_slides(lake: Lake, result: ExtractResult) -> None:
    """Write down how many slides are ready, and how many wait."""
    states = dict(lake.slides().group_by("state").len().collect().iter_rows())
    result.ready, result.pending = states.get(READY, 0), states.get(PENDING, 0)


def extract(
    lake_uri: str,
    teachers: Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    weights: str | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
    where: str | None = None,
    share: float | None = None,
    address: str | None = None,
    auto_vacuum: bool = False,
) -> ExtractResult:
    """Run teachers on every tile that lacks their features.

    Args:
        lake_uri: the lake.
        teachers: names as in `ingest.teachers.outputs`, of cards or of students in the lake, or
            paths of users' own encoders.
        mpps: where to run them; everywhere if None.
        weights: a folder in which weights are looked for first, on each machine.
        precision: of new columns. None: float32 on CPUs, the card's own on GPUs; columns that are
            there go on in theirs.
        engine: of new columns. None: ONNX Runtime for convolutional networks on CPUs where it is
            installed and there are 5,000 tiles or more (an export takes 10-20 s), else torch.
        where: a predicate on the tiles' columns; those it does not hold for get NaN.
        share: of the tiles, drawn by their keys; the others get NaN.
        address: a Ray cluster; a local Ray is started if None.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.

    Raises:
        LakeError: `where` is no predicate on the tiles' columns.
        TeacherError: a teacher is not known or its weights are not here.
        IdentityError: a column of that name holds another encoder's features.
    """
    start = time.perf_counter()
    lake = open_lake(lake_uri)
    chosen = [lake.known_mpp(mpp) for mpp in mpps or lake.config.mpps]
    choice = _choice(lake, chosen, where, share)
    found = find_teachers(lake.store, list(dict.fromkeys(teachers)), folder=weights)
    columns = [output.column for teacher in found for output in teacher.outputs]
    result = ExtractResult(
        teachers={name: {"tiles": 0, "seconds": 0.0, "stall": 0.0} for name in columns}
    )
    with contextlib.ExitStack() as stack:
        if address is not None:
            stack.enter_context(ray_session(address=address))
        units = plan(
            lake,
            found,
            chosen,
            choice=choice,
            precision=precision,
            engine=engine,
            gpus=_gpus(address),
        )
        if units:
            stack.enter_context(writer_lease(lake.store, f"extract of {', '.join(columns)}"))
            if address is None:
                stack.enter_context(ray_session())
            _run(lake, found, units, result)
    if auto_vacuum:
        result.freed = free_old_versions(lake)
    result.seconds = round(time.perf_counter() - start, 3)
    return result


def _choice(lake: Lake, mpps: Sequence[float], where: str | None, share: float | None) -> Choice:
    if share is not None and not 0 < share <= 1:
        msg = f"share {share} given; it is more than 0, and 1 at most"
        raise LakeError(msg)
    if where is None:
        return Choice(share=share)
    predicate = Where(lake, where)
    sample = next(slides_of(lake), ("", None))
    for mpp in mpps:
        table = open_table(lake.store, features_table(mpp))
        try:
            table.scanner(columns=["tile_id"], filter=predicate.of(*sample), limit=1).to_table()
        except (ValueError, OSError) as error:
            what = str(error).partition("\n")[0]
            names = ", ".join((*TILE_COLUMNS, *lake.annotations()))
            msg = f"--where {where!r} can't be asked of tiles ({names}): {what}"
            raise LakeError(msg) from error
    return Choice(where=where, share=share, marks=predicate.marks)


def _gpus(address: str | None) -> int:
    """GPUs of the cluster, or of this machine."""
    if address is not None:
        import ray

        return int(ray.cluster_resources().get("GPU", 0))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return 0 if hidden else len(list(Path("/dev").glob("nvidia[0-9]*")))


def plan(
    lake: Lake,
    teachers: Sequence[Teacher],
    mpps: Sequence[float],
    *,
    choice: Choice = Choice(),  # noqa: B008 - it is frozen
    precision: Precision | None = None,
    engine: Engine | None = None,
    gpus: int = 0,
) -> list[Unit]:
    """The fragments that lack features of these teachers, largest first.

    The teachers' columns are made, empty, where they are not there yet.

    Args:
        lake: to be filled.
        teachers: what is asked.
        mpps: where.
        choice: on which tiles.
        precision: of new columns; None for the cards' own if there are GPUs.
        engine: of new columns; None for the faster one.
        gpus: how many there are.

    Raises:
        IdentityError: a column of that name holds another encoder's features.
    """
    lake.committer.recover()
    units: list[Unit] = []
    tiles = sum(int(lake.tiles_of(mpp=mpp)["tiles"].sum()) for mpp in mpps)
    for mpp in mpps:
        there = open_table(lake.store, features_table(mpp)).schema
        fields = {}
        for teacher in teachers:
            usual: Precision = teacher.card.precision if gpus else "float32"
            faster = _engine(teacher, tiles) if not gpus and precision in (None, usual) else "torch"
            for output in teacher.outputs:
                name = output.column
                known = identity_of(there.field(name)) if name in there.names else {}
                how = precision or known.get("precision") or usual
                by = engine or (known.get("engine", "torch") if known else faster)
                identity = {**teacher.identity(output, how, by), **choice.identity()}
                fields[name] = lake.committer.add_teacher(mpp, name, output.dim, identity)
        units += _units(lake.refreshed(), mpp, fields, choice)
    return sorted(units, key=lambda unit: -unit.tiles)


def _engine(teacher: Teacher, tiles: int) -> Engine:
    """What runs a network faster on a CPU; with transformers none is clearly so (measured)."""
    convolutional = teacher.card.grid is None or teacher.card.maps
    pooled = {output.what for output in teacher.outputs} <= set(teacher.card.poolings)
    faster = convolutional and pooled and teacher.source is None and tiles >= ONNX_TILES
    return "onnxruntime" if faster and has_onnx() else "torch"


def _units(lake: Lake, mpp: float, fields: dict[str, pa.Field], choice: Choice) -> Iterator[Unit]:
    table = open_table(lake.store, features_table(mpp))
    done = {name: set(lake.features_of(name, mpp=mpp)["slide"]) for name in fields}
    slides = defaultdict(list)
    where = None if choice.where is None else Where(lake, choice.where)
    patients = dict(slides_of(lake)) if where is not None and where.marks else {}
    # Features that were imported have no pixels to run a teacher on.
    with_pixels = lake.tiles_of(mpp=mpp).drop_nulls("shard").sort("row_start")
    for row in with_pixels.iter_rows(named=True):
        if where is not None:
            row["where"] = where.of(row["slide_id"], patients.get(row["slide_id"]))
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
                choice=choice,
            )


def _run(
    lake: Lake, teachers: Sequence[Teacher], units: Sequence[Unit], result: ExtractResult
) -> None:
    start = time.perf_counter()
    total = sum(unit.tiles * len(unit.fields) for unit in units)
    waiting: dict[float, list[ColumnFile]] = defaultdict(list)
    since = time.monotonic()
    with progress("extract", total=total, unit="tile features") as bar:
        for outcome in _outcomes(lake.store, teachers, units):
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
    for counts in result.teachers.values():
        wall, busy = counts.pop("wall", 0.0), counts.pop("busy", 0.0)
        counts["stall"] = round(max(0.0, 1 - busy / wall), 4) if wall else 0.0
        counts["tiles_per_s"] = round(counts["tiles"] / (time.perf_counter() - start), 1)


def _commit(lake: Lake, waiting: dict[float, list[ColumnFile]]) -> None:
    if any(waiting.values()):
        lake.committer.commit_columns_of(waiting)
    waiting.clear()


def _count(outcome: Outcome, result: ExtractResult) -> None:
    unit = outcome.unit
    if outcome.reason:
        slides = ", ".join(row["slide_id"] for row in unit.slides)
        result.failed.append({"slide": slides, "mpp": str(unit.mpp), "reason": outcome.reason})
        return
    for name, seconds in outcome.seconds.items():
        counts = result.teachers[name]
        counts["tiles"] += outcome.tiles
        counts["seconds"] = round(counts["seconds"] + seconds, 3)
        counts["wall"] = counts.get("wall", 0.0) + outcome.wall_s
        counts["busy"] = counts.get("busy", 0.0) + sum(outcome.seconds.values())


def _outcomes(
    store: Store, teachers: Sequence[Teacher], units: Sequence[Unit]
) -> Iterator[Outcome]:
    import ray
    import ray.data

    resources = ray.cluster_resources()
    cpus, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    actors = min(len(units), gpus or cpus)
    given = {
        "teachers": pickle.dumps(list(teachers)),
        "store": store.uri,
        "threads": cpus // actors,
        "gpu": bool(gpus),
    }
    items = [{"unit": pickle.dumps(unit), **given} for unit in units]
    # A pool that takes every CPU leaves none for the tasks that feed it, and hangs.
    share = {"num_cpus": 0.9 * cpus / actors, "num_gpus": 1 if gpus else 0}
    outcomes = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Extractor, compute=ray.data.ActorPoolStrategy(size=actors), **share
    )
    with schedulable(**share):
        for row in outcomes.iter_rows():
            yield pickle.loads(row["outcome"])
