"""Slides, teachers and annotations dropped and renamed: one commit each, whatever is killed."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from featurestore import Lake, LakeError, compact, open_lake, repair, vacuum, verify
from featurestore.annotations.annotating import annotate, set_patients
from featurestore.commits.lance_commit import Committer
from featurestore.edits import drop_and_rename
from featurestore.edits.drop_and_rename import drop, rename
from featurestore.keep.lance_copy import copy_lake
from featurestore.keep.lance_restore import restore
from featurestore.keep.verify import lance_annotation_check
from featurestore.storage.lock import writer_lease
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import features_table
from tests.worlds.command_lines import Slidelake
from tests.worlds.s3 import Bucket
from tests.worlds.small_lake import add_slides, add_teacher, contents

REGIONS = pl.DataFrame({"slide_id": ["a", "c"], "x": [0, 300], "y": [9, 9], "mark": ["T", "S"]})
GRADES = pl.DataFrame({"slide_id": ["a", "b"], "grade": [1, 2]})


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lake of three slides in two fragments, with two teachers and two annotations."""
    from featurestore import LakeConfig, create_lake

    folder = tmp_path_factory.mktemp("rich") / "lake"
    lake = create_lake(folder, LakeConfig(mpps=(0.5, 2.0)))
    lake = add_slides(add_slides(lake, {"a": 5, "b": 3}), {"c": 4})
    lake = add_teacher(add_teacher(lake, "t"), "u", dim=3)
    annotate(lake, REGIONS, "region", mpp=0.5, source="regions.csv")
    annotate(lake.refreshed(), GRADES, "clinical")
    return folder


@pytest.fixture
def lake(rich: Path, tmp_path: Path) -> Lake:
    """Return a copy that a test may change."""
    shutil.copytree(rich, tmp_path / "lake")
    return open_lake(tmp_path / "lake")


def whole(lake: Lake) -> dict[str, object]:
    """Return all contents of a lake, annotations included."""
    tables = contents(lake)
    for name in lake.annotations():
        tables[name] = lake.annotation(name).collect().sort(pl.all()).to_dict(as_series=False)
    patients = lake.slides().select("slide_id", "patient_id").collect().sort("slide_id")
    return {**tables, "patients": patients.rows()}


def test_a_dropped_slide_is_gone_and_its_number_is_never_used_again(lake: Lake) -> None:
    done = drop(lake, "slide", ["c"])
    after = lake.refreshed()
    assert done.version == after.version == done.before + 1
    assert after.slides().collect()["slide_id"].to_list() == ["a", "b"]
    assert set(after.catalog().collect()["slide_id"]) == {"a", "b"}
    assert after.info()["slides"] == {"ready": 2, "failed": 0}
    assert after.tiles(mpp=0.5).collect().height == 8
    with pytest.raises(LakeError, match="slide 'c' is not in"):
        after.bag("c", "t", mpp=0.5)
    assert open_lake(lake.uri, version=done.before).bag("c", "t", mpp=0.5).features.shape == (4, 6)
    assert (verify(after).ok, verify(after).checked["slides"]) == (True, 2)
    again = add_slides(after, {"c": 2})
    numbers = dict(again.slides().select("slide_id", "slide").collect().iter_rows())
    assert numbers == {"a": 0, "b": 1, "c": 3}
    assert verify(again).ok


def test_dropping_twice_says_so_and_an_unknown_name_is_an_error(lake: Lake) -> None:
    for kind, name in (("slide", "a"), ("teacher", "t")):
        assert drop(lake, kind, [name]).done  # type: ignore[arg-type]
        twice = drop(lake.refreshed(), kind, [name])  # type: ignore[arg-type]
        assert not twice.done
        assert twice.version == lake.refreshed().version
    with pytest.raises(LakeError, match=r"has no annotation 'regoin'.*did you mean 'region'"):
        drop(lake.refreshed(), "annotation", ["regoin"])
    with pytest.raises(LakeError, match="slide 'B1' is not in"):
        drop(lake.refreshed(), "slide", ["B1"])
    with pytest.raises(LakeError, match="has no teacher 'v'; there are: u"):
        drop(lake.refreshed(), "teacher", ["v"])


