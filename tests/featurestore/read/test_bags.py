"""Bags of slides and patients: the numbers, the checks, and torch's loaders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from featurestore import DamageError, Lake, LakeError, open_lake
from featurestore.read import select_slides
from featurestore.read.select_slides import BagPlaces
from featurestore.read.selection import Selection
from tests.worlds.training_lake import (
    DIMS,
    SIZES,
    add_features,
    cut,
    feature_rows,
    make,
    register,
    row_of_cells,
)

PATIENTS = {"a": "p1", "c": "p2", "d": "p1", "e": "p2"}  # b and f have none


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("bags") / "lake", patients=PATIENTS)


@pytest.mark.parametrize("slide_id", SIZES)
def test_bag_is_what_the_table_holds(lake: Lake, slide_id: str) -> None:
    bag = lake.bag(slide_id, list(DIMS), mpp=0.5)
    frame = lake.tiles(mpp=0.5).filter(pl.col("slide_id") == slide_id).collect().sort("y", "x")
    assert (bag.slide_id, len(bag.tile_id)) == (slide_id, SIZES[slide_id])
    for name in ("tile_id", "x", "y"):
        np.testing.assert_array_equal(getattr(bag, name), frame[name].to_numpy())
    assert list(bag.by_teacher) == list(DIMS)
    for teacher, features in bag.by_teacher.items():
        np.testing.assert_array_equal(features, frame[teacher].to_numpy())


def test_features_of_one_and_of_several_teachers(lake: Lake) -> None:
    one, both = lake.bag("b", "packed", mpp=0.5), lake.bag("b", ["packed", "plain"], mpp=0.5)
    assert one.features is one.by_teacher["packed"]
    assert both.features.shape == (64, 6 + 128)
    assert both.features.dtype == np.float16
    np.testing.assert_array_equal(both.features[:, :6], one.features)
    np.testing.assert_array_equal(both.features[:, 6:], lake.bag("b", "plain", mpp=0.5).features)


def test_bag_refuses_what_is_not_there(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    add_features(lake, {"late": 6}, without=["b"])
    empty = register(lake, ["empty"])["empty"]
    lake.committer.commit_slides([cut(lake, empty, "empty", {0.5: row_of_cells(0)})])
    lake = lake.refreshed()
    assert lake.bag("a", ["packed", "late"], mpp=0.5).features.shape == (9, 12)
    with pytest.raises(LakeError, match="'b' has no features of 'late' yet: run extract"):
        lake.bag("b", ["packed", "late"], mpp=0.5)
    with pytest.raises(LakeError, match=r"'empty' has no tiles at mpp 0\.5: it has no tissue"):
        lake.bag("empty", "packed", mpp=0.5)
    with pytest.raises(LakeError, match=r"slide 'x' is not in .* at mpp 0\.5$"):
        lake.bag("x", "packed", mpp=0.5)
    for read in (
        lambda: lake.bag("emtpy", "packed", mpp=0.5),
        lambda: lake.pictures("emtpy"),
        lambda: lake.stream("packed", mpp=0.5, slide_ids=["emtpy"]),
    ):
        with pytest.raises(LakeError, match=r"emtpy.*; did you mean 'empty'\?"):
            read()
    with pytest.raises(LakeError, match=r"'paked' at mpp 0\.5 in .*; did you mean 'packed'\?"):
        lake.bag("a", "paked", mpp=0.5)
    with pytest.raises(LakeError, match="name at least one, each once"):
        lake.bag("a", [], mpp=0.5)


def test_bag_checks_keys_not_positions(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    row = lake.tiles_of(mpp=0.5, slide_ids=["b"])
    for change in ({"row_start": 0}, {"row_start": 12}, {"slide": 4}):
        wrong = row.with_columns(**{k: pl.lit(v, row.schema[k]) for k, v in change.items()})
        with monkeypatch.context() as patch:
            place = Selection(wrong, 0.5, {"plain": np.zeros(1, np.int64)})
            patch.setattr(BagPlaces, "find", lambda *_, place=place: (place, 0))
            with pytest.raises(DamageError, match=r"slide b at mpp 0\.5: rows are not|missing"):
                lake.bag("b", "plain", mpp=0.5)


def count_scans(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that grows by whether all slides were asked for, at each scan for places."""
    scans: list[bool] = []
    places_of = Lake.places_of

    def counted(self: Lake, teachers: Sequence[str], **settings: Any) -> pl.DataFrame:  # noqa: ANN401
        scans.append(settings.get("slide_ids") is None)
        return places_of(self, teachers, **settings)

    monkeypatch.setattr(Lake, "places_of", counted)
    return scans


