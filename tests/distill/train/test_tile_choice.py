"""Which tiles a training sees: by a predicate, a number, a balance, and a teacher's share."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distill.errors import DistillError
from distill.recipes.recipe import CORESETS, Recipe, TileChoice
from distill.recipes.recipe_columns import check
from distill.recipes.recipe_table import make_recipe
from distill.train.batches import Feed, mixed
from distill.train.clustered_slides import ChoiceTiles, cluster_slides
from distill.train.coresets import farthest_first, projected
from distill.train.distill_run import plan_run
from distill.train.tile_choice import balanced, choice_lines, choose_tiles
from featurestore import Lake, LakeError, annotate, open_lake
from ingest.teachers.work.units import Choice
from tests.conftest import TEACHERS
from tests.ingest.teachers.test_extract import fill

MPP = 0.5
TINY = {"architecture": "test_efficientnet", "input_px": 64, "batch_tiles": 16, "mpps": (MPP,)}


def recipe(*teachers: str, **tiles: object) -> Recipe:
    made = make_recipe("agglomerate", teachers or TEACHERS, **TINY)
    return replace(made, tiles=TileChoice(**tiles))  # type: ignore[arg-type]


def all_tiles(lake: Lake) -> pl.DataFrame:
    """All tiles, in the order of rows."""
    tiles = lake.tiles(mpp=MPP).collect().sort("tile_id")
    numbers = dict(lake.slides().select("slide", "slide_id").collect().iter_rows())
    names = [numbers[slide] for slide in tiles["slide"]]
    return tiles.with_columns(slide_id=pl.Series(names))


def slide_ids(lake: Lake) -> list[str]:
    return lake.slides().collect()["slide_id"].to_list()


def test_all_tiles_need_no_choice(lake: Lake) -> None:
    assert choose_tiles(lake, recipe(), slide_ids(lake)) == {}


def test_a_predicate_chooses_tiles(lake: Lake) -> None:
    chosen = choose_tiles(lake, recipe(where="x >= 512 AND y < 1024"), slide_ids(lake))[MPP]
    tiles = all_tiles(lake)
    expected = (tiles["x"] >= 512) & (tiles["y"] < 1024)
    np.testing.assert_array_equal(chosen.rows, np.flatnonzero(expected))
    assert (chosen.all, chosen.without_where) == (tiles.height, int((~expected).sum()))
    (line,) = choice_lines({"0.5": chosen.record()})
    assert line.startswith(f"{len(chosen.rows):,} of {tiles.height:,} tiles at mpp 0.5 are seen (")
    assert line.endswith(f"{chosen.without_where:,} are left out by --where)")
    held = choose_tiles(lake, recipe(where="x >= 512"), slide_ids(lake), held_out=True)
    assert held == {}
    with pytest.raises(LakeError, match="can't be asked of tiles"):
        choose_tiles(lake, recipe(where="nowhere > 1"), slide_ids(lake))
    with pytest.raises(DistillError, match=r"no tile at mpp 0\.5 is left to train on"):
        choose_tiles(lake, recipe(where="x < 0"), slide_ids(lake))


def test_some_tiles_of_each_slide(lake: Lake) -> None:
    chosen = choose_tiles(lake, recipe(per_slide=7), slide_ids(lake))[MPP]
    slides = all_tiles(lake)["slide_id"].to_list()
    counts = Counter(slides[row] for row in chosen.rows)
    assert counts == {name: min(7, count) for name, count in Counter(slides).items()}
    assert (np.diff(chosen.rows) > 0).all()
    again = choose_tiles(lake, recipe(per_slide=7), slide_ids(lake))[MPP]
    other = choose_tiles(lake, replace(recipe(per_slide=7), seed=1), slide_ids(lake))[MPP]
    np.testing.assert_array_equal(again.rows, chosen.rows)
    assert not np.array_equal(other.rows, chosen.rows)
    with pytest.raises(DistillError, match="per_slide=-1 given"):
        recipe(per_slide=-1)


def test_groups_are_brought_to_one_size() -> None:
    by_slide = [np.arange(10), np.arange(10, 13), np.arange(13, 14), np.empty(0, np.int64)]
    rows = balanced(by_slide, ["a", "b", "a", "c"], seed=0)
    assert len(rows) == 14
    counts = Counter(rows.tolist())
    assert sum(counts[row] for row in range(10, 13)) == 7
    assert {counts[row] for row in range(10, 13)} <= {2, 3}
    assert max(counts[row] for row in [*range(10), 13]) == 1


def test_slides_patients_and_sites_are_seen_equally_often(lake_copy: Path) -> None:
    lake = open_lake(lake_copy)
    names = slide_ids(lake)
    sites = pl.DataFrame({"slide_id": names, "site": ["x", *["y"] * (len(names) - 1)]})
    annotate(lake, sites, "clinical")
    lake = lake.refreshed()
    slides = all_tiles(lake)["slide_id"].to_list()
    patients = dict(lake.slides().select("slide_id", "patient_id").collect().iter_rows())
    site = dict(sites.iter_rows())
    for balance, group in (
        ("slide", dict(zip(names, names, strict=True))),
        ("patient", patients),
        ("site", site),
        ("clinical.site", site),
    ):
        chosen = choose_tiles(lake, recipe(balance=balance), names)[MPP]
        counts = Counter(group[slides[row]] for row in chosen.rows)
        groups = {group[name] for name in slides}
        assert counts == dict.fromkeys(groups, len(slides) // len(groups)), balance
    with pytest.raises(DistillError, match=r"--balance scanner: give slide.*clinical\.site"):
        choose_tiles(lake, recipe(balance="scanner"), names)
    annotate(lake, sites[1:].rename({"site": "ward"}), "wards")
    with pytest.raises(DistillError, match=f"1 slide has no ward, {names[0]} first"):
        choose_tiles(lake.refreshed(), recipe(balance="ward"), names)


def features_of(lake: Lake, name: str) -> np.ndarray:
    bag = lake.bag(name, TEACHERS[0], mpp=MPP)
    return np.asarray(bag.features)[np.argsort(bag.tile_id)].astype(np.float32)


def test_clusters_of_a_column_are_seen_equally_often(lake: Lake) -> None:
    names = slide_ids(lake)
    made = recipe(balance="cluster", clusters=4)
    chosen = choose_tiles(lake, made, names)[MPP]
    tiles = all_tiles(lake)
    slides = [
        ChoiceTiles(name=n, tile_id=tiles.filter(pl.col("slide_id") == n)["tile_id"].to_numpy())
        for n in dict.fromkeys(tiles["slide_id"])
    ]
    clustered = cluster_slides(lake, made, MPP, slides)
    cluster = np.concatenate([part.cluster for part in clustered])
    counts = Counter(cluster[chosen.rows].tolist())
    groups = set(cluster.tolist())
    assert 2 <= len(groups) <= 4
    assert counts == dict.fromkeys(groups, tiles.height // len(groups))
    assert max(Counter(cluster.tolist()).values()) > tiles.height / len(groups)
    again = choose_tiles(lake, made, names)[MPP]
    np.testing.assert_array_equal(again.rows, chosen.rows)


@pytest.mark.parametrize("kind", CORESETS)
def test_a_coreset_keeps_a_share_of_the_tiles(lake: Lake, kind: str) -> None:
    names, tiles = slide_ids(lake), all_tiles(lake)
    chosen = choose_tiles(lake, recipe(coreset=kind, share=0.3, clusters=4), names)[MPP]
    assert (np.diff(chosen.rows) > 0).all()
    assert len(chosen.rows) == pytest.approx(0.3 * tiles.height, abs=len(names))
    slides = tiles["slide_id"].to_list()
    if kind == "coverage":
        expected = []
        for name in dict.fromkeys(slides):
            first, x_ND = slides.index(name), projected(features_of(lake, name))
            expected += sorted(first + farthest_first(x_ND, max(1, round(0.3 * len(x_ND)))))
        np.testing.assert_array_equal(chosen.rows, sorted(expected))
    both = recipe(coreset=kind, share=0.3, balance="slide", clusters=4)
    counts = Counter(slides[row] for row in choose_tiles(lake, both, names)[MPP].rows)
    assert len(set(counts.values())) == 1
    held = choose_tiles(lake, recipe(coreset=kind, share=0.3), names, held_out=True)
    assert held == {}


def test_choices_that_do_not_fit_are_refused(lake: Lake) -> None:
    with pytest.raises(DistillError, match=r"coreset='middle', share=0\.5, clusters=64 given"):
        recipe(coreset="middle", share=0.5)
    with pytest.raises(DistillError, match=r"a share a coreset: --coreset random --share 0\.4"):
        recipe(share=0.5)
    with pytest.raises(
        DistillError, match=r"a column of embeddings at mpp 0\.5, and nothing is none"
    ):
        choose_tiles(lake, recipe(balance="cluster", column="nothing"), slide_ids(lake))


@pytest.mark.slow
def test_a_column_of_some_tiles_is_distilled_from_those(lake_copy: Path) -> None:
    """Batches hold no tile that a teacher was not run on, in training and held out."""
    column = f"{TEACHERS[0]}@S1"
    choice = Choice(where="x >= 512", share=0.6)
    lake = fill(open_lake(lake_copy), [column], mpp=MPP, choice=choice)
    names, partial = slide_ids(lake), recipe(column, TEACHERS[1])
    check(lake, partial)
    for held_out in (False, True):
        chosen = choose_tiles(lake, partial, names, held_out=held_out)[MPP]
        there = np.concatenate(
            [lake.bag(name, column, mpp=MPP).tile_id for name in dict.fromkeys(names)]
        )
        keys = all_tiles(lake)["tile_id"].to_numpy()
        np.testing.assert_array_equal(np.sort(keys[chosen.rows]), np.sort(there))
        assert chosen.without_features == len(keys) - len(there)
    feed = Feed(lake=lake, recipe=partial, slide_ids=names, rows={MPP: chosen.rows})
    seen = [batch for stream in feed.measuring() for batch in stream]
    assert sum(len(batch.tile_id) for batch in seen) == len(there)
    assert all(np.isfinite(batch.features[column]).all() for batch in seen)
    trained = [batch.tile_id for batch in mixed(feed.training(), epoch=0, seed=0)]
    assert set(np.concatenate(trained).tolist()) <= set(there.tolist())


def test_a_tile_may_come_again_and_a_stream_goes_on_where_it_was(lake: Lake) -> None:
    rows = np.sort(np.concatenate([np.arange(0, 60, 2), np.arange(0, 60, 2), np.arange(40, 50)]))
    feed = Feed(lake=lake, recipe=recipe(), slide_ids=slide_ids(lake), rows={MPP: rows})
    (stream,) = feed.measuring()
    keys = all_tiles(lake)["tile_id"].to_numpy()
    order = np.concatenate([batch.tile_id for batch in stream])
    np.testing.assert_array_equal(order, keys[rows])
    whole = [b.tile_id.tolist() for b in mixed(feed.training(), epoch=1, seed=0)]
    assert [b.tile_id.tolist() for b in mixed(feed.training(), epoch=1, seed=0, first=2)] == (
        whole[2:]
    )
    assert len(whole) == len(rows) // 16
    ranks = [mixed(feed.training(rank=r, world=2), epoch=1, seed=0) for r in range(2)]
    counts = Counter(key for rank in ranks for batch in rank for key in batch.tile_id.tolist())
    assert not counts - Counter(keys[rows].tolist())
    with pytest.raises(LakeError, match="ascending"):
        lake.stream(TEACHERS[0], mpp=MPP, rows=np.array([3, 1]))


def test_the_choice_is_part_of_the_run(lake: Lake) -> None:
    runs = {
        plan_run(lake, made, student="s").run
        for made in (recipe(), recipe(per_slide=5), recipe(per_slide=6), recipe(where="x >= 512"))
    }
    assert len(runs) == 4
    planned = plan_run(lake, recipe(per_slide=5), student="s")
    assert planned.to_json()["tiles"]["0.5"]["chosen"] == 5 * len(planned.train)
