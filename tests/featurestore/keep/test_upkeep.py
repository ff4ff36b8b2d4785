"""Upkeep of a lake: when it is due, and what an automatic vacuum leaves."""

import datetime as dt
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import lance
import pytest
import typer
from typer.testing import CliRunner

import slidelake
from featurestore import (
    Lake,
    LakeConfig,
    LakeError,
    create_lake,
    free_old_versions,
    open_lake,
    vacuum,
    verify,
)
from featurestore.keep import lance_upkeep, lance_vacuum
from featurestore.keep.lance_vacuum import Vacuumed
from featurestore.keep.verify.last_verified import VERIFIED, last_verified, record_verified
from featurestore.storage.lock import writer_lease
from featurestore.tables.lance_tables import open_table
from tests.conftest import REAL_SLIDE, ROOT, TEACHERS
from tests.worlds.small_lake import add_slides, contents

if TYPE_CHECKING:
    from typer.core import TyperGroup


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Return a lake of many small ingests; each makes two versions. Not to be changed."""
    lake = create_lake(tmp_path_factory.mktemp("busy") / "lake", LakeConfig(mpps=(0.5,)))
    for number in range(20):
        lake = add_slides(lake, {f"s{number}": 2})
    return lake


@pytest.fixture
def many(busy: Lake, tmp_path: Path) -> Lake:
    """Return the same lake, to be changed."""
    shutil.copytree(busy.uri, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def readable(lake: Lake) -> list[int]:
    return [int(entry["version"]) for entry in open_table(lake.store, "catalog.lance").versions()]


def test_automatic_vacuum_leaves_what_is_young_or_new_or_named(many: Lake) -> None:
    before, newest = contents(many), many.version
    assert free_old_versions(many) is None  # all are younger than a week
    assert free_old_versions(many, keep=newest - 5, days=0) is None  # too few to look for
    assert len(readable(many)) == newest
    open_lake(many.uri, version=newest - 30).snapshot("paper")
    many.write_json("runs/mine/result.json", {"lake_version": newest - 28})
    record_verified(many.store, newest - 26)
    with writer_lease(many.store, "ingest"):
        assert free_old_versions(many, keep=10, days=0) is None
    done = free_old_versions(many, keep=10, days=0)
    assert done is not None
    assert done.kept == [newest - 30, newest - 28, newest - 26, *range(newest - 9, newest + 1)]
    assert readable(many) == done.kept
    assert done.bytes > 0
    for version in done.kept[:4]:
        assert verify(open_lake(many.uri, version=version)).ok
    assert contents(open_lake(many.uri)) == before
    assert free_old_versions(many, keep=10, days=0) is None


@pytest.mark.parametrize(("age_days", "frees"), [(6.9, False), (7.1, True)])
def test_automatic_vacuum_leaves_the_newest_hundred_and_a_week(
    many: Lake, monkeypatch: pytest.MonkeyPatch, age_days: float, *, frees: bool
) -> None:
    def times(table: lance.LanceDataset) -> dict[int, dt.datetime]:
        then = dt.datetime.now() - dt.timedelta(days=age_days)
        return dict.fromkeys((entry["version"] for entry in table.versions()), then)

    monkeypatch.setattr(lance_vacuum, "version_times", times)
    monkeypatch.setattr(lance_vacuum, "AUTO_LEAST", 1)
    assert free_old_versions(many) is None  # there are less than a hundred
    assert (free_old_versions(many, keep=10) is not None) == frees


def test_version_that_was_vacuumed_is_answered_with_those_that_are_there(many: Lake) -> None:
    newest = many.version
    open_lake(many.uri, version=newest - 20).snapshot("paper")
    vacuum(many, keep=3)
    text = rf"has no version 5 \(any more\); it has {newest - 20} \(paper\), {newest - 2}-{newest}:"
    with pytest.raises(LakeError, match=text):
        open_lake(many.uri, version=5)
    with pytest.raises(LakeError, match=f"has no version {newest + 7} "):
        open_lake(many.uri, version=newest + 7)


def test_record_of_verify_is_kept_and_read_whatever_it_holds(many: Lake) -> None:
    shard = next(Path(many.uri).rglob("*.tar"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert not verify(many).ok
    shard.write_bytes(content)
    assert last_verified(many.store) is None
    assert verify(open_lake(many.uri, version=many.version - 12)).ok
    assert last_verified(many.store) == many.version - 12
    verify(open_lake(many.uri, version=many.version - 20))
    assert last_verified(many.store) == many.version - 12
    verify(many, sample=0.5)
    assert last_verified(many.store) == many.version - 12
    kept = vacuum(many, keep=2).kept
    assert kept == [many.version - 12, many.version - 1, many.version]
    for text in ("", "[]", '{"version": "x"}'):
        many.write_bytes(VERIFIED, text.encode())
        assert last_verified(many.store) is None


def test_info_says_when_it_would_pay(many: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines() -> list[str]:
        return CliRunner().invoke(slidelake.app, ["info", many.uri]).stdout.splitlines()

    assert "vacuum" not in str(lines())
    monkeypatch.setattr(lance_upkeep, "MANY_BYTES", 1000)  # few versions may have long lists
    assert lines()[-1].startswith(f"{many.version} versions with 0.")
    monkeypatch.undo()
    monkeypatch.setattr(lance_upkeep, "MANY_VERSIONS", 20)
    monkeypatch.setattr(lance_upkeep, "MANY_FRAGMENTS", 10)
    compact, vacuumed = lines()[-2:]
    assert compact == "20 fragments: `slidelake compact` would make 1 of them"
    assert vacuumed.startswith(f"{many.version} versions with 0.")
    slidelake.compact(many)
    vacuum(many, keep=1)
    assert "vacuum" not in str(lines())
    printed = CliRunner().invoke(slidelake.app, ["info", many.uri, "--json"]).stdout
    assert json.loads(printed)["upkeep"]["mergeable"] == 0


def test_jobs_take_the_option(lake_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []

    def free(lake: Lake) -> Vacuumed | None:
        freed.append(lake.uri)
        return free_old_versions(lake) or Vacuumed(kept=[lake.version], versions=7)

    for module in ("ingest.ray_ingest", "ingest.teachers.ray_extract"):
        monkeypatch.setattr(f"{module}.free_old_versions", free)
    for line in (
        ["ingest", str(lake_copy), str(REAL_SLIDE)],
        ["extract", str(lake_copy), "--teacher", TEACHERS[0]],
    ):
        for more, versions in (([], None), (["--auto-vacuum"], 7)):
            done = CliRunner().invoke(slidelake.app, [*line, *more, "--json"])
            assert done.exit_code == 0, done.output
            answer = json.loads(done.stdout.splitlines()[-1])["freed"]
            assert (answer and answer["versions"]) == versions
    assert freed == [str(lake_copy)] * 2


@pytest.mark.parametrize("command", ["ingest", "extract", "build"])
def test_an_automatic_vacuum_is_off_unless_it_is_asked_for(command: str) -> None:
    commands = cast("TyperGroup", typer.main.get_command(slidelake.app)).commands
    (option,) = [one for one in commands[command].params if one.name == "auto_vacuum"]
    assert option.default is False


MEASURE = """
import re, sys
from featurestore import open_lake
from featurestore.keep.lance_upkeep import upkeep
from ingest.ray_ingest import _result
lake = open_lake(sys.argv[1])
def memory(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
_result(open_lake(sys.argv[2]), ["s0"])  # what is loaded once
before = memory("VmRSS")
lake.info(), upkeep(lake), _result(lake, ["s0"])
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_counting_a_lake_loads_no_pictures(tmp_path: Path) -> None:
    """3,000 slides with pictures of 30 kB are 90 MB; counting them takes a tenth of it."""
    few = add_slides(create_lake(tmp_path / "few", LakeConfig(mpps=(0.5,))), {"s0": 1})
    lake = create_lake(tmp_path / "many", LakeConfig(mpps=(0.5,)))
    for start in range(0, 3000, 500):
        numbers = range(start, start + 500)
        rows = [
            {"slide": n, "slide_id": f"s{n}", "state": "ready", "uri": f"s{n}.svs"}
            | {"thumbnail": n.to_bytes(2) * 15_000}
            for n in numbers
        ]
        with lake.committer.exclusive() as committer:
            committer._upsert_slides(rows)
            committer.apply([])
    command = [sys.executable, "-c", MEASURE, lake.uri, few.uri]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 12_000, done.stdout  # kB
