"""Slides to tiles as a Ray Data job: one slide is the unit of work, one process commits.

Workers write shards and return rows; the driver commits a batch of slides whenever enough rows,
slides or time have gathered. A slide that fails is written down with its reason, and the others
go on. After a kill the next run takes the slides that no commit names.
"""

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster import progress, ray_session
from featurestore import LakeConfig, SlideCut, Store, create_lake
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.lock import writer_lease
from ingest.cut import cut_slide, failure
from ingest.errors import SlideError
from ingest.sources import Source, fingerprint, resolve, split_duplicates

COMMIT_SLIDES = 64
COMMIT_ROWS = 250_000
COMMIT_S = 60.0

Row = dict[str, Any]


@dataclass(kw_only=True)
class IngestResult:
    """What an ingest did.

    `failed` lists every failed slide that was asked for, old and new; `replaced` those that were
    scanned again, whose earlier rows stay readable at earlier versions.
    """

    ready: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    tiles: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    readers: dict[str, int] = field(default_factory=dict)
    new: int = 0
    replaced: list[str] = field(default_factory=list)


def ingest(
    lake_uri: str,
    inputs: Sequence[str],
    config: LakeConfig,
    *,
    mpp_override: float | None = None,
    retry_failed: bool = False,
    replace: bool = False,
    commit_slides: int = COMMIT_SLIDES,
    address: str | None = None,
) -> IngestResult:
    """Cut slides into a lake, making it if it is not there; slides already in it are left alone.

    Args:
        lake_uri: folder or URL of the lake.
        inputs: files, folders, globs, CSV or Parquet manifests, URLs.
        config: settings of the lake; an existing lake's must be the same.
        mpp_override: microns per pixel of slides whose manifest gives none.
        retry_failed: take slides again that failed in an earlier run.
        replace: also take another file than the slide was made from. The same URI with another
            content is a slide that was scanned again, and is always taken.
        commit_slides: slides in one commit; each commit is one fragment per mpp, and a fragment
            is what a teacher later takes or resumes as a whole.
        address: a Ray cluster; a local Ray is started if None.

    Raises:
        LakeError: the lake is there with other settings.
        InputError: the inputs name no slide at all.
    """
    start = time.perf_counter()
    sources, later = split_duplicates(resolve(inputs))
    lake = create_lake(lake_uri, config)
    rows = lake.committer.register([_row(source, mpp_override) for source in sources])
    todo, stopped = _sort_out(lake, rows, retry_failed=retry_failed, replace=replace)
    replaced = [row["slide_id"] for row in todo if row["state"] == "ready"]
    if todo:
        what = f"ingest of {len(todo)} slides"
        with writer_lease(lake.store, what), ray_session(address=address):
            stopped += _run(lake, todo, commit_slides)
    result = _result(lake.refreshed(), [row["slide_id"] for row in rows])
    result.failed += stopped + [_duplicate(source) for source in later]
    result.new = len(todo)
    failed = {slide["slide"] for slide in result.failed}
    result.replaced = [name for name in replaced if name not in failed]
    result.seconds = round(time.perf_counter() - start, 3)
    return result


def _row(source: Source, mpp_override: float | None) -> Row:
    row: Row = {
        "slide_id": source.slide_id,
        "patient_id": source.patient_id,
        "uri": source.uri,
        "mpp": source.mpp if source.mpp is not None else mpp_override,
        "extra": _json(source.extra),
        "bytes": None,
        "fingerprint": None,
        "unreadable": None,
    }
    try:
        row["bytes"], row["fingerprint"] = fingerprint(source.uri)
    except SlideError as error:
        row["unreadable"] = str(error)
    return row


def _json(extra: Row) -> str | None:
    import json

    return json.dumps(extra, default=str, sort_keys=True) if extra else None


def _sort_out(
    lake: Lake, rows: Sequence[Row], *, retry_failed: bool, replace: bool
) -> tuple[list[Row], list[dict[str, str]]]:
    """Which slides to cut now; unreadable ones are written down as failed."""
    todo: list[Row] = []
    failed: list[Row] = []
    stopped: list[dict[str, str]] = []
    for row in rows:
        if row["state"] == "ready":
            if row["fingerprint"] not in (None, row["known_fingerprint"]):
                again = replace or row["uri"] == row["known_uri"]
                (todo if again else stopped).append(row if again else _changed(row))
        elif row["unreadable"]:
            failed.append({**row, "reason": row["unreadable"]})
        elif row["state"] == "pending" or retry_failed or _is_new_file(row):
            todo.append(row)
    if failed:
        lake.committer.fail(failed)
    return todo, stopped


