"""Slides to tiles as a Ray Data job: one slide is the unit of work, one process commits.

Workers write shards and return rows; the driver commits a batch of slides whenever enough rows,
slides or time have gathered. A slide that fails is written down with its reason, and the others
go on. After a kill the next run takes the slides that no commit names.
"""

import pickle
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Unpack

import polars as pl

from cluster import (
    JobWatch,
    Placement,
    WorkerSettings,
    announced,
    counted,
    loaded_extensions,
    local_workers,
    node_shapes,
    noted_nodes,
    place,
    progress,
    ray_session,
    schedulable,
)
from featurestore import (
    BucketError,
    Lake,
    LakeConfig,
    Shown,
    SlideCut,
    Store,
    Vacuumed,
    create_lake,
    free_old_versions,
    mpp_name,
)
from featurestore.storage import DiskFullError, writer_lease
from featurestore.tables import CATALOG, count_tiles
from ingest.cut import failure
from ingest.cut_here import cut_here
from ingest.cut_waves import waves
from ingest.errors import SlideError
from ingest.isolated_cut import cut_apart
from ingest.pages.contact_sheet import NAME, write_contact_sheet
from ingest.remote.remote_files import is_local
from ingest.scores.fill_scores import keep_scores, unknown_scores
from ingest.select.known_files import known_files_at
from ingest.select.named_slides import IngestOptions, NamedSlides, Row, find_named_slides
from ingest.select.near_lake import refuse_folder_of_slides, refuse_near_lake
from ingest.select.slides_to_cut import Todo, sort_out

COMMIT_SLIDES = 64
COMMIT_ROWS = 250_000
COMMIT_S = 60.0
#: Where slides are cut faster than 64 in this time, more of them go into one commit.
LEAST_COMMIT_S, MOST_COMMIT_SLIDES = 10.0, 4096
FEW_SLIDES = 2000  # beyond, a table is read whole
SLIDE_TIMEOUT_S = 600.0
SLOWEST_BYTES_S = 1e6  # a slide may take so much longer


@dataclass(kw_only=True, repr=False)
class IngestResult(Shown):
    """The outcome of an ingest.

    Attributes:
        ready: number of named slides that have tiles.
        failed: every named slide that failed, now or earlier, with the reason.
        tiles: number of tiles of the whole lake, per mpp.
        seconds: seconds that the whole run took.
        readers: number of slides by the reader that read them.
        new: number of slides that were to be cut.
        replaced: slides that were scanned again; their earlier rows stay readable at earlier
            versions.
        again: slides whose file is the same and whose settings differ, with the differences.
        facts: number of slides for which a manifest has other facts than before.
        notes: sentences on what was left out or could be a mistake.
        scores: number of tiles that got a score which the lake keeps, by score.
        sheet: path of a page that shows all slides.
        freed: the versions and files that an automatic vacuum removed.

    Examples:
        >>> slides = [sl.sample_slide(), "labels.svs"]
        >>> outcome = sl.ingest("new-lake", slides, sl.LakeConfig(mpps=(1.0,)))
        >>> outcome.ready, outcome.tiles, [slide["slide"] for slide in outcome.failed]
        (1, {'1.0': 17}, ['labels'])
    """

    ready: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    tiles: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    readers: dict[str, int] = field(default_factory=dict)
    new: int = 0
    replaced: list[str] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)
    facts: int = 0
    notes: list[str] = field(default_factory=list)
    scores: dict[str, int] = field(default_factory=dict)
    sheet: str = ""
    freed: Vacuumed | None = None


