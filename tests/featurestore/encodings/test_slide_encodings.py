"""Vectors of slides in a lake: written in one commit, read while their tiles are the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from featurestore import (
    DamageError,
    IdentityError,
    Lake,
    LakeConfig,
    LakeError,
    Licence,
    copy_lake,
    create_lake,
    drop,
    open_lake,
    query,
    rename,
    set_patients,
    vacuum,
    verify,
)
from featurestore.encodings import SlideEncoding, kept_rows, put_vectors, sources_of
from tests.worlds.small_lake import add_slides, add_teacher

NAME = "mean.t"
ENCODING = SlideEncoding(
    name=NAME,
    unit="slide",
    columns=("t",),
    mpp=0.5,
    dim=3,
    identity={"encoder": "mean"},
    licence=Licence(text="MIT", forbids=("commercial use",)),
)


def encoded(lake: Lake, encoding: SlideEncoding = ENCODING, seed: int = 0) -> Lake:
    """Put a vector of each slide or patient into the lake."""
    sources = sources_of(lake, encoding.columns, mpp=encoding.mpp, unit=encoding.unit)
    numbers = np.random.default_rng(seed).normal(size=(sources.height, encoding.dim))
    vectors = pl.Series("vector", numbers.astype(np.float32), pl.Array(pl.Float32, encoding.dim))
    put_vectors(lake, encoding, sources.drop("slides").with_columns(vectors))
    return lake.refreshed()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of two slides with vectors, of which each test gets a copy."""
    lake = create_lake(tmp_path_factory.mktemp("encoded") / "lake", LakeConfig(mpps=(0.5, 2.0)))
    encoded(add_teacher(add_slides(lake, {"a": 5, "b": 3}), "t"))
    return Path(lake.store.root)


@pytest.fixture
def lake(template: Path, tmp_path: Path) -> Lake:
    return open_lake(shutil.copytree(template, tmp_path / "lake"))


def test_vectors_are_read_as_they_were_written(lake: Lake) -> None:
    frame = lake.slide_features(NAME).collect()
    assert frame.columns == ["slide_id", "tiles", "vector"]
    assert frame["slide_id"].to_list() == ["a", "b"]
    assert frame["tiles"].to_list() == [5, 3]
    numbers = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    assert np.array_equal(frame["vector"].to_numpy(), numbers)
    [one] = lake.slide_encodings()
    assert replace(one, rows=0, path="", crc32=0) == ENCODING
    assert lake.info()["slide_features"] == [
        {"name": NAME, "unit": "slide", "mpp": 0.5, "dim": 3, "rows": 2, "columns": ["t"]}
    ]


def test_sql_sees_all_vectors_in_one_table(lake: Lake) -> None:
    sql = "SELECT name, unit, slide_id, tiles, vector FROM slide_features WHERE tiles < 4"
    [row] = query(lake, sql).rows()
    assert row[:4] == (NAME, "slide", "b", 3)
    assert len(row[4]) == 3


def test_a_version_keeps_its_vectors(lake: Lake) -> None:
    before = lake.slide_features(NAME).collect()
    later = encoded(lake, seed=1)
    assert not later.slide_features(NAME).collect().equals(before)
    assert open_lake(lake.uri, version=lake.version).slide_features(NAME).collect().equals(before)
    assert not open_lake(lake.uri, version=lake.version - 1).slide_encodings()


def test_vectors_of_tiles_that_have_changed_are_left_out(lake: Lake) -> None:
    scanned_again = add_slides(lake, {"a": 4}, mark="scanned again")
    assert scanned_again.slide_features(NAME).collect()["slide_id"].to_list() == ["b"]
    with pytest.raises(
        LakeError, match=r"slide 'a' has no vector of 'mean\.t' of its present tiles"
    ):
        scanned_again.encoded(NAME, mpp=0.5).rows_of(["a", "b"])
    sources = sources_of(scanned_again, ("t",), mpp=0.5, unit="slide")
    kept = kept_rows(scanned_again, ENCODING, sources)
    assert kept["slide_id"].to_list() == ["b"]


def test_vectors_outlive_their_column(lake: Lake) -> None:
    drop(lake, "teacher", ["t"])
    assert lake.refreshed().slide_features(NAME).collect()["slide_id"].to_list() == ["a", "b"]


