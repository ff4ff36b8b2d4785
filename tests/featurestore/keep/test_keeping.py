"""Keeping a lake: replaced slides, verify, repair, compact, vacuum, snapshots."""

import json
from pathlib import Path

import lance
import numpy as np
import polars as pl
import pytest

from featurestore import (
    Lake,
    LakeConfig,
    LakeError,
    compact,
    create_lake,
    open_lake,
    repair,
    vacuum,
    verify,
)
from featurestore.commits.lance_features import append_tiles
from featurestore.commits.lance_groups import Group
from featurestore.commits.lance_ledger import Ledger
from featurestore.storage.lock import writer_lease
from featurestore.tables.schema import features_table
from tests.worlds.small_lake import add_slides, add_teacher, contents, cut, values_of


def damage_of(lake: Lake) -> list[tuple[str | None, float | None, str | None]]:
    return [(d["slide"], d["mpp"], d["teacher"]) for d in verify(lake).as_dict()["damage"]]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def data_files(lake: Lake, mpp: float, teacher: str | None) -> list[Path]:
    """Data files of a features table that hold a teacher's column, or the tiles' columns."""
    table = lake.table(features_table(mpp))
    field = {f.name(): f.id() for f in table.lance_schema.fields()}[teacher or "tile_id"]
    return [
        Path(lake.store.path(features_table(mpp))) / "data" / str(file.path)
        for fragment in table.get_fragments()
        for file in fragment.metadata.files
        if field in file.fields
    ]


# ---------------------------------------------------------------------- scanned again


def test_new_scan_replaces_its_rows_and_no_others(small: Lake) -> None:
    before = add_teacher(small, "t")
    cutting = cut(before, 0, "a", 7, mark="again")
    before.committer.commit_slides([cutting])
    after = before.refreshed()
    assert after.info()["tiles"] == {"0.5": 10, "2.0": 10}
    assert verify(after).ok
    with pytest.raises(LakeError, match="run extract"):
        after.bag("a", "t", mpp=0.5)
    old = before.bag("b", "t", mpp=0.5)
    new = after.bag("b", "t", mpp=0.5)
    np.testing.assert_array_equal(old.tile_id, new.tile_id)
    np.testing.assert_array_equal(old.features, new.features)
    assert (
        open_lake(small.uri, version=before.version).bag("a", "t", mpp=0.5).features.shape[0] == 5
    )
    complete = add_teacher(after, "t")
    bag = complete.bag("a", "t", mpp=0.5)
    np.testing.assert_array_equal(bag.features, values_of(bag.tile_id, 6).astype(np.float16))
    assert complete.info()["features"][0]["complete"]
    before.committer.commit_slides([cutting])
    assert contents(complete.refreshed()) == contents(complete)


def test_teacher_on_a_fragment_with_replaced_rows(small: Lake) -> None:
    after = add_slides(small, {"a": 7}, mark="again")
    done = add_teacher(after, "t")
    assert verify(done).ok
    for name in ("a", "b"):
        bag = done.bag(name, "t", mpp=2.0)
        np.testing.assert_array_equal(bag.features, values_of(bag.tile_id, 6).astype(np.float16))


# ---------------------------------------------------------------------- verify and repair


def test_clean_lake_is_clean_and_says_what_was_checked(small: Lake) -> None:
    verdict = verify(add_teacher(small, "t"))
    assert verdict.ok
    counts = {name: verdict.checked[name] for name in ("slides", "tiles", "features", "shards")}
    assert counts == {"slides": 2, "tiles": 16, "features": 4, "shards": 4}
    assert json.loads(json.dumps(verdict.as_dict()))["damage"] == []


def test_sample_reads_some_slides_only(small: Lake) -> None:
    lake = add_slides(small, {f"s{i}": 2 for i in range(40)})
    some, whole = verify(lake, sample=0.3), verify(lake)
    assert 0 < some.checked["tiles"] < whole.checked["tiles"]
    assert some.checked["slides"] == whole.checked["slides"] == 42