# Long for its documentation: the public function of a whole stage.
def ingest(
    lake_uri: str,
    inputs: str | Sequence[str],
    config: LakeConfig,
    *,
    slide_timeout_s: float = SLIDE_TIMEOUT_S,
    commit_slides: int | None = None,
    address: str | None = None,
    auto_vacuum: bool = False,
    **options: Unpack[IngestOptions],
) -> IngestResult:
    """Cut slides into a lake, and make the lake if it is new; slides already in it are left alone.

    Args:
        lake_uri: folder or URL of the lake.
        inputs: files, folders, globs, CSV or Parquet manifests, URLs.
        config: settings of the lake; an existing lake's must be the same.
        slide_timeout_s: seconds, plus one for each MB, after which a slide is given up.
        commit_slides: number of slides in one commit; each commit is one fragment per mpp, which
            a teacher later computes or resumes as a whole. None: 64, or as many as are cut in ten
            seconds where that is more.
        address: a Ray cluster; a local Ray is started if None.
        auto_vacuum: whether old versions are freed in the end; see `free_old_versions`.
        **options: which slides to take, and how to find their tissue; see `IngestOptions`.

    Raises:
        LakeError: the lake exists with other settings.
        InputError: the inputs name no slide at all, or not those of `only`; or the folder of a new
            lake holds slides.

    Examples:
        >>> outcome = sl.ingest("new-lake", [sl.sample_slide()], sl.LakeConfig(mpps=(0.5, 2.0)))
        >>> outcome.ready, outcome.failed, outcome.tiles
        (1, [], {'0.5': 53, '2.0': 6})
        >>> again = sl.ingest("new-lake", [sl.sample_slide()], sl.LakeConfig(mpps=(0.5, 2.0)))
        >>> again.ready, again.new
        (1, 0)
    """
    start = time.perf_counter()
    named = find_named_slides(inputs, options, known_files=known_files_at(lake_uri))
    outcome = ingest_named_slides(
        lake_uri,
        named,
        config,
        options,
        slide_timeout_s=slide_timeout_s,
        commit_slides=commit_slides,
        address=address,
        auto_vacuum=auto_vacuum,
    )
    outcome.seconds = round(time.perf_counter() - start, 3)
    return outcome


def ingest_named_slides(
    lake_uri: str,
    named: NamedSlides,
    config: LakeConfig,
    options: IngestOptions,
    *,
    slide_timeout_s: float = SLIDE_TIMEOUT_S,
    commit_slides: int | None = None,
    address: str | None = None,
    auto_vacuum: bool = False,
) -> IngestResult:
    """Cut slides that `find_named_slides` has found; arguments and errors are those of `ingest`."""
    start = time.perf_counter()
    refuse_folder_of_slides(lake_uri)
    lake = create_lake(lake_uri, config)
    refuse_near_lake(lake, named.rows, distinct_ids=options.get("distinct_ids", False))
    rows = lake.committer.register(named.rows)
    todo = sort_out(rows, options, named.tissue_by)
    if todo.failed:
        lake.committer.fail(todo.failed)
    if updates := todo.updates:
        lake.committer.update_slides(updates)
    ready = [row["slide_id"] for row in todo.cut if row["state"] == "ready"]
    if todo.cut:
        purpose = f"ingest of {counted(len(todo.cut), 'slide')}"
        workers = local_workers(address, num_cpus=_share(todo.cut))
        session = nullcontext() if workers else ray_session(address=address)
        with writer_lease(lake.store, purpose), session:
            todo.stopped += _run(lake, todo, commit_slides, slide_timeout_s, workers)
    ingest_result = _result(lake.refreshed(), [row["slide_id"] for row in rows])
    ingest_result.failed += todo.stopped + named.stopped
    ingest_result.new, ingest_result.facts = len(todo.cut), len(todo.facts)
    ingest_result.notes = [*named.notes, *todo.notes("updated")]
    failed = {slide["slide"] for slide in ingest_result.failed}
    done = [name for name in ready if name not in failed]
    ingest_result.replaced = [name for name in done if name not in todo.again]
    ingest_result.again = {name: todo.again[name] for name in done if name in todo.again}
    ingest_result.scores = keep_scores(lake_uri).tiles
    if todo.cut and (note := unknown_scores(lake.refreshed())):
        ingest_result.notes.append(note)
    is_changed = todo.cut or todo.failed or todo.updates or ingest_result.scores
    ingest_result.sheet = _contact_sheet(lake.refreshed(), anew=bool(is_changed))
    if auto_vacuum:
        ingest_result.freed = free_old_versions(lake)
    ingest_result.seconds = round(time.perf_counter() - start, 3)
    return ingest_result


def _contact_sheet(lake: Lake, *, anew: bool) -> str:
    """Write the page of all slides, where something is new or it is not there; return its URI.

    It reads the tiles of up to 400 slides, from a bucket by a request or two each.
    """
    return write_contact_sheet(lake) if anew or not lake.exists(NAME) else lake.store.url(NAME)


