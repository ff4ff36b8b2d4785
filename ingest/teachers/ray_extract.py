"""Teachers over tiles as a Ray job: each shard is read once, decoded once, and seen by all.

The unit of work is a run of rows of a fragment of a features table: an actor reads its slides'
shards, runs the teachers that the fragment lacks, and writes one file per teacher. A fragment that
was shared out is joined by a worker, and committed as one file. Embeddings never travel through
Ray's object store (4-6 times slower than a file written where they are made, measured).
"""

import contextlib
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Self

from cluster import (
    ClusterError,
    JobWatch,
    Placement,
    WorkerSettings,
    announced,
    chosen_device,
    joins_cluster,
    local_workers,
    machine_shapes,
    node_shapes,
    noted_nodes,
    place,
    progress,
    ray_session,
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
from featurestore.tables import PENDING, READY, parts_in
from ingest.estimate.extract_record import keep_rates
from ingest.teachers.cards.card import Engine, Precision
from ingest.teachers.column_maker import ColumnMaker, MadeColumn
from ingest.teachers.extract_here import outcomes_here
from ingest.teachers.extract_plan import choose_tiles, plan, sized_for
from ingest.teachers.find_teacher import Teacher, find_teachers
from ingest.teachers.ray_workers import WorkerPool
from ingest.teachers.views.chosen_views import choose_views
from ingest.teachers.views.field_of_view import FovMode
from ingest.teachers.work.unit_queue import SIZES, UnitQueue
from ingest.teachers.work.units import Outcome, Unit, tiles_between

COMMIT_FRAGMENTS = 16
COMMIT_S = 15.0
#: Tiles up to which an extract on one machine's CPUs starts no Ray: that takes 10-20 s.
HERE_TILES = 5000


@dataclass(kw_only=True, repr=False)
class ExtractResult(Shown):
    """The outcome of an extract.

    Attributes:
        teachers: by column: tiles, seconds in which its network ran, tiles_per_s of wall time, and
            stall, the share of the workers' time without a running network (waits, writes); where a
            field of view was put together, `filled` and `left_out`, the tiles of whose field a
            part was filled with background, and those that are NaN for the size of this part.
        failed: failed slides with their mpp and the reason.
        seconds: seconds that the whole run took.
        ready: number of slides that have been cut, and so have tiles to run on.
        pending: number of slides that an ingest has not cut yet: they have no features.
        freed: the versions and files that an automatic vacuum removed.
        workers: the workers that ran the encoders; None if there was nothing to run.
        notes: lines on fields of view that are not the row's tile, and on mpps without a field.

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
    notes: list[str] = field(default_factory=list)

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


# With thirteen parameters: the public function names every setting that users change.
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
    fov: FovMode | None = None,
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
        fov: field of view of new columns. None: the row's tile where it is about the card's field,
            else that field from finer tiles or a crop. "exact": the card's field to the pixel.
            "nearest": the row's tile where its mpp does not have the card's field.
        address: a Ray cluster; a local Ray is started if None.
        workers: device and size of the workers; precision and engine follow the device.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.
        column_makers: makers of columns from other columns; they run one after the other, and use
            `mpps`, `address` and `workers` of the arguments above.

    Raises:
        ClusterError: no node of the cluster holds such a worker.
        FieldError: an mpp does not have the field of view of a teacher; without `mpps`, none does.
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
        views = choose_views(lake, networks, chosen, fov, skip=mpps is None)
        outcomes.notes += views.notes
        planned = partial(
            plan,
            lake,
            networks,
            chosen,
            choice=choice,
            precision=precision,
            engine=engine,
            chosen=views,
        )
        _run_encoders(lake, networks, planned, outcomes, address, workers)
        outcomes.seconds = round(time.perf_counter() - start, 3)
    for name, maker in made_by.items():
        made = maker.make(lake_uri, name, mpps=mpps, address=address, workers=workers)
        outcomes.add_made(name, made)
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
            stack.enter_context(ray_session(address=address, ray_data=False))
            shapes = node_shapes()
        device = chosen_device(workers, shapes)
        units = planned(device=device)
        if not units:
            return
        stack.enter_context(writer_lease(lake.store, f"extract of {', '.join(columns)}"))
        tiles = sum(unit.tiles for unit in units)
        as_usual = workers == WorkerSettings(device=workers.device) and local_workers(address)
        in_process = bool(as_usual) and device == "cpu" and tiles <= HERE_TILES
        if in_process:
            outcomes.workers = place(replace(workers, workers=1), shapes, most=1)
        else:
            stack.enter_context(ray_session(address=address, ray_data=False))
            shapes = node_shapes()
            most = max(1, tiles // SIZES[device].least)
            sized = sized_for(workers, shapes, device, most=most)
            outcomes.workers = place(sized, shapes, most=most)
            if outcomes.workers.device != device:  # columns say how they are computed
                msg = (
                    f"this machine has devices for {device}, but Ray has workers on "
                    f"{outcomes.workers.device}; give --device cpu or --device cuda"
                )
                raise ClusterError(msg)
            stack.enter_context(announced(outcomes.workers))
        tasks = UnitQueue(
            units,
            parts_in(lake.store),
            workers=outcomes.workers.workers,
            sizes=SIZES[device],
        )
        grows = workers.workers is None
        _run(
            lake,
            teachers,
            tasks,
            outcomes,
            _Runner(workers=outcomes.workers, in_process=in_process, grows=grows),
        )
        keep_rates(lake.store, outcomes.teachers, outcomes.workers)


@dataclass(frozen=True, kw_only=True)
class _Runner:
    """The workers of an extract: threads of this process, or actors of a Ray."""

    workers: Placement
    in_process: bool
    grows: bool

    def outcomes(
        self,
        store: Store,
        teachers: Sequence[Teacher],
        tasks: UnitQueue,
        note: Callable[[str], None],
    ) -> Generator[Outcome]:
        """Run all units of a queue; yield the outcomes as they come."""
        if self.in_process:
            return outcomes_here(store, teachers, tasks, threads=self.workers.threads)
        settings = {
            "teachers": pickle.dumps(list(teachers)),
            "store": store.uri,
            "threads": self.workers.threads,
            "device": self.workers.device,
        }
        pool = WorkerPool(settings, self.workers, grows=self.grows, note=note)
        return pool.outcomes(tasks)


def _run(
    lake: Lake,
    teachers: Sequence[Teacher],
    tasks: UnitQueue,
    outcomes: ExtractResult,
    runner: _Runner,
) -> None:
    start = time.perf_counter()
    failed: set[tuple[float, int]] = set()
    with (
        progress(
            "extract", total=tasks.features, unit="tile features", initial=tasks.reused
        ) as bar,
        _Commits(lake, watch := JobWatch("extract", lake.uri, bar)) as commits,
        contextlib.ExitStack() as stack,
    ):
        bar.note("in this process, without Ray" if runner.in_process else str(runner.workers))
        if tasks.reused:
            bar.note(f"{tasks.reused:,} tile features of an earlier run are there already")
        if not runner.in_process:
            stack.enter_context(noted_nodes(bar.note, runner.workers))
        outcomes_now = stack.enter_context(
            contextlib.closing(runner.outcomes(lake.store, teachers, tasks, bar.note))
        )
        for outcome in outcomes_now:
            if outcome.damaged is not None:
                bar.note(f"fragment {outcome.unit.fragment}: a part was damaged, and is made again")
                continue
            if outcome.no_keys:  # all units that come to this machine would fail, and fast
                commits.flush()
                raise BucketError(outcome.reason)
            _count(outcome, outcomes)
            if not outcome.is_join:
                bar.advance(outcome.unit.tiles * len(outcome.unit.fields))
                _watch(outcome, watch)
            place = (outcome.unit.mpp, outcome.unit.fragment)
            if outcome.reason and place not in failed:
                failed.add(place)
                _fail(tasks.whole(outcome.unit), outcome.reason, outcomes)
                for row in tasks.whole(outcome.unit).slides:
                    watch.slide(row["slide_id"], reason=outcome.reason, mpp=outcome.unit.mpp)
                bar.note(f"fragment {outcome.unit.fragment} failed: {outcome.reason}")
            commits.add(outcome)
    for counts in outcomes.teachers.values():
        wall, busy = counts.pop("wall", 0.0), counts.pop("busy", 0.0)
        counts["stall"] = round(max(0.0, 1 - busy / wall), 4) if wall else 0.0
        counts["tiles_per_s"] = round(counts["tiles"] / (time.perf_counter() - start), 1)


class _Commits:
    """Commits of finished columns, one at a time, beside the work; slow ones become larger."""

    def __init__(self, lake: Lake, watch: JobWatch) -> None:
        self._lake, self._watch = lake, watch
        self._files: dict[float, list[ColumnFile]] = defaultdict(list)
        self._parts: list[str] = []
        self._since = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._running: Future[None] | None = None

    def add(self, outcome: Outcome) -> None:
        """Add the files of an outcome, and commit when enough of them or enough time has gathered.

        Raises:
            LakeError: an earlier commit failed.
        """
        self._files[outcome.unit.mpp] += outcome.files
        self._parts += outcome.joined
        if self._running is not None:
            if not self._running.done():
                return
            self._running.result()
            self._running = None
        files = sum(len(files_waiting) for files_waiting in self._files.values())
        if files and (files >= COMMIT_FRAGMENTS or time.monotonic() - self._since > COMMIT_S):
            self._begin()

    def _begin(self) -> Future[None]:
        files = {mpp: some for mpp, some in self._files.items() if some}
        self._running = self._thread.submit(_commit, self._lake, files, self._parts, self._watch)
        self._files, self._parts = defaultdict(list), []
        self._since = time.monotonic()
        return self._running

    def flush(self) -> None:
        """Commit all files that wait, and wait for it."""
        if self._running is not None:
            self._running.result()
        if any(self._files.values()):
            self._begin().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Commit what is left, unless the work was stopped; a commit that runs comes to its end."""
        try:
            if kind is None:
                self.flush()
        finally:
            self._thread.shutdown()


def _commit(
    lake: Lake, files: dict[float, list[ColumnFile]], parts: Sequence[str], watch: JobWatch
) -> None:
    """Commit columns, and remove the parts that they were joined from."""
    with watch.commit(files=sum(map(len, files.values()))):
        lake.committer.commit_columns_of(files)
    if parts:
        lake.store.remove(parts)


def _fail(whole: Unit, reason: str, outcomes: ExtractResult) -> None:
    """Note a fragment that failed: all its slides lack the columns."""
    slides = ", ".join(row["slide_id"] for row in whole.slides)
    outcomes.failed.append({"slide": slides, "mpp": str(whole.mpp), "reason": reason})


def _watch(outcome: Outcome, watch: JobWatch) -> None:
    """Note the slides that end in a unit, and the time in which its networks had no tiles."""
    unit = outcome.unit
    if outcome.reason:
        return
    for row in unit.slides:
        features = tiles_between((row,), unit.first, unit.end) * len(unit.fields)
        if row["row_start"] + row["tiles"] <= unit.end:
            watch.slide(row["slide_id"], mpp=unit.mpp, tile_features=features)
        else:
            watch.features(features)
    watch.waited("data", outcome.wall_s - sum(outcome.seconds.values()))


def _count(outcome: Outcome, outcomes: ExtractResult) -> None:
    """Add the tiles and the seconds of a unit."""
    for name, seconds in ({} if outcome.reason else outcome.seconds).items():
        if name not in outcomes.teachers:  # a column of shares, beside the teacher's own
            continue
        counts = outcomes.teachers[name]
        counts["tiles"] += outcome.tiles
        counts["seconds"] = round(counts["seconds"] + seconds, 3)
        counts["wall"] = counts.get("wall", 0.0) + outcome.wall_s
        counts["busy"] = counts.get("busy", 0.0) + sum(outcome.seconds.values())
        if name in outcome.filled:
            counts["filled"] = counts.get("filled", 0) + outcome.filled[name]
            counts["left_out"] = counts.get("left_out", 0) + outcome.left_out[name]