@pytest.mark.parametrize(("slide", "row"), [("a", 0), ("a", 4), ("b", 0), ("b", 2)])
def test_flipped_bit_in_features_is_named_and_repaired(small: Lake, slide: str, row: int) -> None:
    lake = add_teacher(add_teacher(small, "t"), "u")
    whole = contents(lake)
    file = data_files(lake, 0.5, "t")[0]
    value = lake.bag(slide, "t", mpp=0.5).features[row].tobytes()
    flip(file, file.read_bytes().index(value) + 5)
    lake = open_lake(lake.uri)
    assert damage_of(lake) == [(slide, 0.5, "t")]
    done = repair(lake, verify(lake), yes=True)
    assert (done.slides, [c[:2] for c in done.columns], done.left) == ([], [("t", 0.5)], [])
    mended = lake.refreshed()
    assert verify(mended).ok
    with pytest.raises(LakeError, match="run extract"):
        mended.bag(slide, "t", mpp=0.5)
    (other,) = {"a", "b"} - {slide}  # it lies in the same file, and stays
    kept = mended.bag(other, "t", mpp=0.5)
    np.testing.assert_array_equal(kept.features, values_of(kept.tile_id, 6).astype(np.float16))
    assert mended.bag("a", "u", mpp=0.5).features.shape == (5, 6)
    assert contents(add_teacher(mended, "t")) == whole


def test_flipped_bit_in_tiles_is_named_and_repaired(small: Lake) -> None:
    lake = add_teacher(add_slides(small, {"c": 4}), "t")
    whole = contents(lake)
    flip(data_files(lake, 2.0, None)[1], 3)
    lake = open_lake(lake.uri)
    assert set(damage_of(lake)) == {("c", 2.0, None)}
    done = repair(lake, verify(lake), yes=True)
    assert (done.slides, done.left) == (["c"], [])
    mended = lake.refreshed()
    assert verify(mended).ok
    assert mended.info()["slides"] == {"ready": 2, "failed": 0, "pending": 1}
    assert contents(add_teacher(add_slides(mended, {"c": 4}), "t")) == whole


@pytest.mark.parametrize("teacher", [None, "t"])
def test_vanished_data_file_is_named_and_repaired(small: Lake, teacher: str | None) -> None:
    lake = add_teacher(add_slides(small, {"c": 4}), "t")
    whole = contents(lake)
    data_files(lake, 0.5, teacher)[0].unlink()
    lake = open_lake(lake.uri)
    places = set(damage_of(lake))
    assert {place for place in places if place[2] == teacher} == {
        ("a", 0.5, teacher),
        ("b", 0.5, teacher),
    }
    repair(lake, verify(lake), yes=True)
    assert verify(lake.refreshed()).ok
    again = add_slides(lake.refreshed(), {"a": 5, "b": 3, "c": 4})
    assert contents(add_teacher(again, "t")) == whole


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_shard_keeps_its_features(small: Lake, damage: str) -> None:
    lake = add_teacher(small, "t")
    whole = contents(lake)
    row = lake.tiles_of(mpp=0.5, slide_ids=["b"]).row(0, named=True)
    shard = Path(lake.store.path(row["shard"]))
    if damage == "flip":
        flip(shard, 600)
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:700])
    else:
        shard.unlink()
    assert damage_of(lake) == [("b", 0.5, None)]
    done = repair(lake, verify(lake), yes=True)
    assert (done.slides, done.columns) == (["b"], [])
    again = add_slides(lake.refreshed(), {"b": 3})
    assert verify(again).ok
    assert again.bag("b", "t", mpp=0.5).features.shape == (3, 6)
    assert contents(again) == whole


def test_row_of_slides_that_changed_is_named(small: Lake) -> None:
    table = lance.dataset(small.store.url("slides.lance"))
    table.update({"patient_id": "'someone else'"}, where="slide_id = 'a'")
    small.committer.recover()
    small.committer.register([{"slide_id": "z", "uri": "z.svs"}])
    assert damage_of(small.refreshed()) == [("a", None, None)]