def _is_new_file(row: Row) -> bool:
    return bool(row["fingerprint"] != row["known_fingerprint"])


def _changed(row: Row) -> dict[str, str]:
    reason = (
        f"{row['uri']} is not the file that was ingested as '{row['slide_id']}' "
        f"({row['known_uri']}); give it a slide_id of its own in a manifest, or replace the slide "
        "(--replace)"
    )
    return {"slide": row["slide_id"], "reason": reason}


def _duplicate(source: Source) -> dict[str, str]:
    reason = (
        f"{source.uri}: the slide_id '{source.slide_id}' is taken by another file of this run; "
        "give slide_ids in a manifest"
    )
    return {"slide": source.slide_id, "reason": reason}


def _run(lake: Lake, todo: Sequence[Row], commit_slides: int) -> list[dict[str, str]]:
    """Cut and commit; returns slides whose new file failed while their earlier scan stays."""
    left = {row["slide_id"]: row for row in todo}
    kept: list[dict[str, str]] = []
    batch = _Batch(lake, commit_slides)
    with progress("ingest", total=len(todo), unit="slides") as bar:
        for outcome in _outcomes(lake.store, lake.config, todo):
            if isinstance(outcome, SlideCut):
                left.pop(outcome.row["slide_id"])
                tiles = sum(grid.tiles.num_rows for grid in outcome.grids.values())
                bar.advance(1, tiles=tiles, MB=round((outcome.row["bytes"] or 0) / 1e6))
                if why := outcome.row.get("fallback"):
                    bar.note(f"{outcome.row['slide_id']}: read by openslide, since {why}")
                batch.add(outcome)
            else:
                left.pop(outcome["slide_id"])
                kept += _fail(lake, [outcome])
                bar.advance(1)
                bar.note(f"{outcome['slide_id']} failed: {outcome['reason']}")
        batch.flush()
    reason = "the worker died on it (a crash in a decoder, or out of memory)"
    return kept + _fail(lake, [{**row, "reason": reason} for row in left.values()])


def _fail(lake: Lake, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Write failures down; a slide that is ready from an earlier scan stays as it is."""
    ready = [row for row in rows if row["state"] == "ready"]
    if len(ready) < len(rows):
        lake.committer.fail([row for row in rows if row["state"] != "ready"])
    reason = "the new file failed, the earlier scan stays: {}"
    return [{"slide": r["slide_id"], "reason": reason.format(r["reason"])} for r in ready]


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


def _outcomes(store: Store, config: LakeConfig, todo: Sequence[Row]) -> Iterator[SlideCut | Row]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a worker that dies takes its own slide with it, no other

    def cut(item: Row) -> Row:
        return {"outcome": _cut_or_reason(store, config, pickle.loads(item["row"]))}

    items = [{"row": pickle.dumps(row)} for row in todo]
    slides = ray.data.from_items(items, override_num_blocks=len(items))
    for outcome in slides.map(cut, num_cpus=1).iter_rows():
        yield pickle.loads(outcome["outcome"])


def _cut_or_reason(store: Store, config: LakeConfig, row: Row) -> bytes:
    try:
        return pickle.dumps(cut_slide(store, config, row))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide is its reason
        return pickle.dumps(failure(row, error))


def _result(lake: Lake, slide_ids: Sequence[str]) -> IngestResult:
    slides = lake.slides().collect()
    asked = slides.filter(slides["slide_id"].is_in(list(slide_ids)))
    ready, failed = (asked.filter(asked["state"] == state) for state in ("ready", "failed"))
    return IngestResult(
        ready=ready.height,
        failed=[
            {"slide": slide, "reason": reason}
            for slide, reason in failed.select("slide_id", "reason").iter_rows()
        ],
        tiles={
            mpp_name(mpp): int(lake.tiles_of(mpp=mpp)["tiles"].sum()) for mpp in lake.config.mpps
        },
        readers=dict(ready["reader"].value_counts().iter_rows()),
    )
