"""Bags on a real lake; `build` makes one, for the other tests too."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from downstream import BagError
from downstream.mil.aggregators.hierarchy import children_rows
from downstream.mil.aggregators.tile_canvas import GAP
from downstream.run.feature_bags import (
    PatientBags,
    feature_identity,
    read_patient,
    slides_with_tiles,
)
from featurestore import (
    ColumnWriter,
    GridCut,
    Lake,
    LakeConfig,
    LakeError,
    ShardWriter,
    SlideCut,
    create_lake,
    open_lake,
    tile_ids,
    tile_parts,
    tiles_table,
)
from ingest.pages.slide_pictures import encode_jpeg

MPP, PATIENTS, WIDTH = 0.5, 12, 8
IDENTITY = {"weights": "none"}
"""Patient p03 has slides s03a and s03b, with 5 and 6 tiles; odd patients are positive."""

Features = dict[str, dict[str, NDArray[np.float16]]]


def slide_names() -> list[str]:
    return [f"s{number:02d}{part}" for number in range(PATIENTS) for part in "ab"]


def planted(seed: int = 0) -> Features:
    """Teacher -> slide -> [N, D]; teacher "good" shifts all tiles of odd patients."""
    rng = np.random.default_rng(seed)
    features: Features = {"good": {}, "noise": {}}
    for name in slide_names():
        tiles = 5 + (name[-1] == "b")
        for teacher in features:
            x = rng.standard_normal((tiles, WIDTH))
            x[:, 0] += 4.0 * (teacher == "good") * (int(name[1:3]) % 2)
            features[teacher][name] = x.astype(np.float16)
    return features


JPEG = encode_jpeg(np.full((256, 256, 3), 200, np.uint8))


def build(path: Path, features: Features) -> Lake:
    """A lake with one slide per name and one more, s00c, that has no tissue."""
    lake = create_lake(path, LakeConfig(tile_px=256, mpps=(MPP,)))
    slides = features["good"]
    rows = lake.committer.register(
        [
            {"slide_id": name, "patient_id": f"p{name[1:3]}", "uri": f"{name}.svs"}
            for name in [*slides, "s00c"]
        ]
    )
    counts = {name: len(x) for name, x in slides.items()}
    lake.committer.commit_slides([cut(lake, row, counts.get(row["slide_id"], 0)) for row in rows])
    for teacher, of_slide in features.items():
        extract(lake.refreshed(), teacher, of_slide)
    return lake.refreshed()


def cut(lake: Lake, row: dict[str, Any], tiles: int) -> SlideCut:
    grid = np.arange(tiles)
    with ShardWriter(lake.store, f"tiles/mpp{MPP}/{row['slide']:06d}-0.tar") as shard:
        for key in tile_ids(row["slide"], MPP, grid, grid):
            shard.add(int(key), JPEG, {})
    columns = {
        "tile_id": tile_ids(row["slide"], MPP, grid, grid),
        "slide": np.full(tiles, row["slide"]),
        "slide_id": [row["slide_id"]] * tiles,
        **dict.fromkeys(("grid_y", "grid_x"), grid),
        **dict.fromkeys(("y", "x"), grid * 256),
        "tissue": np.ones(tiles),
    }
    assert shard.shard is not None
    cells = GridCut(
        tiles=tiles_table(MPP, 256, columns),
        shard=shard.shard,
        effective_mpp=MPP,
        tile_px_level0=256,
        grid_px_level0=256,
        grid_width=10,
        grid_height=10,
    )
    return SlideCut(row=row, grids={MPP: cells})


def extract(lake: Lake, teacher: str, of_slide: dict[str, NDArray[np.float16]]) -> None:
    field = lake.committer.add_teacher(MPP, teacher, WIDTH, IDENTITY)
    rows = lake.tiles_of(mpp=MPP).sort("row_start", "tiles")
    (fragment,) = rows["fragment"].unique()
    writer = ColumnWriter(lake.store, MPP, field, fragment)
    keys = lake.tiles(mpp=MPP).select("slide", "tile_id").collect()
    for row in rows.iter_rows(named=True):
        tile_id = keys.filter(pl.col("slide") == row["slide"])["tile_id"].to_numpy()
        none = np.empty((0, WIDTH), np.float16)
        writer.add(row["slide"], tile_id, of_slide.get(row["slide_id"], none))
    lake.committer.commit_columns(MPP, [writer.finish()])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


def test_bags_hold_all_tiles_of_all_slides(lake: Lake) -> None:
    bags = PatientBags(lake, [("s03a", "s03b"), ("s04a",)], "good+noise", mpps=(MPP,))
    features = planted()
    expected = np.concatenate([features["good"]["s03a"], features["good"]["s03b"]])
    assert bags[0].features.shape == (11, 2 * WIDTH)
    assert np.array_equal(bags[0].features[:, :WIDTH], expected)
    assert bags[0].slide.tolist() == [0] * 5 + [1] * 6
    assert bags[0].places[:5].tolist() == [[at, at] for at in range(5)]
    # the second slide lies below the first
    assert bags[0].places[5:].tolist() == [[at + 5 + GAP, at] for at in range(6)]
    assert bags[0] is bags[0]
    # the first bag asked for is kept, the other is read again
    tight = PatientBags(
        lake, [("s03a",), ("s04a",)], "good", mpps=(MPP,), cache_bytes=bags[1].nbytes
    )
    assert tight[0] is tight[0]
    assert tight[1] is not tight[1]
    assert np.array_equal(tight[1].features, features["good"]["s04a"])
    assert len(tight) == 2


def test_bags_of_several_mpps_nest(filled: Path) -> None:
    """Every fine tile is under a coarse one of the same slide; orphans are left out."""
    real = open_lake(filled)
    teacher = next(iter(real.teachers(mpp=2.0)))
    slides = sorted(slides_with_tiles(real, mpp=2.0) & slides_with_tiles(real, mpp=0.5))[:2]
    bag = read_patient(real, slides, teacher, (0.5, 2.0))
    level, place = bag.places[:, 0], bag.places[:, 1:]
    children = children_rows(
        torch.from_numpy(place[level == 0]), torch.from_numpy(place[level == 1]), 4
    )
    under = (children < (level == 1).sum()).sum()
    assert under == (level == 1).sum() > 0
    # by the keys too: a fine tile's grid place over 4 is its parent's
    keys, mpps, y, x = tile_parts(bag.tile_id)
    parents = {(k, a, b) for k, m, a, b in zip(keys, mpps, y, x, strict=True) if m == 2.0}
    fine = [(k, a // 4, b // 4) for k, m, a, b in zip(keys, mpps, y, x, strict=True) if m == 0.5]
    assert set(fine) <= parents
    whole = sum(real.tiles_of(mpp=0.5, slide_ids=slides)["tiles"])
    assert (level == 1).sum() <= whole
    assert set(bag.slide.tolist()) == {0, 1}
    families = {key: bag.family[at] for at, key in enumerate(zip(keys, y, x, strict=True))
                if mpps[at] == 2.0}  # fmt: skip
    rows_of_fold = [bag.family[at] for at in np.flatnonzero(mpps == 0.5)]
    assert rows_of_fold == [families[key] for key in fine]


def test_identity_is_the_content_and_not_the_version(tmp_path: Path, lake: Lake) -> None:
    used = ["s03a", "s04b"]
    before = feature_identity(lake, used, "good", mpp=MPP)
    assert before != feature_identity(lake, used, "noise", mpp=MPP)
    assert before != feature_identity(lake, used[:1], "good", mpp=MPP)
    again = build(tmp_path / "again", planted())
    extract(again, "third", planted(1)["noise"])
    assert feature_identity(again.refreshed(), used, "good", mpp=MPP) == before
    changed = planted()
    changed["good"]["s04b"][0, 0] += 1
    other = build(tmp_path / "other", changed)
    assert feature_identity(other, used, "good", mpp=MPP) != before


def test_features_that_are_not_there_are_named(lake: Lake) -> None:
    with pytest.raises(LakeError, match="no features of 'uni'"):
        feature_identity(lake, ["s03a"], "uni", mpp=MPP)
    with pytest.raises(BagError, match=r"1 of 2 slides have no features of 'good'.*s99"):
        feature_identity(lake, ["s03a", "s99"], "good", mpp=MPP)
    assert slides_with_tiles(lake, mpp=MPP) == set(slide_names())
