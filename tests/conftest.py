"""Real small things that many tests share: slides, a Ray, a lake with two teachers."""

import gc
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import webdataset
from filelock import FileLock
from hypothesis import settings

from cluster import ClusterError, ray_session
from examples.cohort import make_cohort
from featurestore import Lake, LakeConfig, create_lake, open_lake
from ingest.ray_ingest import ingest
from ingest.teachers.ray_extract import extract
from tests.skipped import pytest_make_collect_report, pytest_runtest_makereport
from tests.worlds.clouds import any_bucket, azure_account, container, google_bucket, google_url
from tests.worlds.command_lines import Answer, Output, Slidelake, run_words
from tests.worlds.real_s3 import faulty_real_bucket, real_bucket, real_s3
from tests.worlds.s3 import any_store, bucket, faulty, s3_urls
from tests.worlds.small_lake import cut

__all__ = [
    "any_bucket",
    "any_store",
    "azure_account",
    "bucket",
    "container",
    "faulty",
    "faulty_real_bucket",
    "google_bucket",
    "google_url",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "real_bucket",
    "real_s3",
    "s3_urls",
]  # fixtures and hooks that live elsewhere

# Where a change is judged the same examples are tried each time; everywhere else, new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent
REAL_SLIDE = ROOT / "examples" / "data" / "CMU-1-Small-Region.svs"
TEACHERS = ("efficientnet_lite0", "efficientnet_lite1")
CONFIG = LakeConfig(tile_px=256, mpps=(0.5, 2.0))

#: Files of slow tests by the CPU seconds that they take, longest first, so that two processes end
#: at about the same time; other files come after these.
LONGEST = (
    "test_nodes.py",
    "test_damage_drill.py",
    "test_kill_drill.py",
    "test_distill_kills.py",
    "test_demo.py",
    "test_installing.py",
    "test_buckets.py",
    "test_extract_kills.py",
    "test_ingest.py",
    "test_downstream_commands.py",
    "test_cards.py",
    "test_docs_downstream.py",
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def shard_samples(path: str) -> dict[int, dict[str, bytes]]:
    """A shard as the plain webdataset package reads it, by tile_id."""
    with warnings.catch_warnings():
        # webdataset 1.0.2 leaves the tar open until it is collected.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(path, shardshuffle=False))
        gc.collect()
    return {int(sample["__key__"]): sample for sample in samples}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made by one of the processes that test side by side, for all of them."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / f"{name}-of-all", base / f"{name}-of-all.done"
    with FileLock(base / f"{name}-of-all.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of six small synthetic slides of four patients; its folder holds the slides."""

    def make(folder: Path) -> None:
        make_cohort(folder, patients=4, slides=6, width_px=1280, height_px=1024, workers=1)

    (table,) = made_once(tmp_path_factory, "cohort", make).glob("*.csv")
    return table


@pytest.fixture(scope="session")
def ray_up() -> Iterator[None]:
    """One local Ray for the whole run; Ray gives its node 30 s, too few on a busy machine."""
    with ExitStack() as stack:
        for tries_left in (2, 1, 0):
            try:
                stack.enter_context(ray_session(num_cpus=2))
                break
            except ClusterError as error:
                if "did not come up" not in str(error) or not tries_left:
                    raise
            _forget_processes()  # not above: the error holds them there
        yield
    _forget_processes()


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands see no Ray, as on a machine where none is up: child processes do the work."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)


def _forget_processes() -> None:
    """Collect what a Ray that is down or never came up leaves, whose warnings would fail a test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory, cohort: Path, ray_up: None) -> Path:
    """A lake with the cohort, the real slide, and two teachers at both mpps. Not to be changed."""

    def make(folder: Path) -> None:
        lake = str(folder / "lake")
        result = ingest(lake, [str(cohort), str(REAL_SLIDE)], CONFIG, commit_slides=3)
        assert not result.failed
        assert not extract(lake, TEACHERS).failed

    return made_once(tmp_path_factory, "filled", make) / "lake"


@pytest.fixture
def slidelake(capsys: Output) -> Slidelake:
    """Run the words after `slidelake` in this process; a process of its own takes 3 s to start."""

    def slidelake(*words: object, code: int | None = 0) -> Answer:
        return run_words(capsys, list(map(str, words)), code=code)

    return slidelake


@pytest.fixture
def lake_copy(filled: Path, tmp_path: Path) -> Path:
    """A copy of the filled lake that a test may change."""
    shutil.copytree(filled, tmp_path / "lake")
    return tmp_path / "lake"


@pytest.fixture
def lake(filled: Path) -> Lake:
    """The filled lake, open."""
    return open_lake(filled)


@pytest.fixture
def small(tmp_path: Path) -> Lake:
    """A lake without real slides: two of 5 and 3 tiles at each mpp, in one fragment per mpp."""
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5, 2.0)))
    rows = lake.committer.register([{"slide_id": s, "uri": f"{s}.svs"} for s in ("a", "b")])
    lake.committer.commit_slides(
        [cut(lake, r["slide"], r["slide_id"], n) for r, n in zip(rows, (5, 3), strict=True)]
    )
    return lake.refreshed()