def test_features_of_another_extract_make_the_vectors_old(lake: Lake) -> None:
    drop(lake, "teacher", ["t"])
    again = add_teacher(lake.refreshed(), "t", dim=8)
    assert again.slide_features(NAME).collect().is_empty()


def test_a_patients_vector_is_of_all_slides(lake: Lake) -> None:
    set_patients(lake, pl.DataFrame({"slide_id": ["a", "b"], "patient_id": ["p", "p"]}))
    encoding = replace(ENCODING, name="mean.t.patient", unit="patient")
    lake = encoded(lake.refreshed(), encoding)
    frame = lake.slide_features("mean.t.patient").collect()
    assert frame.select("patient_id", "tiles").rows() == [("p", 8)]
    vectors, slide = lake.encoded("mean.t.patient", mpp=0.5).rows_of(["a", "b"])
    assert vectors.shape == (1, 3)
    assert slide.tolist() == [0]
    more = add_teacher(add_slides(lake, {"c": 2}), "t")
    set_patients(more, pl.DataFrame({"slide_id": ["c"], "patient_id": ["p"]}))
    assert more.refreshed().slide_features("mean.t.patient").collect().is_empty()


def test_another_identity_needs_another_name(lake: Lake) -> None:
    with pytest.raises(IdentityError, match=r"another identity \(differs in: encoder\)"):
        encoded(lake, replace(ENCODING, identity={"encoder": "max"}))
    with pytest.raises(LakeError, match="use letters, digits, _ : @ - and a dot inside"):
        kept_rows(lake, replace(ENCODING, name="mean"), pl.DataFrame())


def test_a_vector_that_is_not_finite_is_refused(lake: Lake) -> None:
    sources = sources_of(lake, ("t",), mpp=0.5, unit="slide").drop("slides")
    vectors = np.array([[0, 1, 2], [0, np.nan, 2]], np.float32)
    frame = sources.with_columns(pl.Series("vector", vectors, pl.Array(pl.Float32, 3)))
    with pytest.raises(LakeError, match="gives slide 'b' a vector that is not finite"):
        put_vectors(lake, ENCODING, frame)


def test_unknown_names_are_told(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"no vectors of 'mean.tt' .* did you mean 'mean.t'"):
        lake.slide_features("mean.tt")


def test_drop_and_rename(lake: Lake) -> None:
    rename(lake, "a", "z")
    lake = lake.refreshed()
    assert lake.slide_features(NAME).collect()["slide_id"].to_list() == ["b", "z"]
    drop(lake, "slide", ["z"])
    lake = lake.refreshed()
    assert lake.slide_encodings()[0].rows == 1
    done = drop(lake, "encoding", [NAME])
    assert done.done
    assert not lake.refreshed().slide_encodings()
    assert not drop(lake.refreshed(), "encoding", [NAME]).done
    with pytest.raises(LakeError, match=r"has no slide encoding 'max\.t'"):
        drop(lake.refreshed(), "encoding", ["max.t"])


def test_verify_finds_a_changed_vector(lake: Lake) -> None:
    assert verify(lake).ok
    [one] = lake.slide_encodings()
    [data] = (Path(lake.store.root) / one.path / "data").iterdir()
    content = bytearray(data.read_bytes())
    at = content.index(lake.slide_features(NAME).collect()["vector"].to_numpy()[0].tobytes())
    content[at] ^= 1
    data.write_bytes(content)
    changed = open_lake(lake.uri)
    [damage] = verify(changed).damage
    assert damage.part == "slide encoding"
    assert "drop --encoding mean.t" in damage.description
    with pytest.raises(DamageError, match="not as written"):
        changed.slide_features(NAME)
    shutil.rmtree(Path(lake.store.root) / one.path)
    assert "can't be read" in verify(open_lake(lake.uri)).damage[0].description


def test_copies_have_the_vectors_and_vacuum_removes_old_ones(lake: Lake, tmp_path: Path) -> None:
    copy_lake(lake.uri, tmp_path / "copy")
    copy = open_lake(tmp_path / "copy")
    assert copy.slide_features(NAME).collect().equals(lake.slide_features(NAME).collect())
    later = encoded(lake, seed=1)
    vacuum(later, keep=1)
    tables = {"/".join(file.path.split("/")[:2]) for file in lake.store.walk("slide_features")}
    assert tables == {later.slide_encodings()[0].path}
    assert later.slide_features(NAME).collect().height == 2
