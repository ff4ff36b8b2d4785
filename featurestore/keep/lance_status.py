"""The state of a lake's work: who writes now, what is pending, what failed, the last commits.

Read from leases, lists of files and the newest versions alone; nothing is written, so that it can
be asked of any lake at any time, also by who may only read.
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import lance
import pyarrow as pa

from featurestore.commits.lance_ledger import VERSIONS_KEY
from featurestore.lake import Lake
from featurestore.roots.lance_roots import LAST_VERSION
from featurestore.storage.lease_view import LeaseView, lease_views
from featurestore.storage.read_errors import reading
from featurestore.storage.store import FileInfo, Store
from featurestore.tables.lance_counts import BATCH_ROWS
from featurestore.tables.lance_tables import properties_of
from featurestore.tables.schema import CATALOG, DROPPED, FAILED, SLIDES, features_table

LAST = 5
THREADS = 16


@dataclass(kw_only=True)
class LakeStatus:
    """The state of a lake's work.

    Attributes:
        lake: URI of the lake.
        version: its newest version.
        leases: leases that are held, or that a killed job left behind.
        slides: number of slides by state.
        columns: number of teachers' columns, each at one mpp.
        missing: columns that lack features of some tiles: teacher, mpp and number of tiles.
        failures: failed slides with their reasons, the last of them first.
        failed: number of failed slides.
        commits: the last commits, newest first: version, time (UTC) and the tables that changed.
        trainings: runs of distill without a student yet: run, step, steps, seconds since its sign.
    """

    lake: str
    version: int
    leases: list[LeaseView] = field(default_factory=list)
    slides: dict[str, int] = field(default_factory=dict)
    columns: int = 0
    missing: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    failed: int = 0
    commits: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON."""
        return asdict(self)


def lake_status(lake: Lake, *, last: int = LAST) -> LakeStatus:
    """Look at the leases and the newest tables of a lake.

    Args:
        lake: the lake at its newest version.
        last: number of failures and commits to name.
    """
    status = LakeStatus(lake=lake.uri, version=lake.version, leases=lease_views(lake.store))
    with reading(lake.store, f"table {lake.store.shown(SLIDES)}"):
        _count_slides(status, lake.table(SLIDES), last)
    for mpp in lake.config.mpps:
        with reading(lake.store, f"table {lake.store.shown(features_table(mpp))}"):
            status.columns += len(lake.teachers(mpp=mpp))
            status.missing += _missing(lake, mpp)
    status.commits = last_commits(lake, last)
    status.trainings = _trainings(lake.store)
    return status


def _count_slides(status: LakeStatus, slides: lance.LanceDataset, last: int) -> None:
    """Count slides by state, and keep the failures that were written last."""
    states: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    # Two scans: reasons are text, and of most slides there are none.
    for batch in slides.to_batches(columns=["state"], batch_size=BATCH_ROWS):
        states.update(batch["state"].to_pylist())
    where = f"state = '{FAILED}'"
    # A row that changes moves to the end of its table, so the last rows failed last.
    for batch in slides.to_batches(
        columns=["slide_id", "reason"], filter=where, batch_size=BATCH_ROWS
    ):
        failures = (failures + _rows(batch)[-last:])[-last:] if last else []
    states.pop(DROPPED, None)
    status.slides = {"ready": 0, "pending": 0, "failed": 0, **states}
    status.failed = states[FAILED]
    status.failures = failures[::-1]


def _rows(batch: pa.RecordBatch) -> list[dict[str, str]]:
    pairs = zip(batch["slide_id"].to_pylist(), batch["reason"].to_pylist(), strict=True)
    return [{"slide": slide, "reason": reason or ""} for slide, reason in pairs]


def _missing(lake: Lake, mpp: float) -> list[dict[str, Any]]:
    """Return teachers that lack features in some fragments, by the fragments' metadata alone."""
    table = lake.table(features_table(mpp))
    numbers = {field.name(): field.id() for field in table.lance_schema.fields()}
    ids = {name: numbers[name] for name in lake.teachers(mpp=mpp)}
    missing: Counter[str] = Counter()
    for fragment in table.get_fragments():
        metadata = fragment.metadata
        stored = {number for file in metadata.files for number in file.fields}
        rows = metadata.physical_rows - metadata.num_deletions
        for name, number in ids.items():
            if number not in stored:
                missing[name] += rows
    return [{"teacher": name, "mpp": mpp, "tiles": tiles} for name, tiles in missing.items()]


def last_commits(lake: Lake, last: int) -> list[dict[str, Any]]:
    """Return the last commits of a lake, the newest first.

    Times are those at which files were written; a copy of a lake has its own.
    """
    catalog, commits = lake.table(CATALOG), []
    written = {_version_of(file.path): file for file in lake.store.walk(f"{CATALOG}/_versions")}
    numbers = sorted(number for number in written if 0 < number <= catalog.version)
    before: tuple[int, dict[str, int]] | None = None
    for number in reversed(numbers):
        text = properties_of(catalog, number).get(VERSIONS_KEY)
        if text is None:  # work on an index
            continue
        versions: dict[str, int] = json.loads(text)
        if before is not None:
            commits.append(_commit(before[0], written[before[0]], _changes(versions, before[1])))
        if len(commits) == last:
            return commits
        before = (number, versions)
    if before is not None:
        commits.append(_commit(before[0], written[before[0]], sorted(before[1])))
    return commits[:last]


def _changes(old: dict[str, int], new: dict[str, int]) -> list[str]:
    return sorted(rel for rel, version in new.items() if old.get(rel) != version)


def _commit(version: int, file: FileInfo, tables: list[str]) -> dict[str, Any]:
    at = datetime.fromtimestamp(file.modified, UTC).isoformat(timespec="seconds")
    return {"version": version, "at": at, "tables": tables}


def _version_of(path: str) -> int:
    """Return the version of a manifest by its file's name, by either of Lance's ways; 0 if none."""
    name = path.rpartition("/")[2].removesuffix(".manifest")
    if not name.isdecimal():
        return 0
    return LAST_VERSION - int(name) if len(name) == 20 else int(name)


def _trainings(store: Store) -> list[dict[str, Any]]:
    """Return the runs of distill that have no curve yet, which is drawn at their end."""
    runs = [run for run in store.names("runs") if run.startswith("distill-")]
    with ThreadPoolExecutor(THREADS) as pool:
        unfinished = pool.map(lambda run: _training(store, run), runs)
        return [training for training in unfinished if training]


def _training(store: Store, run: str) -> dict[str, Any] | None:
    files = {file.path.rpartition("/")[2]: file for file in store.walk(f"runs/{run}")}
    if "status.json" not in files or "curve.png" in files:
        return None
    try:
        status = json.loads(store.read_bytes(files["status.json"].path))
    except (FileNotFoundError, ValueError):
        return None
    last_sign_s = max(0.0, datetime.now(UTC).timestamp() - files["status.json"].modified)
    steps = {name: status.get(name) for name in ("step", "steps", "epoch")}
    return {"run": run, **steps, "last_sign_s": round(last_sign_s, 1)}