def test_places_are_looked_up_once_for_all_bags(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, fresh = count_scans(lake, monkeypatch), open_lake(lake.uri)
    for _ in range(3):
        for slide_id in SIZES:
            bag = fresh.bag(slide_id, list(DIMS), mpp=0.5)
            expected = feature_rows(bag.tile_id, DIMS["plain"])
            np.testing.assert_array_equal(bag.by_teacher["plain"], expected)
    assert scans == [True]


def test_another_teachers_places_cost_one_more_scan(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = open_lake(lake.uri)
    scans = count_scans(lake, monkeypatch)
    for teacher in ("packed", "packed", "plain", "packed", "plain"):
        for slide_id in SIZES:
            bag = fresh.bag(slide_id, teacher, mpp=0.5)
            expected = feature_rows(bag.tile_id, DIMS[teacher])
            np.testing.assert_array_equal(bag.features, expected)
    assert scans == [True, True]


def test_large_catalogs_are_scanned_only_for_many_bags(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select_slides, "ROWS_A_LOOKUP", lake.catalog_rows() / 4)
    scans, fresh = count_scans(lake, monkeypatch), open_lake(lake.uri)
    for _ in range(5):
        fresh.bag("a", "plain", mpp=0.5)
    assert scans == [False, False, False, True]


def test_bags_of_slides(lake: Lake) -> None:
    bags = lake.bags(list(DIMS), mpp=0.5)
    assert len(bags) == len(SIZES)
    assert bags.ids == list(SIZES)
    for bag in (bags[index] for index in range(len(bags))):
        same = lake.bag(bag.bag_id, list(DIMS), mpp=0.5)
        assert (bag.slide_ids, set(bag.slide.tolist())) == ((bag.bag_id,), {0})
        np.testing.assert_array_equal(bag.features.numpy(), same.features)
        for name in ("tile_id", "x", "y"):
            np.testing.assert_array_equal(getattr(bag, name).numpy(), getattr(same, name))
    kinds = (bag.tile_id.dtype, bag.x.dtype, bag.features.dtype, bag.slide.dtype)
    assert kinds == (torch.int64, torch.int32, torch.float16, torch.int64)


def test_bags_of_patients_hold_all_their_slides(lake: Lake) -> None:
    bags = lake.bags("plain", mpp=0.5, by="patient")
    assert {bags[i].bag_id: bags[i].slide_ids for i in range(4)} == {
        "p1": ("a", "d"),
        "b": ("b",),
        "p2": ("c", "e"),
        "f": ("f",),
    }
    bag = bags[bags.ids.index("p2")]
    parts = [lake.bag(slide_id, "plain", mpp=0.5) for slide_id in ("c", "e")]
    expected = np.concatenate([part.features for part in parts])
    np.testing.assert_array_equal(bag.features.numpy(), expected)
    assert bag.slide.tolist() == [0] * SIZES["c"] + [1] * SIZES["e"]
    some = lake.bags("plain", mpp=0.5, by="patient", slide_ids=["e", "a"])
    assert {some[i].bag_id: some[i].slide_ids for i in range(2)} == {"p1": ("a",), "p2": ("e",)}


def test_tensors_may_be_changed_in_place(lake: Lake) -> None:
    """torch warns of arrays that are not writable, and warnings are errors here."""
    bags = lake.bags("plain", mpp=0.5)
    bag = bags[0]
    bag.features.add_(1)
    torch.testing.assert_close(bags[0].features + 1, bag.features)


@pytest.mark.slow
def test_bags_in_torchs_own_tools(lake: Lake) -> None:
    bags = lake.bags("plain", mpp=0.5)
    assert isinstance(bags, Dataset)
    assert Subset(bags, [3, 1])[1].bag_id == "b"
    loader = DataLoader(bags, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    loaded = list(loader)
    assert [bag.bag_id for bag in loaded] == list(SIZES)
    for bag in loaded:
        expected = feature_rows(bag.tile_id.numpy(), DIMS["plain"])
        np.testing.assert_array_equal(bag.features.numpy(), expected)


def test_bags_name_slides_that_lack_a_teacher(tmp_path: Path) -> None:
    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20, "c": 3})
    add_features(lake, {"late": 6}, without=["b", "c"])
    lake = lake.refreshed()
    with pytest.raises(LakeError, match=r"2 of 3 slides have no features of 'late' .*: b, c; run"):
        lake.bags(["packed", "late"], mpp=0.5)
    assert len(lake.bags(["packed", "late"], mpp=0.5, slide_ids=["a"])) == 1
    with pytest.raises(LakeError, match="allowed: slide, patient"):
        lake.bags("packed", mpp=0.5, by="tile")  # type: ignore[arg-type]


def test_a_lake_comes_back_from_pickle_at_its_version(tmp_path: Path) -> None:
    import pickle

    lake = make(tmp_path / "lake", sizes={"a": 9, "b": 20})
    new = register(lake, ["c"])["c"]
    lake.committer.commit_slides([cut(lake, new, "c", {0.5: row_of_cells(8)})])
    copy = pickle.loads(pickle.dumps(lake))
    assert copy.version == lake.version < open_lake(lake.uri).version
    assert len(pickle.loads(pickle.dumps(lake.bags("plain", mpp=0.5)))) == 2