def test_rows_without_a_catalog_row_are_named_and_dropped(small: Lake) -> None:
    rel = features_table(0.5)
    rows = small.table(rel).to_table(filter="slide = 1")
    lance.write_dataset(rows, small.store.url(rel), mode="append")
    small.committer.register([{"slide_id": "z", "uri": "z.svs"}])
    lake = small.refreshed()
    assert damage_of(lake) == [("b", 0.5, None)]
    repair(lake, verify(lake), yes=True)
    assert verify(lake.refreshed()).ok
    assert lake.refreshed().tiles(mpp=0.5).collect().height == 8


def test_work_of_a_committer_that_lost_its_lock_is_taken_out(small: Lake) -> None:
    before = contents(small)
    late, group = [cut(small, 0, "a", 5)], Group()
    for mpp in (0.5, 2.0):  # it was suspended, and goes on too late
        append_tiles(small.committer.ledger, mpp, late, [], group)
    row = small.table("slides.lance").to_table(filter="slide = 0").to_pylist()[0]
    small.committer._upsert_slides([row], group)
    small.committer.recover()
    assert contents(small.refreshed()) == before
    assert verify(small.refreshed()).ok
    assert lance.dataset(small.store.url(features_table(0.5))).count_rows() == 8


# ---------------------------------------------------------------------- compact and vacuum


def test_compact_merges_and_changes_no_answer(small: Lake) -> None:
    lake = small
    for number in range(6):
        lake = add_slides(lake, {f"s{number}": number + 1})
    lake = add_teacher(lake, "t")
    lake = add_teacher(add_slides(lake, {"s2": 9}, mark="again"), "t")
    lake = add_slides(lake, {"later": 3})
    before, old = contents(lake), lake.version
    done = compact(lake)
    after = lake.refreshed()
    assert done.before > done.after
    assert len(after.table(features_table(0.5)).get_fragments()) == 2  # with "t", and without
    assert verify(after).ok
    assert contents(after) == before
    assert contents(open_lake(lake.uri, version=old)) == before
    for name in ("a", "s2", "s5"):
        bag = after.bag(name, "t", mpp=2.0)
        np.testing.assert_array_equal(bag.features, values_of(bag.tile_id, 6).astype(np.float16))
    assert compact(after).after == 0
    assert add_teacher(after, "t").info()["features"][0]["complete"]


def test_compact_keeps_to_the_size(small: Lake) -> None:
    lake = small
    for number in range(6):
        lake = add_slides(lake, {f"s{number}": 4})
    compact(lake, rows=10)
    table = lake.refreshed().table(features_table(0.5))
    assert all(fragment.count_rows() <= 10 for fragment in table.get_fragments())
    assert verify(lake.refreshed()).ok


def test_vacuum_frees_what_no_kept_version_names(small: Lake) -> None:
    lake = add_teacher(small, "t")
    lake.snapshot("first")
    first = contents(lake)
    lake = add_slides(lake, {"a": 9}, mark="again")
    for number in range(4):
        lake = add_slides(lake, {f"s{number}": 2})
    compact(lake)
    orphan = Path(lake.store.path(f"{features_table(0.5)}/data/orphan.lance"))
    orphan.write_bytes(b"x" * 1000)
    scratch = Path(lake.store.path("tiles/mpp0.5/.000009-x.tar.12.tmp"))
    scratch.write_bytes(b"half")
    newest = lake.refreshed()
    now, middle = contents(newest), newest.version - 3
    trial = vacuum(newest, keep=1, dry_run=True)
    assert orphan.exists()
    done = vacuum(newest, keep=1)
    assert (trial.files, trial.bytes, trial.versions) == (done.files, done.bytes, done.versions)
    assert done.kept == [lake.snapshots()["first"], newest.version]
    assert not orphan.exists()
    assert not scratch.exists()
    assert contents(open_lake(lake.uri)) == now
    assert contents(open_lake(lake.uri, version="first")) == first
    assert verify(open_lake(lake.uri)).ok
    assert verify(open_lake(lake.uri, version="first")).ok
    with pytest.raises(LakeError, match=f"no version {middle}"):
        open_lake(lake.uri, version=middle)
    again = vacuum(open_lake(lake.uri), keep=1)
    assert (again.files, again.versions) == (0, 0)