def test_a_dropped_teacher_leaves_no_trace_and_comes_back_as_another(lake: Lake) -> None:
    drop(lake, "teacher", ["t"])
    after = lake.refreshed()
    assert list(after.teachers(mpp=0.5)) == ["u"]
    assert set(after.catalog().collect()["teacher"].drop_nulls()) == {"region", "u"}
    assert verify(after).ok
    again = add_teacher(after, "t", dim=4)
    assert again.bag("a", "t", mpp=2.0).features.shape == (5, 4)
    assert verify(again).ok


def test_a_renamed_slide_keeps_everything_but_its_name(lake: Lake) -> None:
    before = lake.bag("a", ["t", "u"], mpp=0.5).features.copy()
    sums = lake.catalog().filter(pl.col("slide") == 0).collect().sort("mpp", "teacher")["crc32"]
    done = rename(lake, "a", "A-1")
    after = lake.refreshed()
    assert done.version == done.before + 1
    assert np.array_equal(after.bag("A-1", ["t", "u"], mpp=0.5).features, before)
    same = after.catalog().filter(pl.col("slide") == 0).collect().sort("mpp", "teacher")["crc32"]
    assert same.to_list() == sums.to_list()
    assert set(after.tiles(mpp=2.0).collect()["slide_id"]) == {"A-1", "b", "c"}
    assert after.annotation("clinical").collect()["slide_id"].to_list() == ["A-1", "b"]
    assert "A-1" in after.annotation("region").collect()["slide_id"]
    assert verify(after).ok
    assert not rename(after, "a", "A-1").done
    compact(after)
    assert verify(after.refreshed()).ok
    assert np.array_equal(after.refreshed().bag("A-1", ["t", "u"], mpp=0.5).features, before)


def test_teachers_change_names_even_with_each_other(lake: Lake) -> None:
    before = {name: lake.bag("b", name, mpp=0.5).features.copy() for name in ("t", "u")}
    identity = lake.identity("t", mpp=0.5)
    compact(lake)  # both columns lie in one file now, under their first names
    for old, new in (("t", "w"), ("u", "t"), ("w", "u")):
        rename(lake.refreshed(), old, new)
    after = lake.refreshed()
    assert np.array_equal(after.bag("b", "u", mpp=0.5).features, before["t"])
    assert np.array_equal(after.bag("b", "t", mpp=0.5).features, before["u"])
    assert after.identity("u", mpp=0.5) == identity
    assert verify(after).ok
    for name in ("a b", "tissue"):
        with pytest.raises(LakeError, match="can't name a teacher"):
            rename(after, "t", name)
    with pytest.raises(LakeError, match=r"'region' names a.* annotation"):
        rename(after, "t", "region")


def test_annotations_are_renamed_and_dropped(lake: Lake) -> None:
    rename(lake, "region", "area")
    rename(lake.refreshed(), "clinical", "grades")
    after = lake.refreshed()
    assert list(after.annotations()) == ["area", "grades"]
    assert after.annotation("area").collect()["mark"].to_list() == ["T", "S"]
    assert "area" in after.tiles(mpp=0.5).collect_schema()
    assert verify(after).ok
    drop(after, "annotation", ["area", "grades"])
    assert after.refreshed().annotations() == {}
    assert "area" not in after.refreshed().tiles(mpp=0.5).collect_schema()
    assert list(open_lake(lake.uri, version=after.version).annotations()) == ["area", "grades"]
    before = whole(after)
    restore(lake.uri, after.version)
    assert whole(lake.refreshed()) == before
    assert verify(lake.refreshed()).ok