def _run(
    lake: Lake, todo: Todo, commit_slides: int | None, slide_timeout_s: float, workers: int
) -> list[dict[str, str]]:
    """Cut and commit slides, on Ray or by `workers` processes of this machine.

    Returns:
        The slides that failed while their earlier tiles stay.
    """
    left = {row["slide_id"]: row for row in todo.cut}
    kept: list[dict[str, str]] = []
    work = float(sum(row["bytes"] or 0 for row in todo.cut))
    settings = (lake.store, lake.config, todo.cut, slide_timeout_s)
    with ExitStack() as stack:
        bar = stack.enter_context(progress("ingest", total=len(left), unit="slides", work=work))
        watch = JobWatch("ingest", lake.uri, bar)
        batch = _Batch(lake, commit_slides, watch)
        if workers:
            outcomes = cut_here(*settings, workers=workers)
        else:
            demand = _place(todo.cut)
            stack.enter_context(announced(demand))
            stack.enter_context(noted_nodes(bar.note, demand))
            outcomes = _outcomes(*settings, demand)
        for outcome in stack.enter_context(closing(outcomes)):
            if isinstance(outcome, SlideCut):
                left.pop(outcome.row["slide_id"])
                tiles = sum(grid.tiles.num_rows for grid in outcome.grids.values())
                size = outcome.row["bytes"] or 0
                bar.advance(1, work=size, tiles=tiles, bytes=size)
                watch.slide(
                    outcome.row["slide_id"],
                    seconds=outcome.row.get("seconds"),
                    tiles=tiles,
                    bytes=size,
                )
                if outcome.row["mpp_source"] == "objective":
                    bar.note(f"{outcome.row['slide_id']}: {_guess(outcome.row)}")
                if why := outcome.row.get("fallback"):
                    bar.note(f"{outcome.row['slide_id']}: read by openslide, since {why}")
                if notes := outcome.row.get("notes"):
                    bar.note(f"{outcome.row['slide_id']}: {notes}")
                batch.add(outcome)
            else:
                left.pop(outcome["slide_id"])
                if fault := _fault_of_a_machine(outcome):
                    batch.flush()
                    raise fault
                kept += batch.fail([outcome], todo.again)
                bar.advance(1, work=outcome["bytes"] or 0)
                watch.slide(outcome["slide_id"], reason=outcome["reason"])
                bar.note(f"{outcome['slide_id']} failed: {outcome['reason']}")
        reason = "the worker died on it (a crash in a decoder, or out of memory)"
        kept += batch.fail([{**row, "reason": reason} for row in left.values()], todo.again)
        batch.flush()
        for slide_id in left:
            watch.slide(slide_id, reason=reason)
    return kept


def _fault_of_a_machine(outcome: Row) -> Exception | None:
    """Return the error that is no fault of a slide, which stays to be cut; None if it is its own.

    All slides that come to such a machine would fail, and fast.
    """
    if outcome.get("disk_full"):
        return DiskFullError(outcome["reason"])
    return BucketError(outcome["reason"]) if outcome.get("no_keys") else None


def _place(todo: Sequence[Row]) -> Placement:
    """Return the workers that cut slides: one for each core, two where slides have to travel.

    Of these two, one fetches a slide while the other cuts.

    Raises:
        ClusterError: the cluster has no CPUs, and none are to come.
    """
    settings = WorkerSettings(device="cpu", cpus_per_worker=_share(todo))
    return place(settings, node_shapes(), most=len(todo))


def _guess(row: Row) -> str:
    return (
        f"it does not say its mpp; {row['mpp']:g} was taken from its objective of "
        f"{row['objective']:g}x, which may be 10 % off (mpp_source is 'objective' in `slides`)"
    )


def _stays(row: Row, again: Mapping[str, str]) -> str:
    if why := again.get(row["slide_id"]):
        return f"cutting it again ({why}) failed, its earlier tiles stay: {row['reason']}"
    return f"the new file failed, the earlier scan stays: {row['reason']}"


class _Batch:
    """Cut slides and failed slides that wait for their commit.

    A commit costs about 0.1 s whatever it holds. Slides that are cut by the hundred a second would
    wait for commits more than for anything else, and leave thousands of small fragments.
    """

    def __init__(self, lake: Lake, slides: int | None, watch: JobWatch) -> None:
        self._lake, self._watch = lake, watch
        self._slides = COMMIT_SLIDES if slides is None else slides
        self._least_s = LEAST_COMMIT_S if slides is None else 0.0
        self._cuts: list[SlideCut] = []
        self._failed: list[Row] = []
        self._rows = 0
        self._since = time.monotonic()

    def add(self, cut: SlideCut) -> None:
        self._cuts.append(cut)
        self._rows += next(iter(cut.grids.values())).tiles.num_rows
        self._flush_if_due()

    def fail(self, rows: Sequence[Row], again: Mapping[str, str]) -> list[dict[str, str]]:
        """Record failed slides; one that is ready from an earlier cut stays, and is returned."""
        self._failed += [row for row in rows if row["state"] != "ready"]
        self._flush_if_due()
        ready = [row for row in rows if row["state"] == "ready"]
        return [{"slide": row["slide_id"], "reason": _stays(row, again)} for row in ready]

    def _flush_if_due(self) -> None:
        waited_s, slides = time.monotonic() - self._since, len(self._cuts) + len(self._failed)
        many = slides >= self._slides and waited_s >= self._least_s
        most = slides >= MOST_COMMIT_SLIDES or self._rows >= COMMIT_ROWS
        if many or most or waited_s > COMMIT_S:
            self.flush()

    def flush(self) -> None:
        if self._cuts:
            with self._watch.commit(slides=len(self._cuts), failed=len(self._failed)):
                self._lake.committer.commit_slides(self._cuts, self._failed)
        elif self._failed:
            with self._watch.commit(slides=0, failed=len(self._failed)):
                self._lake.committer.fail(self._failed)
        self._cuts, self._failed, self._rows = [], [], 0
        self._since = time.monotonic()


