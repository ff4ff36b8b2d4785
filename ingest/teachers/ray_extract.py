"""Teachers over tiles as a Ray Data job: each shard is read once, decoded once, and seen by all.

The unit of work is a fragment of a features table: an actor reads its slides' shards, runs the
teachers that the fragment lacks, and writes one file per teacher. Embeddings never travel through
Ray's object store (4-6 times slower than a file written where they are made, measured).
"""

import contextlib
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from cluster import (
    ClusterError,
    Placement,
    WorkerSettings,
    announced,
    chosen_device,
    joins_cluster,
    machine_shapes,
    node_shapes,
    noted_nodes,
    place,
    progress,
    ray_session,
    schedulable,
)
from featurestore import (
    BucketError,
    ColumnFile,
    Lake,
    Shown,
    Store,
    Vacuumed,
    free_old_versions,
    open_lake,
)
from featurestore.storage import writer_lease
from featurestore.tables import PENDING, READY
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.column_maker import ColumnMaker, MadeColumn
from ingest.teachers.extract_plan import choose_tiles, plan
from ingest.teachers.extractor import Extractor, Outcome, Unit
from ingest.teachers.find_teacher import Teacher, find_teachers

COMMIT_FRAGMENTS = 16
COMMIT_S = 15.0


@dataclass(kw_only=True, repr=False)
class ExtractResult(Shown):
    """The outcome of an extract.

    Attributes:
        teachers: by column: tiles, seconds in which its network ran, tiles_per_s of wall time, and
            stall, the share of the workers' time without a running network (waits, writes).
        failed: failed slides with their mpp and the reason.
        seconds: seconds that the whole run took.
        ready: number of slides that have been cut, and so have tiles to run on.
        pending: number of slides that an ingest has not cut yet: they have no features.
        freed: the versions and files that an automatic vacuum removed.
        workers: the workers that ran the encoders; None if there was nothing to run.

    Examples:
        >>> outcome = sl.extract("my-lake", ["efficientnet_lite0"], mpps=[2.0])
        >>> outcome.ready, outcome.failed, outcome.teachers["efficientnet_lite0"]["tiles"]
        (13, [], 13)
    """

    teachers: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    ready: int = 0
    pending: int = 0
    freed: Vacuumed | None = None
    workers: Placement | None = None

    @property
    def did_nothing(self) -> bool:
        """Whether no tile was computed while slides are pending, or no slide is ready.

        Examples:
            >>> sl.ExtractResult(ready=3, pending=2).did_nothing
            True
        """
        return not any(counts["tiles"] for counts in self.teachers.values()) and (
            self.pending > 0 or not self.ready
        )

    def add_made(self, name: str, made: MadeColumn) -> None:
        """Add the counts of a column that was made from other columns."""
        self.seconds = round(self.seconds + made.seconds, 3)
        self.teachers[name] = {
            "tiles": made.tiles,
            "seconds": made.seconds,
            "stall": 0.0,
            "tiles_per_s": round(made.tiles / max(made.seconds, 1e-9), 1),
        }

    def count_slides(self, lake: Lake) -> None:
        """Count the ready slides and the pending slides of a lake."""
        states = dict(lake.slides().group_by("state").len().collect().iter_rows())
        self.ready, self.pending = states.get(READY, 0), states.get(PENDING, 0)


# With twelve parameters: the public function names every setting that users change.
def extract(
    lake_uri: str,
    teachers: str | Sequence[str],
    *,
    mpps: Sequence[float] | None = None,
    weights: str | None = None,
    precision: Precision | None = None,
    engine: Engine | None = None,
    where: str | None = None,
    share: float | None = None,
    address: str | None = None,
    workers: WorkerSettings = WorkerSettings(),  # noqa: B008 - it is frozen
    auto_vacuum: bool = False,
    column_makers: Sequence[ColumnMaker] = (),  # the last: the front door's, no user's
) -> ExtractResult:
    """Run teachers on every tile that lacks their features; students of features come last.

    Args:
        lake_uri: folder or URL of the lake.
        teachers: names as in `ingest.teachers.outputs`, of cards or of students in the lake, or
            paths of users' own encoders; and columns that one of `column_makers` makes.
        mpps: mpps to run them at; if None all, or a student of features' training mpps.
        weights: a folder in which weights are looked for first, on each machine.
        precision: precision of new columns. None: float32 on CPUs, the card's own on GPUs; columns
            that exist keep theirs.
        engine: engine of new columns. None: ONNX Runtime for convolutional networks on CPUs where
            it is installed and there are 5,000 tiles or more (an export takes 10-20 s), else torch.
        where: a predicate on the tiles' columns; tiles for which it does not hold get NaN.
        share: share of the tiles, drawn by their keys; the others get NaN.
        address: a Ray cluster; a local Ray is started if None.
        workers: device and size of the workers; precision and engine follow the device.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.
        column_makers: makers of columns from other columns; they run in this process, one column
            after the other, and use `mpps` alone of the arguments above.

    Raises:
        ClusterError: no node of the cluster holds such a worker.
        LakeError: `where` is no predicate on the tiles' columns.
        TeacherError: a teacher is not known or its weights are missing.
        IdentityError: a column of that name holds another encoder's features.
    """
    lake = open_lake(lake_uri)
    teachers = [teachers] if isinstance(teachers, str) else teachers
    made_by = {
        name: maker for name in teachers for maker in column_makers if maker.makes(lake.store, name)
    }
    encoders = [name for name in dict.fromkeys(teachers) if name not in made_by]
    outcomes = ExtractResult()
    if encoders or not made_by:
        start = time.perf_counter()
        chosen = [lake.known_mpp(mpp) for mpp in mpps or lake.config.mpps]
        choice = choose_tiles(lake, chosen, where, share)
        networks = find_teachers(lake.store, encoders, folder=weights)
        planned = partial(
            plan, lake, networks, chosen, choice=choice, precision=precision, engine=engine
        )
        _run_encoders(lake, networks, planned, outcomes, address, workers)
        outcomes.seconds = round(time.perf_counter() - start, 3)
    for name, maker in made_by.items():
        outcomes.add_made(name, maker.make(lake_uri, name, mpps=mpps))
    outcomes.count_slides(lake)
    if auto_vacuum:
        outcomes.freed = free_old_versions(open_lake(lake_uri))
    return outcomes