def test_nothing_is_dropped_or_renamed_under_a_job_that_writes(lake: Lake) -> None:
    before = lake.version
    with writer_lease(lake.store, "extract of t"):
        edits: tuple[Callable[[], object], ...] = (
            lambda: drop(lake, "slide", ["a"]),
            lambda: drop(lake, "teacher", ["t"]),
            lambda: rename(lake, "a", "A"),
        )
        for edit in edits:
            with pytest.raises(LakeError, match="in use by extract of t"):
                edit()
    assert lake.refreshed().version == before


def test_what_names_a_dropped_teacher_is_said(lake: Lake) -> None:
    lake.write_json("runs/r1/config.json", {"features": ["t+u"]})
    lake.write_json("runs/r2/config.json", {"features": ["tt"]})
    lake.write_json("stats/t@mpp0.5/k/card.json", {"slides": ["a"]})
    lake.write_json("students/s/card.json", {"teachers": ["t"]})
    assert drop(lake, "teacher", ["t"]).named_in == ("runs/r1", "stats/t@mpp0.5", "students/s")
    assert rename(lake.refreshed(), "a", "z").named_in == ("stats/t@mpp0.5",)


def test_what_names_a_teacher_is_said_of_large_files_too(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drop_and_rename, "PIECE_BYTES", 7)  # the name lies in two pieces
    lake.write_json("runs/r1/predictions.json", {"labels": [0] * 20, "features": "teacher-t+u"})
    lake.write_json("runs/r2/predictions.json", {"labels": [0] * 20, "features": "teacher-tt"})
    assert list(drop_and_rename.named_in(lake, ["teacher-t"])) == ["runs/r1"]


def test_renaming_what_never_was_is_an_error_though_the_new_name_is_taken(
    lake: Lake, slidelake: Slidelake
) -> None:
    for old, new in (("T", "t"), ("tt", "u"), ("aa", "a"), ("regoin", "region"), ("C", "clinical")):
        with pytest.raises(LakeError, match=f"has no slide, teacher or annotation '{old}'"):
            rename(lake, old, new)
    assert "did you mean 'region'" in slidelake("rename", lake.uri, "regoin", "t", code=2).stderr


def test_a_rename_made_before_is_that_of_the_kind_asked_for(lake: Lake) -> None:
    pairs = [("t", "w", "teacher"), ("a", "w", "slide"), ("region", "area", "annotation")]
    for old, new, kind in [*pairs, ("clinical", "grades", "annotation")]:
        assert rename(lake, old, new).done
        again = rename(lake, old, new)
        assert (again.what, again.done) == (kind, False)
        assert not rename(lake, old, new, what=kind).done  # type: ignore[arg-type]
    with pytest.raises(LakeError, match="has no slide 't'"):
        rename(lake, "t", "w", what="slide")


class KilledError(BaseException):
    """Stands for the end of a process: nothing after it is run."""


class DyingLake(Lake):
    """A lake whose committer dies before its n-th commit."""

    dies_at = 0

    @property
    def committer(self) -> Committer:
        """Return a committer that counts its commits."""
        return DyingCommitter(self.store, self.config)

    def refreshed(self) -> "DyingLake":
        """Return the newest version of the same lake."""
        return DyingLake(self.store, self.config)


class DyingCommitter(Committer):
    """A committer that counts its commits from the lock on."""

    @contextlib.contextmanager
    def exclusive(self, *, recover: bool = True) -> Iterator[Self]:
        """Do what the parent does, and then let the clock run."""
        with super().exclusive(recover=recover):
            self._check = self._count
            yield self

    def _count(self) -> None:
        DyingLake.dies_at -= 1
        if DyingLake.dies_at == 0:
            raise KilledError


