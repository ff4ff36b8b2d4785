"""A full disk: each writer fails with one line, nothing is lost, and a vacuum frees room."""

import contextlib
import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import slidelake
from featurestore import Lake, LakeConfig, LakeError, Store, create_lake, open_lake, vacuum, verify
from featurestore.storage.full_disk import DiskFullError, naming_full_disk
from featurestore.storage.lock import FileLock, commit_lock, no_writers, writer_lease
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import features_table
from ingest.cut import cut_or_reason
from ingest.ray_ingest import ingest
from ingest.select.named_slides import Row
from tests.conftest import REAL_SLIDE
from tests.featurestore.test_groups import KilledError, killed_at, scanned_again
from tests.worlds.small_lake import add_slides, add_teacher, contents, cut


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 3 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here: no namespace of our own")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(disk: Path) -> Lake:
    """Return a lake on a small disk with some old versions and a teacher, and room left."""
    lake = create_lake(disk / "lake", LakeConfig(mpps=(0.5, 2.0)))
    lake = add_slides(add_slides(lake, {"alone": 4}), {"a": 5, "b": 3})
    return add_teacher(add_teacher(lake, "t"), "u")


def fill(disk: Path) -> None:
    """Write until there is not a byte left."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


WRITERS: dict[str, Callable[[Lake], object]] = {
    "ingest": lambda lake: add_slides(lake, {"more": 200}),
    "extract": lambda lake: add_teacher(lake, "w", dim=600),
    "register": lambda lake: lake.committer.register([{"slide_id": "q", "uri": "q.svs"}]),
    "report": lambda lake: lake.write_bytes("runs/x/report.html", b"x" * 5000),
    "snapshot": lambda lake: lake.snapshot("s"),
    "new lake": lambda lake: create_lake(f"{lake.uri}2", LakeConfig()),
    "shard": lambda lake: cut(lake, 9, "z", 400),
}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        ValueError("LanceError(IO): No space left on device, a/rust/b.rs:1:2"),
        RuntimeError("write failed (os error 28)"),
        RuntimeError("Disk quota exceeded"),
        ValueError("write failed (os error 122)"),
    ],
    ids=str,
)
def test_disk_or_quota_that_is_full_is_told_whoever_says_so(error: Exception) -> None:
    text = "no space left on the disk, or in the quota, of here"
    with pytest.raises(DiskFullError, match=text), naming_full_disk("here"):
        raise error
    outer = KeyError("a worker failed")
    outer.__cause__ = error
    with pytest.raises(DiskFullError, match=text), naming_full_disk("here"):
        raise outer
    with pytest.raises(OSError, match="Permission denied"), naming_full_disk("here"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_every_writer_says_that_the_disk_is_full(small_disk: Lake, disk: Path) -> None:
    before = contents(small_disk)
    (disk / "lake" / "runs" / "x").mkdir(parents=True)
    fill(disk)
    for write in WRITERS.values():
        with pytest.raises(DiskFullError, match=r"no space left .*disk/lake.*slidelake vacuum"):
            write(open_lake(small_disk.uri))
    assert not list(disk.rglob("*.tmp"))
    assert contents(open_lake(small_disk.uri)) == before
    assert verify(open_lake(small_disk.uri)).ok


def test_full_disk_can_be_vacuumed_even_with_work_that_was_cut_short(
    small_disk: Lake, disk: Path
) -> None:
    with killed_at(1), pytest.raises(KilledError):
        scanned_again(small_disk)
    before = contents(small_disk)
    fill(disk)
    with pytest.raises(DiskFullError):
        small_disk.committer.recover()
    assert vacuum(open_lake(small_disk.uri), keep=1).bytes > 0
    lake = open_lake(small_disk.uri)
    assert contents(lake) == before
    assert verify(lake).ok
    table = open_table(lake.store, features_table(0.5))
    assert table.count_rows() == 12  # what was cut short is taken back
    assert verify(add_slides(lake, {"c": 2})).ok


def test_commands_on_a_full_disk_end_in_one_line(
    small_disk: Lake,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(disk)
    codes = {}
    for command in ("snapshot", "vacuum"):
        more = ["s"] if command == "snapshot" else ["--keep", "1"]
        monkeypatch.setattr(sys, "argv", ["slidelake", command, small_disk.uri, *more])
        with pytest.raises(SystemExit) as ended:
            slidelake.main()
        codes[command] = (ended.value.code, capsys.readouterr())
    assert codes["snapshot"][0] == 4  # no wrong usage
    assert codes["snapshot"][1].err.startswith("slidelake: no space left on the disk")
    assert codes["snapshot"][1].err.count("\n") == 1
    assert codes["vacuum"][0] == 0
    assert "MB; readable: versions" in codes["vacuum"][1].out


def test_slide_that_finds_no_room_has_not_failed(small_disk: Lake, disk: Path) -> None:
    fill(disk)
    row = {"slide": 7, "slide_id": "cmu", "uri": str(REAL_SLIDE), "fingerprint": "x"}
    outcome = cut_or_reason(small_disk.store, small_disk.config, row)
    assert isinstance(outcome, dict)
    assert outcome["disk_full"]
    assert outcome["reason"].startswith("no space left on the disk")


def test_ingest_on_a_full_disk_ends_and_its_slides_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Store, __: LakeConfig, todo: list[Row], *___: object, **____: object) -> Any:  # noqa: ANN401
        for row in todo:
            yield {**row, "reason": "no space left on the disk", "disk_full": True}

    monkeypatch.setattr("ingest.ray_ingest.local_workers", lambda *_, **__: 1)
    monkeypatch.setattr("ingest.ray_ingest.cut_here", full)
    with pytest.raises(DiskFullError, match="no space left on the disk"):
        ingest(str(tmp_path / "lake"), [str(REAL_SLIDE)], LakeConfig(tile_px=256, mpps=(0.5,)))
    slides = open_lake(tmp_path / "lake").slides().collect()
    assert slides["state"].to_list() == ["pending"]


# ---------------------------------------------------------------------- descriptors of locks


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@contextlib.contextmanager
def no_file_may_grow() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("take", [commit_lock, no_writers, lambda store: writer_lease(store, "x")])
def test_lock_that_can_not_be_signed_is_given_back(
    small: Lake, take: Callable[[Store], contextlib.AbstractContextManager[object]]
) -> None:
    with take(small.store):
        pass
    before = descriptors()
    refused = pytest.raises(LakeError, match="can't be locked")
    with no_file_may_grow(), refused, take(small.store):
        pass
    assert descriptors() == before
    assert not list(Path(small.uri).glob("leases/*writer-*"))
    with take(small.store):  # nobody has it
        pass
    assert descriptors() == before


def test_interrupted_lock_is_given_back(small: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = descriptors()
    lock = FileLock(Path(small.uri) / "commit.lock", "commit", fcntl.LOCK_EX)
    with monkeypatch.context() as patch:
        patch.setattr("os.ftruncate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.take()
    assert descriptors() == before
    with commit_lock(small.store, wait_s=0.1):
        assert lock.take() is None
    assert descriptors() == before