def test_versions_that_runs_read_are_kept(small: Lake) -> None:
    read = small.version
    small.write_json("runs/mine/result.json", {"lake_version": read})
    lake = add_slides(add_slides(small, {"c": 2}), {"d": 2})
    assert read in vacuum(lake, keep=1).kept
    assert open_lake(lake.uri, version=read).info()["tiles"]["0.5"] == 8


def test_vacuum_and_compact_wait_for_no_live_writer(small: Lake) -> None:
    with writer_lease(small.store, "ingest of 12 slides"):
        for work in (vacuum, compact):
            with pytest.raises(LakeError, match="ingest of 12 slides"):
                work(small)
    vacuum(small)


# ---------------------------------------------------------------------- snapshots


def test_snapshots_open_by_name(small: Lake) -> None:
    small.snapshot("paper-v1")
    small.snapshot("paper-v1")
    lake = add_slides(small, {"c": 2})
    assert open_lake(lake.uri, version="paper-v1").version == small.version
    assert lake.snapshots() == {"paper-v1": small.version}
    assert open_lake(lake.uri, version=str(small.version)).version == small.version
    with pytest.raises(LakeError, match="is taken by version"):
        lake.snapshot("paper-v1")
    with pytest.raises(LakeError, match="can't be one"):
        lake.snapshot("1 bad/name")
    with pytest.raises(LakeError, match="no snapshot 'nope'; it has: paper-v1"):
        open_lake(lake.uri, version="nope")


# ---------------------------------------------------------------------- the catalog's own upkeep


def test_many_commits_leave_few_catalog_fragments(
    small: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.commits.lance_ledger.CATALOG_FRAGMENTS", 4)
    monkeypatch.setattr("featurestore.commits.lance_ledger.SLIDES_FRAGMENTS", 4)
    lake = small
    for number in range(15):
        lake = add_slides(lake, {f"s{number}": 1})
    assert len(lake.table("catalog.lance").get_fragments()) <= 6
    assert len(lake.table("slides.lance").get_fragments()) <= 12
    assert verify(lake).ok
    assert lake.tiles_of(mpp=0.5, slide_ids=["s3", "a", "nobody"])["slide_id"].to_list() == [
        "a",
        "s3",
    ]
    assert vacuum(lake, keep=2).versions > 0  # also with compactions among the versions
    lake = lake.refreshed()
    plan = lake.table("catalog.lance").scanner(filter="slide = 3").explain_plan()
    assert "ScalarIndexQuery" in plan
    assert lake.tiles_of(mpp=0.5).filter(pl.col("tiles") == 1).height == 15


@pytest.mark.parametrize("addition", ["a teacher", "a slide"])
def test_work_that_ended_before_the_catalog_named_it_is_named_by_the_next(
    tmp_path: Path, addition: str
) -> None:
    lake = add_slides(create_lake(tmp_path / "lake", LakeConfig()), {"a": 3})

    def work() -> None:
        if addition == "a teacher":
            lake.committer.add_teacher(0.5, "t", 4, {"weights": "t"})
        else:
            lake.committer.register([{"slide_id": "b", "uri": "b.svs"}])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "apply", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            work()
    before = lake.refreshed()
    assert ("t" in before.teachers(mpp=0.5), before.slides().collect().height) == (False, 1)
    work()
    after = lake.refreshed()
    teacher = addition == "a teacher"
    assert "t" in after.teachers(mpp=0.5) or not teacher
    assert after.slides().collect().height == (1 if teacher else 2)
    assert verify(after).ok
    work()
    assert lake.refreshed().version == after.version