EDITS: dict[str, Callable[[Lake], Any]] = {
    "drop slide": lambda lake: drop(lake, "slide", ["a", "c"]),
    "drop teacher": lambda lake: drop(lake, "teacher", ["t"]),
    "rename slide": lambda lake: rename(lake, "a", "A"),
    "rename teacher": lambda lake: rename(lake, "t", "tt"),
    "rename annotation": lambda lake: rename(lake, "region", "area"),
    "annotate again": lambda lake: annotate(
        lake, REGIONS.with_columns(mark=pl.lit("new")), "region", mpp=2.0, replace_old=True
    ),
    "drop annotation": lambda lake: drop(lake, "annotation", ["region"]),
    "patients": lambda lake: set_patients(
        lake, pl.DataFrame({"slide_id": ["a", "b"], "patient_id": ["P", "P"]})
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_that_is_killed_is_seen_before_or_after(
    name: str, rich: Path, tmp_path: Path
) -> None:
    shutil.copytree(rich, tmp_path / "whole")
    EDITS[name](open_lake(tmp_path / "whole"))
    before, after = whole(open_lake(rich)), whole(open_lake(tmp_path / "whole"))
    assert before != after
    deaths, folder = 0, tmp_path / "killed"
    shutil.copytree(rich, folder)
    for at in range(1, 40):
        DyingLake.dies_at = at
        opened = open_lake(folder)
        with contextlib.suppress(KilledError):
            EDITS[name](DyingLake(opened.store, opened.config))
            break
        deaths += 1
        assert whole(open_lake(folder)) == before
        open_lake(folder).committer.recover()
        assert whole(open_lake(folder)) == before
    assert deaths > 1
    ended = open_lake(folder)
    assert whole(ended) == after
    vacuum(ended, keep=1)
    assert whole(open_lake(folder)) == after
    assert verify(open_lake(folder)).ok


def by_hand(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Columns of lists, structs and vectors of float32, as somebody may add them."""
    rows = batch.num_rows
    vectors = pa.array([[1.0, 2.0]] * rows, pa.list_(pa.float32(), 2))
    lists, structs = pa.array([[1, 2]] * rows), pa.array([{"u": 1}] * rows)
    return pa.record_batch([lists, structs, vectors], names=["pairs", "facts", "short"])


def test_a_column_that_somebody_added_by_hand_breaks_nothing(lake: Lake) -> None:
    for mpp in lake.config.mpps:
        table = open_table(lake.store, features_table(mpp))
        table.add_columns({"mine": "x * 2", "words": "slide_id"})
        open_table(lake.store, features_table(mpp)).add_columns(by_hand, read_columns=["x"])
    lake.committer.recover()
    lake = lake.refreshed()
    assert [row["teacher"] for row in lake.info()["features"]] == ["t", "u", "t", "u"]
    assert {row["column"] for row in lake.info()["other_columns"]} == {
        "mine",
        "words",
        "pairs",
        "facts",
        "short",
    }
    assert verify(lake).ok
    assert lake.bags("t", mpp=0.5)[0].features.shape == (5, 6)
    batches = list(lake.stream("t", mpp=0.5, batch_tiles=4))
    assert sum(len(batch.tile_id) for batch in batches) == 12
    lake = add_slides(lake, {"d": 6})
    compact(lake)
    lake = add_teacher(lake.refreshed(), "v", dim=2)
    assert verify(lake).ok
    frame = lake.tiles(mpp=0.5).filter(pl.col("slide_id") != "d").collect()
    assert (frame["mine"] == frame["x"] * 2).all()
    assert (frame["words"] == frame["slide_id"]).all()
    assert frame["pairs"].to_list() == [[1, 2]] * 12
    assert frame["facts"].to_list() == [{"u": 1}] * 12
    assert frame["short"].to_list() == [[1.0, 2.0]] * 12
    before = lake.bag("b", "t", mpp=0.5).features.copy()
    rename(lake, "t", "w")  # it lies in one file with the lists and structs
    assert np.array_equal(lake.refreshed().bag("b", "w", mpp=0.5).features, before)
    with pytest.raises(LakeError, match="'mine' is a column of other kind"):
        add_teacher(lake, "mine")


def test_damage_to_an_annotation_of_tiles_is_found_and_taken_out(lake: Lake) -> None:
    before = lake.annotation("region").collect()
    table = lake.table(features_table(0.5))
    field = next(f.id() for f in table.lance_schema.fields() if f.name() == "region")
    (path,) = {
        file.path
        for fragment in table.get_fragments()[:1]
        for file in fragment.metadata.files
        if field in file.fields
    }
    file = Path(lake.store.path(f"{features_table(0.5)}/data/{path}"))
    file_bytes = bytearray(file.read_bytes())
    file_bytes[file_bytes.index(b"T")] ^= 1
    file.write_bytes(bytes(file_bytes))
    verdict = verify(lake)
    assert [damage.teacher for damage in verdict.damage] == ["region"]
    repair(lake, verdict, yes=True)
    assert verify(lake.refreshed()).ok
    (slide,) = {damage.slide for damage in verdict.damage}
    left = set(lake.refreshed().annotation("region").collect()["slide_id"].to_list())
    assert left == set(before["slide_id"]) - {slide}


def tables_of_annotations(lake: Lake) -> set[str]:
    """Folders in which there are files."""
    return {file.path.split("/")[1] for file in lake.store.walk("annotations")}


def test_a_table_of_an_annotation_is_verified_and_copied(lake: Lake, tmp_path: Path) -> None:
    rename(lake, "a", "A")  # leaves the table of before for the versions of before
    copied = copy_lake(lake.uri, tmp_path / "copy")
    twin = open_lake(copied.uri)
    assert whole(twin) == whole(lake.refreshed())
    one = twin.annotations()["clinical"]
    (file,) = Path(twin.store.path(f"{one.path}/data")).iterdir()
    file_bytes = file.read_bytes()
    file.write_bytes(file_bytes.replace((2).to_bytes(8, "little"), (3).to_bytes(8, "little"), 1))
    (damage,) = verify(open_lake(copied.uri)).damage
    assert "annotation 'clinical' of slides" in damage.description
    assert repair(twin, verify(twin)).left
    file.unlink()
    (damage,) = verify(open_lake(copied.uri)).damage
    assert "can't be read" in damage.description
    annotate(
        twin, GRADES.with_columns(slide_id=pl.Series(["A", "b"])), "clinical", replace_old=True
    )
    assert verify(twin.refreshed()).ok
    assert len(tables_of_annotations(lake)) == 2
    vacuum(lake.refreshed(), keep=1)
    assert len(tables_of_annotations(lake)) == 1
    assert whole(twin.refreshed()) == whole(lake.refreshed())


def test_a_table_of_an_annotation_is_never_held_whole(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a whole table was read")

    monkeypatch.setattr("featurestore.keep.verify.lance_annotation_check.BATCH_ROWS", 1)
    monkeypatch.setattr(lance.LanceDataset, "to_table", refuse)
    annotation = lake.annotations()["clinical"]
    assert list(lance_annotation_check._check(lake, annotation)) == []
    (damage,) = lance_annotation_check._check(lake, replace(annotation, crc32=1))
    assert "or other ones" in damage.description


@pytest.mark.slow
def test_a_lake_in_a_bucket_is_edited_alike(bucket: Bucket, lake: Lake) -> None:
    twin = open_lake(copy_lake(lake.uri, bucket.uri).uri)
    for opened in (lake, twin):
        annotate(opened, GRADES.with_columns(late=pl.lit(1.5)), "late")
        rename(opened.refreshed(), "a", "A")
        drop(opened.refreshed(), "teacher", ["u"])
        rename(opened.refreshed(), "region", "area")
    assert whole(twin.refreshed()) == whole(lake.refreshed())
    assert verify(twin.refreshed()).ok
