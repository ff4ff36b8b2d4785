"""Slides to tiles as a Ray Data job: one slide is the unit of work, one process commits.

Workers write shards and return rows; the driver commits a batch of slides whenever enough rows,
slides or time have gathered. A slide that fails is written down with its reason, and the others
go on. After a kill the next run takes the slides that no commit names.
"""

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import polars as pl

from cluster import (
    Placement,
    WorkerSettings,
    announced,
    loaded_extensions,
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
from ingest.errors import SlideError
from ingest.isolated_cut import cut_apart
from ingest.pages.contact_sheet import write_contact_sheet
from ingest.remote.remote_files import is_local
from ingest.scores.fill_scores import keep_scores, unknown_scores
from ingest.select.named_slides import IngestOptions, Row, find_named_slides
from ingest.select.near_lake import refuse_folder_of_slides, refuse_near_lake
from ingest.select.slides_to_cut import Todo, sort_out

COMMIT_SLIDES = 64
COMMIT_ROWS = 250_000
COMMIT_S = 60.0
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
    commit_slides: int = COMMIT_SLIDES,
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
            a teacher later computes or resumes as a whole.
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
    named = find_named_slides(inputs, options)
    refuse_folder_of_slides(lake_uri)
    lake = create_lake(lake_uri, config)
    refuse_near_lake(lake, named.rows, distinct_ids=options.get("distinct_ids", False))
    rows = lake.committer.register(named.rows)
    todo = sort_out(rows, options, named.tissue_by)
    if todo.failed:
        lake.committer.fail(todo.failed)
    if todo.facts:
        lake.committer.update_slides(todo.facts)
    ready = [row["slide_id"] for row in todo.cut if row["state"] == "ready"]
    if todo.cut:
        purpose = f"ingest of {len(todo.cut)} slides"
        with writer_lease(lake.store, purpose), ray_session(address=address):
            todo.stopped += _run(lake, todo, commit_slides, slide_timeout_s)
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
    ingest_result.sheet = write_contact_sheet(lake.refreshed())
    if auto_vacuum:
        ingest_result.freed = free_old_versions(lake)
    ingest_result.seconds = round(time.perf_counter() - start, 3)
    return ingest_result


def _run(
    lake: Lake, todo: Todo, commit_slides: int, slide_timeout_s: float
) -> list[dict[str, str]]:
    """Cut and commit slides; return the slides that failed while their earlier tiles stay."""
    left = {row["slide_id"]: row for row in todo.cut}
    kept: list[dict[str, str]] = []
    batch = _Batch(lake, commit_slides)
    work = float(sum(row["bytes"] or 0 for row in todo.cut))
    workers = _place(todo.cut)
    with (
        progress("ingest", total=len(left), unit="slides", work=work) as bar,
        announced(workers),
        noted_nodes(bar.note, workers),
    ):
        for outcome in _outcomes(lake.store, lake.config, todo.cut, slide_timeout_s, workers):
            if isinstance(outcome, SlideCut):
                left.pop(outcome.row["slide_id"])
                tiles = sum(grid.tiles.num_rows for grid in outcome.grids.values())
                size = outcome.row["bytes"] or 0
                bar.advance(1, work=size, tiles=tiles, bytes=size)
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
                kept += _fail(lake, [outcome], todo.again)
                bar.advance(1, work=outcome["bytes"] or 0)
                bar.note(f"{outcome['slide_id']} failed: {outcome['reason']}")
        batch.flush()
    reason = "the worker died on it (a crash in a decoder, or out of memory)"
    return kept + _fail(lake, [{**row, "reason": reason} for row in left.values()], todo.again)


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
    share = 1.0 if all(is_local(row["uri"]) for row in todo) else 0.5
    settings = WorkerSettings(device="cpu", cpus_per_worker=share)
    return place(settings, node_shapes(), most=len(todo))


def _guess(row: Row) -> str:
    return (
        f"it does not say its mpp; {row['mpp']:g} was taken from its objective of "
        f"{row['objective']:g}x, which may be 10 % off (mpp_source is 'objective' in `slides`)"
    )


def _fail(lake: Lake, rows: Sequence[Row], again: Mapping[str, str]) -> list[dict[str, str]]:
    """Commit the failed slides; a slide that is ready from an earlier cut stays as it is."""
    ready = [row for row in rows if row["state"] == "ready"]
    if len(ready) < len(rows):
        lake.committer.fail([row for row in rows if row["state"] != "ready"])
    return [{"slide": row["slide_id"], "reason": _stays(row, again)} for row in ready]


def _stays(row: Row, again: Mapping[str, str]) -> str:
    if why := again.get(row["slide_id"]):
        return f"cutting it again ({why}) failed, its earlier tiles stay: {row['reason']}"
    return f"the new file failed, the earlier scan stays: {row['reason']}"


class _Batch:
    """Cut slides that wait for their commit."""

    def __init__(self, lake: Lake, slides: int) -> None:
        self._lake, self._slides = lake, slides
        self._cuts: list[SlideCut] = []
        self._since = time.monotonic()

    def add(self, cut: SlideCut) -> None:
        self._cuts.append(cut)
        rows = sum(next(iter(c.grids.values())).tiles.num_rows for c in self._cuts)
        late = time.monotonic() - self._since > COMMIT_S
        if late or len(self._cuts) >= self._slides or rows >= COMMIT_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._cuts:
            self._lake.committer.commit_slides(self._cuts)
        self._cuts, self._since = [], time.monotonic()


def _outcomes(
    store: Store,
    config: LakeConfig,
    todo: Sequence[Row],
    slide_timeout_s: float,
    workers: Placement,
) -> Iterator[SlideCut | Row]:
    import ray.data

    context = ray.data.DataContext.get_current()
    before = context.max_errored_blocks
    context.max_errored_blocks = -1  # a worker that dies takes its own slide with it, no other
    try:
        yield from _cut_by_ray(store, config, todo, slide_timeout_s, workers.cpus_per_worker)
    finally:  # a job after this one in the same process must not lose blocks in silence
        context.max_errored_blocks = before


def _cut_by_ray(
    store: Store, config: LakeConfig, todo: Sequence[Row], slide_timeout_s: float, share: float
) -> Iterator[SlideCut | Row]:
    import ray.data

    task_rows = [
        {
            "number": number,
            "job": pickle.dumps((store, config, row, loaded_extensions())),
            "limit_s": slide_timeout_s + (row["bytes"] or 0) / SLOWEST_BYTES_S,
        }
        for number, row in enumerate(todo)
    ]
    slides = ray.data.from_items(task_rows, override_num_blocks=len(task_rows))
    with schedulable(num_cpus=share):
        for outcome in slides.map(cut_apart, num_cpus=share).iter_rows():
            if outcome["died"]:
                yield failure(todo[outcome["number"]], SlideError(f"cutting it {outcome['died']}"))
            else:
                yield pickle.loads(outcome["outcome"])


def _result(lake: Lake, slide_ids: Sequence[str]) -> IngestResult:
    of_these = pl.col("slide_id").is_in(list(slide_ids))
    columns = ["slide_id", "state", "reason", "reader"]
    slide_rows = lake.slides().filter(of_these).select(columns).collect()
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