def _share(todo: Sequence[Row]) -> float:
    """Return the cores of a worker: slides that have to travel come two to a core.

    One is fetched while the other is cut.
    """
    return 1.0 if all(is_local(row["uri"]) for row in todo) else 0.5


def _outcomes(
    store: Store,
    config: LakeConfig,
    todo: Sequence[Row],
    slide_timeout_s: float,
    workers: Placement,
) -> Generator[SlideCut | Row]:
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks
    context.max_errored_blocks = -1  # a worker that dies takes its own slides with it, no others
    try:
        lost: list[Row] = []
        cut = partial(_cut_by_ray, store, config, slide_timeout_s, workers.cpus_per_worker)
        for wave in waves(todo, workers.workers):
            left = {row["slide_id"]: row for unit in wave for row in unit}
            for outcome in cut(wave):
                row = outcome.row if isinstance(outcome, SlideCut) else outcome
                del left[row["slide_id"]]
                yield outcome
            alone = {unit[0]["slide_id"] for unit in wave if len(unit) == 1}
            lost += [row for name, row in left.items() if name not in alone]
        if lost:  # with the worker of another slide: only that one dies now
            yield from cut([[row] for row in lost])
    finally:  # a job after this one in the same process must not lose blocks in silence
        context.max_errored_blocks = before


def _cut_by_ray(
    store: Store,
    config: LakeConfig,
    slide_timeout_s: float,
    share: float,
    units: Sequence[Sequence[Row]],
) -> Iterator[SlideCut | Row]:
    import ray.data

    rows = [row for unit in units for row in unit]
    extensions = loaded_extensions()
    unit_rows, number = [], 0
    for unit in units:
        numbers = range(number, number + len(unit))
        number += len(unit)
        unit_rows.append(
            {
                "numbers": list(numbers),
                "jobs": [pickle.dumps((store, config, row, extensions)) for row in unit],
                "limits_s": [
                    slide_timeout_s + (row["bytes"] or 0) / SLOWEST_BYTES_S for row in unit
                ],
            }
        )
    slides = ray.data.from_items(unit_rows, override_num_blocks=len(unit_rows))
    with schedulable(num_cpus=share):
        for outcome in slides.flat_map(cut_apart, num_cpus=share).iter_rows():
            if outcome["died"]:
                yield failure(rows[outcome["number"]], SlideError(f"cutting it {outcome['died']}"))
            else:
                yield pickle.loads(outcome["outcome"])


def _result(lake: Lake, slide_ids: Sequence[str]) -> IngestResult:
    slides = lake.slides().select("slide_id", "state", "reason", "reader")
    if len(slide_ids) <= FEW_SLIDES:
        slides = slides.filter(pl.col("slide_id").is_in(list(slide_ids)))
    names = pl.DataFrame({"slide_id": list(slide_ids)}, schema={"slide_id": pl.String})
    slide_rows = slides.collect().join(names, on="slide_id", how="semi", maintain_order="left")
    tiles = count_tiles(lake.table(CATALOG)).tiles
    ready, failed = (
        slide_rows.filter(slide_rows["state"] == state) for state in ("ready", "failed")
    )
    return IngestResult(
        ready=ready.height,
        failed=[
            {"slide": slide, "reason": reason}
            for slide, reason in failed.select("slide_id", "reason").iter_rows()
        ],
        tiles={mpp_name(mpp): tiles[mpp, None] for mpp in lake.config.mpps},
        readers=dict(ready["reader"].value_counts().iter_rows()),
    )
