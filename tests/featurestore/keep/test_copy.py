"""A copy of a lake: whole while it lives, resumed, to buckets and back, and nothing over it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import slidelake
from featurestore import (
    DamageError,
    Lake,
    LakeConfig,
    LakeError,
    copy_lake,
    create_lake,
    open_lake,
    vacuum,
    verify,
)
from featurestore.annotations.annotating import annotate
from featurestore.keep import copied_files
from featurestore.storage.lock import writer_lease
from tests.conftest import ROOT
from tests.featurestore.storage.test_full_disk import disk
from tests.worlds.s3 import Bucket
from tests.worlds.small_lake import add_slides, add_teacher, contents

__all__ = ["disk"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake with a snapshot, a run, replaced rows, and versions that nothing names."""
    path = tmp_path_factory.mktemp("copied") / "lake"
    lake = create_lake(path, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_teacher(add_slides(lake, {"a": 5, "b": 3}), "t")
    lake.snapshot("first")
    for number in range(3):
        lake = add_slides(lake, {f"s{number}": 2})
    lake.write_json("runs/mine/result.json", {"lake_version": lake.version})
    lake.write_bytes("ingest.html", b"<p>page</p>")
    lake = add_teacher(add_slides(lake, {"a": 9}, mark="again"), "t")
    add_slides(lake, {"last": 3})
    return path


@pytest.fixture
def rich(made: Path, tmp_path: Path) -> Lake:
    """Return the made lake, to be changed."""
    shutil.copytree(made, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def same(copy: Lake, lake: Lake) -> None:
    assert copy.version == lake.version
    assert contents(copy) == contents(lake)
    assert verify(copy).ok


def test_copy_is_the_lake_with_its_snapshots_and_what_runs_read(rich: Lake, tmp_path: Path) -> None:
    orphan = Path(rich.uri) / "tiles" / "mpp0.5" / "000099-left.tar"
    orphan.write_bytes(b"left by a kill")
    done = copy_lake(rich.uri, tmp_path / "copy")
    copy = open_lake(tmp_path / "copy")
    same(copy, rich)
    run = json.loads(copy.read_bytes("runs/mine/result.json"))["lake_version"]
    assert done.versions == [rich.snapshots()["first"], run, rich.version]
    for version in ("first", run):
        kept = open_lake(copy.uri, version=version)
        assert contents(kept) == contents(open_lake(rich.uri, version=version))
        assert verify(kept).ok
    assert copy.read_bytes("ingest.html") == b"<p>page</p>"
    assert not copy.exists("tiles/mpp0.5/000099-left.tar")
    assert not copy.exists("copy.json")
    after = add_teacher(add_slides(copy, {"new": 3}), "t")
    assert verify(after).ok
    assert vacuum(after, keep=1).bytes > 0
    assert verify(open_lake(copy.uri)).ok
    assert verify(open_lake(rich.uri)).ok


def test_copy_has_the_annotations_of_its_versions(rich: Lake, tmp_path: Path) -> None:
    for value in ("1", "2"):
        table = pl.DataFrame({"slide_id": ["a", "b"], "grade": [value, "3"]})
        annotate(open_lake(rich.uri), table, name="grade", replace_old=value == "2")
    lake = open_lake(rich.uri)
    tables = sorted(path.name for path in (Path(rich.uri) / "annotations").iterdir())
    copy_lake(rich.uri, tmp_path / "copy")
    copy = open_lake(tmp_path / "copy")
    annotation = lake.annotation("grade").sort("slide_id").collect()
    assert copy.annotation("grade").sort("slide_id").collect().equals(annotation)
    assert verify(copy).ok
    copied = {path.name for path in (tmp_path / "copy" / "annotations").iterdir()}
    assert len(copied) == 1  # not the table that was replaced
    assert copied < set(tables)


def test_copy_at_a_version_ends_with_it(rich: Lake, tmp_path: Path) -> None:
    before = contents(open_lake(rich.uri, version="first"))
    copy_lake(rich.uri, tmp_path / "copy", version="first")
    copy = open_lake(tmp_path / "copy")
    assert contents(copy) == before
    assert copy.version == rich.snapshots()["first"]
    assert verify(add_slides(copy, {"other": 2})).ok


def test_lake_that_is_written_to_is_copied_as_it_was_when_the_copy_began(
    rich: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = contents(rich), rich.version
    begun = []

    def writing(files: int) -> None:
        begun.append(files)
        add_slides(add_slides(open_lake(rich.uri), {"b": 7}, mark="again"), {"more": 4})
        with pytest.raises(LakeError, match="in use by copy"):
            vacuum(open_lake(rich.uri), keep=1)

    copy_lake(rich.uri, tmp_path / "copy", on_plan=writing)
    copy = open_lake(tmp_path / "copy")
    assert begun[0] > 20
    assert (copy.version, contents(copy)) == (version, before)
    assert verify(copy).ok
    assert verify(add_slides(copy, {"other": 2})).ok


class StoppedError(BaseException):
    """Stands for a kill."""


def stopped_copy(lake: Lake, target: Path | str, after: int) -> None:
    """Start a copy and kill it after some files."""
    left = [after]

    def count(_: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    with pytest.raises(StoppedError):
        copy_lake(lake.uri, target, on_file=count)


def test_stopped_copy_goes_on(rich: Lake, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    stopped_copy(rich, target, 5)
    with pytest.raises(LakeError, match="is not a lake"):
        open_lake(target)
    add_slides(rich, {"meanwhile": 2})
    stopped_copy(rich, target, 15)
    done = copy_lake(rich.uri, target)
    assert done.copied < done.files - 20
    same(open_lake(target), rich)  # the version that the first try began with


def test_stopped_copy_of_a_version_that_is_gone_begins_anew(rich: Lake, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    stopped_copy(rich, target, 30)
    lake = add_slides(add_slides(rich, {"b": 6}, mark="again"), {"meanwhile": 2})
    vacuum(lake, keep=1)
    done = copy_lake(rich.uri, target)
    assert rich.version not in done.versions
    same(open_lake(target), lake)
    assert {p.name for p in (target / "tiles/mpp0.5").iterdir()} == {
        p.name for p in (Path(rich.uri) / "tiles/mpp0.5").iterdir()
    }


def test_nothing_is_copied_over_something_else(rich: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="is the lake itself"):
        copy_lake(rich.uri, rich.uri)
    with pytest.raises(LakeError, match="is inside the lake"):
        copy_lake(rich.uri, f"{rich.uri}/backup")
    copy_lake(rich.uri, tmp_path / "copy")
    with pytest.raises(LakeError, match="is a lake already"):
        copy_lake(rich.uri, tmp_path / "copy")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("mine")
    with pytest.raises(LakeError, match="is not empty already"):
        copy_lake(rich.uri, tmp_path / "notes")
    stopped_copy(rich, tmp_path / "half", 5)
    with pytest.raises(LakeError, match="holds an unfinished copy of version"):
        copy_lake(tmp_path / "copy", tmp_path / "half")
    with pytest.raises(LakeError, match="holds an unfinished copy of version"):
        copy_lake(rich.uri, tmp_path / "half", version="first")


def test_damaged_lake_is_not_copied_in_silence(rich: Lake, tmp_path: Path) -> None:
    row = rich.tiles_of(mpp=0.5, slide_ids=["b"]).row(0, named=True)
    Path(rich.store.path(row["shard"])).unlink()
    with pytest.raises(DamageError, match=rf"1 file is missing .*{row['shard']}.*verify"):
        copy_lake(rich.uri, tmp_path / "copy")
    assert not (tmp_path / "copy" / "lake.json").exists()


def test_copy_to_a_full_disk_says_so(rich: Lake, disk: Path) -> None:
    (disk / "filler").write_bytes(b"x" * 2_900_000)
    with pytest.raises(LakeError, match=r"no space left .*disk/copy"):
        copy_lake(rich.uri, disk / "copy")
    (disk / "filler").unlink()
    copy_lake(rich.uri, disk / "copy")
    same(open_lake(disk / "copy"), rich)


@pytest.mark.slow
def test_copies_to_a_bucket_and_back(
    rich: Lake, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied_files, "CHUNK_BYTES", 1000)
    copy_uri = f"{bucket.uri}/copies/one"
    stopped_copy(rich, copy_uri, 10)
    copy_lake(rich.uri, copy_uri)
    copy_lake(copy_uri, f"{bucket.uri}/copies/two")
    copy_lake(f"{bucket.uri}/copies/two", tmp_path / "back")
    same(open_lake(tmp_path / "back"), rich)
    assert open_lake(copy_uri).version == rich.version


def test_command_says_what_was_copied(rich: Lake, tmp_path: Path) -> None:
    line = ["copy", rich.uri, str(tmp_path / "copy")]
    done = CliRunner().invoke(slidelake.app, [*line, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout.splitlines()[-1])
    assert value["version"] == rich.version
    assert value["copied"] == value["files"] - 2
    plain = CliRunner().invoke(
        slidelake.app, ["copy", rich.uri, str(tmp_path / "old"), "--at", "first"]
    )
    assert "readable: versions" in plain.stdout


def test_read_only_lake_is_copied_without_a_lease(
    rich: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(Path(rich.uri) / "leases", ignore_errors=True)
    (Path(rich.uri) / "leases").write_text("")  # no lease can be made there
    copy_lake(rich.uri, tmp_path / "copy")
    assert "without a lease" in caplog.text
    same(open_lake(tmp_path / "copy"), rich)


def test_documented_copy_by_hand(rich: Lake, tmp_path: Path) -> None:
    """The commands of docs/keeping.md, but for rsync, which need not be here."""
    text = (ROOT / "docs" / "keeping.md").read_text()
    (block,) = re.findall(r"```\n(cp -a [^`]*)```", text)
    commands = block.replace("my-lake", rich.uri).replace("my-copy", str(tmp_path / "copy"))
    subprocess.run(["bash", "-ec", commands.replace("slidelake ", "true ")], check=True)
    same(open_lake(tmp_path / "copy"), rich)


def test_killed_copy_leaves_no_lock_and_goes_on(rich: Lake, tmp_path: Path) -> None:
    code = (
        "import os, sys; from featurestore import copy_lake\n"
        "copy_lake(sys.argv[1], sys.argv[2], on_file=lambda _: os._exit(9))"
    )
    command = [sys.executable, "-c", code, rich.uri, str(tmp_path / "copy")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert vacuum(open_lake(rich.uri)).kept
    with writer_lease(rich.store, "ingest"):
        copy_lake(rich.uri, tmp_path / "copy")
    same(open_lake(tmp_path / "copy"), rich)
