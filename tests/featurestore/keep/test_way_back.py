"""Lakes with damaged tables: opening fails with a reason, and `restore` brings them back."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import (
    DamageError,
    Lake,
    LakeConfig,
    LakeError,
    create_lake,
    open_lake,
    repair,
    vacuum,
    verify,
)
from featurestore.commits.lance_commit import Committer
from featurestore.errors import AccessError, NewerFormatError
from featurestore.keep import lance_restore
from featurestore.keep.lance_restore import restore
from featurestore.keep.repairing import plan_repair
from featurestore.keep.verify.compact_rows import GrowingColumns
from featurestore.keep.verify.damage import TABLE, TABLE_INDEX, Damage
from featurestore.keep.verify.file_checks import FILE_CHECKS
from featurestore.keep.verify.lance_checked_rows import checked_catalog, checked_slides
from featurestore.keep.verify.lance_checking import check_lake, lake_to_mend
from featurestore.roots import roots_file as roots
from featurestore.roots.lake_settings import settings_or_copy
from featurestore.roots.lance_roots import manifest_path
from featurestore.roots.roots_file import ROOTS_FILE, readable_roots
from featurestore.storage.lock import writer_lease
from featurestore.tables import lance_tables
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES, features_table
from tests.conftest import ROOT
from tests.featurestore.keep.test_keeping import data_files, flip
from tests.worlds.command_lines import Slidelake
from tests.worlds.small_lake import add_slides, add_teacher, contents, cut


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of three slides, one teacher and an earlier version. Not to be changed."""
    folder = tmp_path_factory.mktemp("rich") / "lake"
    lake = create_lake(folder, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_teacher(add_slides(lake, {"a": 5, "b": 3}), "t")
    lake.snapshot("two")
    add_teacher(add_slides(lake, {"c": 4}), "t")
    return folder


@pytest.fixture
def lake(rich: Path, tmp_path: Path) -> Lake:
    """Return a copy that a test may change."""
    shutil.copytree(rich, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def newest_manifest(lake: Lake, rel: str) -> Path:
    return Path(lake.store.path(manifest_path(lake.store, rel, lake.version_of(rel))))


def newest_data(lake: Lake, rel: str) -> Path:
    fragment = lake.table(rel).get_fragments()[-1]
    return Path(lake.store.path(f"{rel}/data/{fragment.metadata.files[0].path}"))


# ---------------------------------------------------------------------- tables that are damaged


@pytest.mark.parametrize("rel", [CATALOG, SLIDES])
@pytest.mark.parametrize("change", ["flip", "gone", "short"])
def test_with_a_damaged_table_nothing_is_a_stray_and_nothing_is_dropped(
    lake: Lake, rel: str, change: str
) -> None:
    rows = {m: lake.table(features_table(m)).count_rows() for m in lake.config.mpps}
    file = newest_data(lake, rel)
    if change == "flip":
        flip(file, file.stat().st_size // 2)
    elif change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    verdict = check_lake(lake.uri)
    assert {(one.part, one.path) for one in verdict.damage} == {(TABLE, rel)}
    assert verdict.whole
    mended = lake_to_mend(lake.uri)
    plan = plan_repair(mended, verdict)
    assert (plan.steps, bool(plan.left)) == ([], True)
    assert f"restore {lake.uri} --at {verdict.whole[0]}" in plan.advice
    assert repair(mended, verdict).left == verdict.damage
    assert rows == {m: open_table(lake.store, features_table(m)).count_rows() for m in rows}
    restore(lake.uri, verdict.whole[0])
    assert verify(open_lake(lake.uri)).ok
    whole = add_teacher(add_slides(open_lake(lake.uri), {"a": 5, "b": 3, "c": 4}), "t")
    assert whole.info()["tiles"] == {"0.5": 12, "2.0": 12}
    assert verify(whole).ok


def test_a_row_of_the_catalog_that_changed_makes_the_catalog_unbelievable(lake: Lake) -> None:
    table = open_table(lake.store, CATALOG)
    table.update({"slide": "7"}, where="slide_id = 'c' AND teacher IS NULL AND mpp = 0.5")
    (Path(lake.uri) / ROOTS_FILE).unlink()
    lake.committer.recover()
    verdict = check_lake(lake.uri)
    assert {one.path for one in verdict.broken_tables} >= {CATALOG}
    assert not [one for one in verdict.damage if one.part == "stray"]
    assert plan_repair(lake_to_mend(lake.uri), verdict).steps == []


def test_a_row_of_slides_that_changed_is_emptied_and_filled_again(lake: Lake) -> None:
    before = contents(lake)
    table = open_table(lake.store, SLIDES)
    table.update({"fingerprint": "'someone else'"}, where="slide_id = 'a'")
    lake.committer.recover()
    verdict = check_lake(lake.uri)
    assert [(one.slide, one.part) for one in verdict.damage] == [("a", "row")]
    done = repair(lake.refreshed(), verdict)
    assert done.slides == ["a"]
    mended = lake.refreshed()
    row = mended.table(SLIDES).to_table(filter="slide_id = 'a'").to_pylist()[0]
    assert (row["slide"], row["state"], row["fingerprint"]) == (0, "pending", None)
    assert mended.bag("a", "t", mpp=0.5).features.shape == (5, 6)  # nothing of it was dropped
    assert verify(mended).ok
    assert contents(add_slides(mended, {"a": 5})) == before


# ---------------------------------------------------------------------- manifests


@pytest.mark.parametrize("rel", [CATALOG, SLIDES, features_table(0.5)])
def test_a_lost_manifest_is_noticed_by_readers_writers_and_verify(lake: Lake, rel: str) -> None:
    newest_manifest(lake, rel).unlink()
    with pytest.raises(DamageError, match=r"gone|lost"):
        open_lake(lake.uri).info()
    with pytest.raises(DamageError, match=rf"(?s){rel}.*slidelake"):
        lake.committer.register([{"slide_id": "z", "uri": "z.svs"}])
    with pytest.raises(DamageError):
        vacuum(lake)
    verdict = check_lake(lake.uri)
    assert {one.path for one in verdict.broken_tables} == {rel}
    back = open_lake(lake.uri, version=verdict.whole[0])
    restore(lake.uri, back.version)
    now = open_lake(lake.uri)
    assert contents(now) == contents(back)
    assert verify(now).ok
    assert now.version > lake.version
    with pytest.raises(LakeError, match="lost"):
        open_lake(lake.uri, version=lake.version).info()  # its number means nothing else now
    assert verify(add_teacher(add_slides(now, {"c": 4}), "t")).ok


def test_a_lake_without_roots_goes_by_the_hint_that_lance_keeps(lake: Lake) -> None:
    (Path(lake.uri) / ROOTS_FILE).unlink()
    newest_manifest(lake, CATALOG).unlink()
    with pytest.raises(DamageError, match="was committed, but the table opens at"):
        open_lake(lake.uri)
    verdict = check_lake(lake.uri)
    assert {one.path for one in verdict.broken_tables} == {CATALOG}
    restore(lake.uri, verdict.whole[0])
    assert verify(open_lake(lake.uri)).ok


# ---------------------------------------------------------------------- restore


def test_restore_makes_a_new_version_and_deletes_nothing(lake: Lake) -> None:
    before = contents(lake)
    files = {path for path in Path(lake.uri).rglob("*") if path.is_file()}
    two = lake.snapshots()["two"]
    done = restore(lake.uri, two)
    now = open_lake(lake.uri)
    assert done.version == now.version > lake.version
    assert contents(now) == contents(open_lake(lake.uri, version="two"))
    assert contents(open_lake(lake.uri, version=lake.version)) == before
    assert files <= {path for path in Path(lake.uri).rglob("*") if path.is_file()}
    assert verify(now).ok
    restore(lake.uri, lake.version)
    assert contents(open_lake(lake.uri)) == before


def test_restore_refuses_a_version_that_is_not_whole_and_waits_for_no_job(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"no version 99 .*; it has .*, and `slidelake") as caught:
        restore(lake.uri, 99)
    told: set[int] = set()
    text = str(caught.value).partition("it has")[2]
    for first, last in re.findall(r"(\d+)(?:-(\d+))?[ ,]", text):
        told.update(range(int(first), int(last or first) + 1))
    manifests = {int(entry["version"]) for entry in lake.table(CATALOG).versions()}
    assert told < manifests  # some are an index's alone
    for version in manifests - told:
        with pytest.raises(LakeError, match="is an index's alone; choose the one before it"):
            restore(lake.uri, version)
    with writer_lease(lake.store, "extract"), pytest.raises(LakeError, match="in use by"):
        restore(lake.uri, lake.version)
    newest_data(lake, CATALOG).unlink()
    with pytest.raises(LakeError, match="is not whole"):
        restore(lake.uri, lake.version)


@pytest.mark.parametrize("lost", ["", "features"])
def test_a_restore_that_is_killed_is_taken_back_or_made_again(
    lake: Lake, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, two = contents(lake), lake.snapshots()["two"]
    goal = contents(open_lake(lake.uri, version="two"))
    if lost:
        newest_manifest(lake, features_table(2.0)).unlink()
    commit = lance_tables.commit
    for calls in range(1, 6):
        left = [calls]

        def dying(*args: Any, left: list[int] = left, **kwargs: Any) -> object:  # noqa: ANN401
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return commit(*args, **kwargs)

        monkeypatch.setattr(lance_restore, "commit", dying)
        try:
            restore(lake.uri, two)
        except KeyboardInterrupt:
            if lost:  # closed, but never something else than was committed
                with pytest.raises(DamageError):
                    open_lake(lake.uri).info()
                with pytest.raises(DamageError):
                    lake.committer.recover()
            else:
                assert contents(open_lake(lake.uri)) == before
                lake.committer.recover()
                assert contents(open_lake(lake.uri)) == before
        else:
            break
        finally:
            monkeypatch.undo()
    restore(lake.uri, two)
    assert contents(open_lake(lake.uri)) == goal
    assert verify(open_lake(lake.uri)).ok


def test_a_manifest_that_cannot_be_read_now_stays_where_it_is(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(lance_restore, "open_table", refuse)
    with pytest.raises(AccessError):
        restore(lake.uri, "two")
    monkeypatch.undo()
    assert not (Path(lake.uri) / lance_restore.ASIDE).exists()
    assert restore(Path(lake.uri), "two").version > lake.version


def test_a_restore_without_lake_json_keeps_the_copy_of_it(lake: Lake) -> None:
    file = Path(lake.uri) / "lake.json"
    text = file.read_bytes()
    file.unlink()
    restore(lake.uri, "two")
    repair(lake_to_mend(lake.uri), check_lake(lake.uri))
    assert file.read_bytes() == text


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1, "mpps": null}', '{"format": 1, "mpps": []}']
)
def test_settings_that_are_damaged_without_a_copy_are_said_so(lake: Lake, text: str) -> None:
    assert settings_or_copy(lake.store) == lake.config
    (Path(lake.uri) / "lake.json").write_text(text)
    assert settings_or_copy(lake.store) == lake.config
    last_roots = readable_roots(lake.store)
    assert last_roots is not None
    roots.write_roots(lake.store, replace(last_roots, texts={}))
    with pytest.raises(DamageError, match=r"lake.json is damaged, and roots.json has no copy"):
        check_lake(lake.uri)


def test_settings_of_a_newer_slidelake_are_no_damage(lake: Lake) -> None:
    (Path(lake.uri) / ROOTS_FILE).unlink()
    (Path(lake.uri) / "lake.json").write_text('{"format": 2}')
    with pytest.raises(NewerFormatError, match="update slidelake"):
        settings_or_copy(lake.store)
    (Path(lake.uri) / "lake.json").write_text('{"format": "up to 9"}')
    with pytest.raises(DamageError, match="is damaged"):
        settings_or_copy(lake.store)


# ---------------------------------------------------------------------- indexes of tables


@pytest.mark.parametrize("rel", [CATALOG, SLIDES])
def test_a_damaged_index_stops_look_ups_and_is_made_again(lake: Lake, rel: str) -> None:
    before = contents(lake)
    file = next((Path(lake.uri) / rel / "_indices").rglob("page_data.lance"))
    file.write_bytes(bytes(file.stat().st_size))
    roots._check.cache_clear()  # as in another process: each file is looked at once
    if rel == CATALOG:  # bags find a slide by its number there
        with pytest.raises(DamageError, match="page_data"):
            open_lake(lake.uri).bag("a", "t", mpp=0.5)
    with pytest.raises(DamageError, match="page_data"):
        lake.committer.register([{"slide_id": "a", "uri": "a.svs"}])
    verdict = check_lake(lake.uri)
    assert [(one.part, one.path) for one in verdict.damage] == [(TABLE_INDEX, rel)]
    assert repair(lake_to_mend(lake.uri), verdict).rebuilt == [f"index of {rel}"]
    assert verify(open_lake(lake.uri)).ok
    assert contents(open_lake(lake.uri)) == before
    where = "slide = 1" if rel == CATALOG else "slide_id = 'a'"
    plan = open_table(lake.store, rel).scanner(filter=where).explain_plan()
    assert "ScalarIndexQuery" in plan
    restore(lake.uri, lake.version)  # it had the damaged index, and gets a new one
    assert verify(open_lake(lake.uri)).ok


# ---------------------------------------------------------------------- what is no damage


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_an_error_of_the_machine_is_never_damage(
    lake: Lake, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lance passes such errors on as text; a store that refuses stands for a disk that does."""

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(lake.store), "read_range", refuse)
    with pytest.raises((AccessError, MemoryError)):
        check_lake(lake.uri)


@pytest.mark.parametrize("place", ["lance_checked_rows.row_crc32", "lance_verify.column_crc32"])
def test_too_little_memory_is_never_damage(
    lake: Lake, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise MemoryError

    monkeypatch.setattr(f"featurestore.keep.verify.{place}", refuse)
    with pytest.raises(MemoryError):
        check_lake(lake.uri)


UNPRIVILEGED = """
import ctypes, sys

if sys.platform == "linux":  # root has the right to read any file until it gives it up
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
from featurestore.errors import AccessError
from featurestore.keep.verify.lance_checking import check_lake

try:
    check_lake(sys.argv[1])
except AccessError as error:
    print(error)
"""


def test_a_file_that_may_not_be_read_is_no_damage(lake: Lake) -> None:
    data_files(lake, 0.5, None)[0].chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, lake.uri],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Permission denied" in done.stdout


# ---------------------------------------------------------------------- what a repair does


def test_repair_asks_above_a_tenth_of_the_rows(lake: Lake) -> None:
    data_files(lake, 0.5, None)[0].unlink()
    verdict = check_lake(lake.uri)
    opened = lake_to_mend(lake.uri)
    plan = plan_repair(opened, verdict)
    assert plan.is_large
    assert sorted(step.description.partition(":")[0] for step in plan.steps) == [
        "slide a",
        "slide b",
    ]
    with pytest.raises(LakeError, match="--yes"):
        repair(opened, verdict, plan=plan)  # unless it is told to
    assert lake.refreshed().version == lake.version
    assert repair(opened, verdict, plan=plan, yes=True).slides == ["a", "b"]
    assert lake.refreshed().tiles_of(mpp=0.5).height == 1
    assert lake.refreshed().tiles_of(mpp=2.0).height == 3  # they were damaged at 0.5 alone


def test_repair_does_what_it_listed_and_nothing_else(lake: Lake) -> None:
    for name in ("a", "b"):
        row = lake.tiles_of(mpp=0.5, slide_ids=[name]).row(0, named=True)
        flip(Path(lake.store.path(row["shard"])), 700)
    verdict = check_lake(lake.uri)
    plan = plan_repair(lake_to_mend(lake.uri), verdict)
    assert len(plan.steps) == 2
    listed = replace(plan, steps=plan.steps[:1])
    assert repair(lake_to_mend(lake.uri), verdict, plan=listed).slides == ["a"]
    assert lake.refreshed().info()["slides"] == {"ready": 2, "failed": 0, "pending": 1}


def test_a_slide_published_by_halves_is_named_and_cut_again(lake: Lake) -> None:
    whole, again = cut(lake, 1, "b", 3), cut(lake, 1, "b", 3, mark="again")
    half = replace(whole, grids={0.5: again.grids[0.5], 2.0: whole.grids[2.0]})
    lake.committer.commit_slides([half])
    (damage,) = check_lake(lake.uri).damage
    assert (damage.slide, damage.part) == ("b", "shard")
    assert "different scans" in damage.description
    assert repair(lake.refreshed(), check_lake(lake.uri)).slides == ["b"]
    mended = add_slides(lake.refreshed(), {"b": 3}, mark="again")
    assert verify(add_teacher(mended, "t")).ok


# ---------------------------------------------------------------------- checksums of early lakes


def test_files_without_checksums_are_counted_and_get_them(lake: Lake) -> None:
    (Path(lake.uri) / ROOTS_FILE).unlink()
    verdict = check_lake(lake.uri)
    assert verdict.ok
    assert verdict.unchecked["files of tables"] > 10
    add_slides(lake, {"d": 2})  # a commit vouches for its own files only
    assert check_lake(lake.uri).unchecked["files of tables"] > 5
    for check in FILE_CHECKS:
        check.add(open_lake(lake.uri))
    assert check_lake(lake.uri).unchecked == {}
    file = next((Path(lake.uri) / SLIDES / "_indices").rglob("page_data.lance"))
    flip(file, 10)
    assert [one.part for one in check_lake(lake.uri).damage] == [TABLE_INDEX]


def test_a_kill_between_the_catalog_and_its_roots_is_no_damage(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.commits.lance_ledger.record_roots", die)
    with pytest.raises(KeyboardInterrupt):
        lake.committer.register([{"slide_id": "z", "uri": "z.svs"}])
    monkeypatch.undo()
    behind = lake.refreshed()
    assert behind.version == lake.version + 1
    assert verify(behind).ok
    behind.committer.recover()
    roots = readable_roots(lake.store)
    assert roots is not None
    assert roots.tables[CATALOG] == behind.version
    vacuum(behind, keep=1)
    assert check_lake(lake.uri).ok


@pytest.mark.parametrize("path", ["lake.json", ROOTS_FILE, "catalog.lance/_refs/tags/two.json"])
def test_roots_are_written_again(lake: Lake, path: str) -> None:
    file = Path(lake.uri) / path
    text = file.read_bytes()
    file.write_bytes(text.replace(b"1", b"2", 1))
    verdict = check_lake(lake.uri)
    assert [(one.part, one.path) for one in verdict.damage] == [("root", path)]
    if path == "lake.json":
        with pytest.raises(DamageError, match=r"lake.json is not what was written"):
            open_lake(lake.uri)
    if "tags" in path:
        with pytest.raises(DamageError, match="snapshot 'two'"):
            open_lake(lake.uri, version="two")
    repair(lake_to_mend(lake.uri), verdict)
    assert check_lake(lake.uri).ok
    if path != ROOTS_FILE:
        assert file.read_bytes() == text
    roots = json.loads((Path(lake.uri) / ROOTS_FILE).read_bytes())
    assert roots["unchecked"] == []


def test_damage_of_a_lake_that_was_made_just_now_is_no_panic(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    assert check_lake(lake.uri).ok
    assert Damage(description="x", part=TABLE).as_dict()["slide"] is None


# ---------------------------------------------------------------------- as a user types it


def test_commands_name_the_table_and_the_way_back(lake: Lake, slidelake: Slidelake) -> None:
    newest_data(lake, CATALOG).unlink()
    done = slidelake("verify", lake.uri, "--json", code=1)
    verdict = json.loads(done.stdout)
    assert {one["path"] for one in verdict["damage"]} == {CATALOG}
    assert "panicked" not in done.stderr
    wrong = slidelake("info", lake.uri, code=1).stderr
    assert CATALOG in wrong
    assert ".rs:" not in wrong
    way = f"slidelake restore {lake.uri} --at {verdict['whole_versions'][0]}"
    assert way in slidelake("repair", lake.uri, code=1).stdout
    assert "is equal to version" in slidelake(*way.split()[1:]).stdout


ENDS_ITSELF = """
import os, pathlib

rename = pathlib.Path.replace

def replace(self, target):
    moved = rename(self, target)
    if moved.name == "reading" and moved.read_text() == "slides.lance":
        os.kill(os.getpid(), SIGNAL)
    return moved

pathlib.Path.replace = replace
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL])
def test_a_file_that_ends_its_reader_is_damage_and_a_kill_from_outside_is_not(
    lake: Lake,
    slidelake: Slidelake,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reader gets the signal just as it begins to read a table."""
    (tmp_path / "sitecustomize.py").write_text(ENDS_ITSELF.replace("SIGNAL", str(int(number))))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if number == signal.SIGKILL:
        text = slidelake("verify", lake.uri, code=2).stderr
        assert "was ended by SIGKILL while it read slides.lance" in text
        assert "no damage" in text
        return
    (damage,) = json.loads(slidelake("verify", lake.uri, "--json", code=1).stdout)["damage"]
    assert (damage["part"], damage["path"]) == (TABLE, SLIDES)
    assert "nothing was changed" in slidelake("repair", lake.uri, code=1).stdout


@pytest.mark.slow
def test_options_of_repair(lake: Lake, slidelake: Slidelake) -> None:
    flip(data_files(open_lake(lake.uri), 0.5, "t")[0], 2)
    listed = slidelake("repair", lake.uri, "--dry-run").stderr
    assert "features of t at 0.5 mpp" in listed
    refused = slidelake("repair", lake.uri, code=2).stderr
    assert "--yes" in refused
    assert verify(open_lake(lake.uri)).damage
    assert "to be extracted again: t at 0.5 mpp" in slidelake("repair", lake.uri, "--yes").stdout
    (Path(lake.uri) / ROOTS_FILE).unlink()
    assert "have no checksum" in slidelake("verify", lake.uri).stdout
    added = json.loads(slidelake("repair", lake.uri, "--checksums", "--json").stdout)["checksums"]
    assert added["files of tables"] > 10


# ---------------------------------------------------------------------- memory


def test_verify_keeps_numbers_alone_and_reads_rows_again_by_position(lake: Lake) -> None:
    again = add_slides(lake, {"a": 6}, mark="again")  # leaves deleted rows in the catalog
    damage: list[Damage] = []
    rows = checked_catalog(again.store, again.version, damage)
    slides = checked_slides(again.store, again.version_of(SLIDES), damage)
    assert rows is not None
    assert slides is not None
    assert damage == []
    columns = [getattr(rows, name) for name in rows.KINDS]
    assert all(column.dtype.kind in "iu" and column.base is None for column in columns)
    assert sum(column.nbytes for column in columns) <= 42 * len(rows.slide)
    table = again.table(CATALOG).to_table(columns=list(rows.READ)).to_pylist()
    backwards = np.arange(len(table))[::-1]
    assert rows.rows(backwards) == table[::-1]
    assert [row["slide"] for row in table] == rows.slide.tolist()
    names = again.slides().collect()["slide_id"].to_list()
    assert sorted(row["slide_id"] for row in slides.again(np.arange(slides.count))) == sorted(names)


def test_batches_are_not_held_by_what_is_kept_of_them() -> None:
    """A view of a batch's numbers would keep the pictures beside them."""
    batch = np.arange(1_000_000)
    kept = GrowingColumns()
    kept.add({"slide": batch[:10]})
    (part,) = kept._parts["slide"]
    assert not np.shares_memory(part, batch)


def test_a_repair_makes_some_slides_pending_at_a_time(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["featurestore.keep.repairing"], "SLIDES_AT_ONCE", 1)
    sizes, reopen = list[int](), Committer.reopen

    def counting(self: Committer, rows: list[dict[str, Any]]) -> None:
        sizes.append(len(rows))
        reopen(self, rows)

    monkeypatch.setattr(Committer, "reopen", counting)
    for path in lake.tiles_of(mpp=0.5)["shard"].to_list()[:2]:
        Path(lake.store.path(path)).unlink()
    done = repair(lake, verify(lake))
    states = dict(lake.refreshed().slides().select("slide_id", "state").collect().iter_rows())
    assert done.slides == ["a", "b"]
    assert sizes == [1, 1]
    assert states == {"a": "pending", "b": "pending", "c": "ready"}