def _run_encoders(
    lake: Lake,
    teachers: Sequence[Teacher],
    planned: Callable[..., list[Unit]],
    outcomes: ExtractResult,
    address: str | None,
    workers: WorkerSettings,
) -> None:
    """Plan for the device of the workers, and run the plan; an empty plan starts no Ray."""
    columns = [output.column for teacher in teachers for output in teacher.outputs]
    outcomes.teachers = {name: {"tiles": 0, "seconds": 0.0, "stall": 0.0} for name in columns}
    with contextlib.ExitStack() as stack:
        shapes = machine_shapes()
        if joins_cluster(address):
            stack.enter_context(ray_session(address=address))
            shapes = node_shapes()
        device = chosen_device(workers, shapes)
        units = planned(device=device)
        if units:
            stack.enter_context(writer_lease(lake.store, f"extract of {', '.join(columns)}"))
            stack.enter_context(ray_session(address=address))
            outcomes.workers = place(workers, node_shapes(), most=len(units))
            if outcomes.workers.device != device:  # columns say how they are computed
                msg = (
                    f"this machine has devices for {device}, but Ray has workers on "
                    f"{outcomes.workers.device}; give --device cpu or --device cuda"
                )
                raise ClusterError(msg)
            stack.enter_context(announced(outcomes.workers))
            _run(lake, teachers, units, outcomes, outcomes.workers)


def _run(
    lake: Lake,
    teachers: Sequence[Teacher],
    units: Sequence[Unit],
    outcomes: ExtractResult,
    workers: Placement,
) -> None:
    start = time.perf_counter()
    total = sum(unit.tiles * len(unit.fields) for unit in units)
    waiting: dict[float, list[ColumnFile]] = defaultdict(list)
    since = time.monotonic()
    with (
        progress("extract", total=total, unit="tile features") as bar,
        noted_nodes(bar.note, workers),
    ):
        bar.note(str(workers))
        for outcome in _outcomes(lake.store, teachers, units, workers):
            if outcome.no_keys:  # all units that come to this machine would fail, and fast
                _commit(lake, waiting)
                raise BucketError(outcome.reason)
            _count(outcome, outcomes)
            bar.advance(outcome.unit.tiles * len(outcome.unit.fields))
            if outcome.reason:
                bar.note(f"fragment {outcome.unit.fragment} failed: {outcome.reason}")
            waiting[outcome.unit.mpp] += outcome.files
            files = sum(len(files_waiting) for files_waiting in waiting.values())
            if files >= COMMIT_FRAGMENTS or time.monotonic() - since > COMMIT_S:
                _commit(lake, waiting)
                since = time.monotonic()
        _commit(lake, waiting)
    for counts in outcomes.teachers.values():
        wall, busy = counts.pop("wall", 0.0), counts.pop("busy", 0.0)
        counts["stall"] = round(max(0.0, 1 - busy / wall), 4) if wall else 0.0
        counts["tiles_per_s"] = round(counts["tiles"] / (time.perf_counter() - start), 1)


def _commit(lake: Lake, waiting: dict[float, list[ColumnFile]]) -> None:
    if any(waiting.values()):
        lake.committer.commit_columns_of(waiting)
    waiting.clear()


def _count(outcome: Outcome, outcomes: ExtractResult) -> None:
    unit = outcome.unit
    if outcome.reason:
        slides = ", ".join(row["slide_id"] for row in unit.slides)
        outcomes.failed.append({"slide": slides, "mpp": str(unit.mpp), "reason": outcome.reason})
        return
    for name, seconds in outcome.seconds.items():
        counts = outcomes.teachers[name]
        counts["tiles"] += outcome.tiles
        counts["seconds"] = round(counts["seconds"] + seconds, 3)
        counts["wall"] = counts.get("wall", 0.0) + outcome.wall_s
        counts["busy"] = counts.get("busy", 0.0) + sum(outcome.seconds.values())


def _outcomes(
    store: Store, teachers: Sequence[Teacher], units: Sequence[Unit], workers: Placement
) -> Iterator[Outcome]:
    import ray.data

    settings = {
        "teachers": pickle.dumps(list(teachers)),
        "store": store.uri,
        "threads": workers.threads,
        "device": workers.device,
    }
    task_rows = [{"unit": pickle.dumps(unit), **settings} for unit in units]
    # A pool that takes every CPU leaves none for the tasks that feed it, and hangs.
    share = {"num_cpus": 0.9 * workers.cpus_per_worker, "num_gpus": workers.gpus_per_worker}
    outcomes = ray.data.from_items(task_rows, override_num_blocks=len(task_rows)).map(
        Extractor, compute=ray.data.ActorPoolStrategy(size=workers.workers), **share
    )
    with schedulable(**share):
        for row in outcomes.iter_rows():
            yield pickle.loads(row["outcome"])
