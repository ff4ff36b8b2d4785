"""Training on a column whose field of view was filled where the slide could not be reached."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.recipes.recipe_table import make_recipe
from distill.train.tile_choice import choose_tiles
from examples.own_encoder import CARD
from featurestore import LakeConfig
from tests.worlds.real_lake import fill, make_lake, teacher_of


def test_tiles_that_were_filled_too_much_are_not_trained_on(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "made", LakeConfig(mpps=(0.5, 1.0), tissue_min=0.6))
    (tmp_path / "made" / "slide.svs").unlink()
    card = replace(CARD, name="wide", field_px=(512,), mpps=(0.5,))
    lake, outcome = fill(lake, teacher_of(card), mpp=1.0)
    assert outcome.left_out["wide"] > 0
    column = lake.table("features/mpp1.0.lance").to_table(columns=["wide"])["wide"]
    is_there = ~np.isnan(np.array(column.to_pylist(), np.float32)).any(axis=1)
    settings = {"architecture": "test_efficientnet", "input_px": 64, "mpps": (1.0,)}
    recipe = make_recipe("agglomerate", ("wide",), batch_tiles=16, **settings)
    chosen = choose_tiles(lake, recipe, ["real"])[1.0]
    np.testing.assert_array_equal(chosen.rows, np.flatnonzero(is_there))
    assert chosen.without_features == outcome.left_out["wide"]
