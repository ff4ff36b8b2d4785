"""How training tiles become the student's input: decoded in full or scaled, kept or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import DistillError
from distill.recipes.recipe_table import make_recipe
from distill.train.batches import Feed
from distill.train.distill_run import plan_run
from featurestore import Lake
from tests.worlds.training_lake import SIZES, TILE_PX, make

SETTINGS: dict[str, Any] = {"input_px": 16, "batch_tiles": 16, "mpps": (0.5,)}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make(tmp_path_factory.mktemp("distill-pixels") / "lake")


def sides(streams: list[Any]) -> set[int]:
    """Return the sides of the tiles of some streams' first batches."""
    return {next(iter(stream)).pixels.shape[1] for stream in streams}


def test_training_tiles_are_scaled_and_held_out_ones_are_not(lake: Lake) -> None:
    for decode, side in (("full", TILE_PX), ("scaled", 16)):
        recipe = make_recipe("agglomerate", ("plain",), decode=decode, **SETTINGS)
        feed = Feed(lake=lake, recipe=recipe, slide_ids=list(SIZES))
        assert sides(feed.training()) == {side}
        assert sides(feed.measuring()) == {TILE_PX}


def test_kept_tiles_are_of_the_input_and_come_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIDELAKE_PIXEL_CACHE", str(tmp_path))
    recipe = make_recipe("agglomerate", ("plain",), **SETTINGS)
    feed = Feed(lake=lake, recipe=recipe, slide_ids=list(SIZES), cache_pixels_gb=1e-3)
    streams = feed.training()
    first = [[batch.pixels for batch in stream] for stream in streams]
    assert len(list(tmp_path.glob("*.pixels"))) == len(streams) == 1
    for stream in streams:
        stream.set_epoch(0)
    again = [[batch.pixels for batch in stream] for stream in streams]
    for one, other in zip(first, again, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a is not None
            np.testing.assert_array_equal(a, b)
            assert a.shape[1:] == (16, 16, 3)


def test_decode_belongs_to_the_run_and_full_is_what_runs_had(lake: Lake) -> None:
    names = {
        decode: plan_run(
            lake,
            make_recipe("agglomerate", ("plain",), decode=decode, **SETTINGS),
            student="small",
        ).run
        for decode in (None, "full", "scaled")
    }
    assert names[None] == names["full"] != names["scaled"]
    with pytest.raises(DistillError, match="allowed: full, scaled"):
        make_recipe("agglomerate", ("plain",), decode="half", **SETTINGS)
