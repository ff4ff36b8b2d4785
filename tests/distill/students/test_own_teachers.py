"""A user's own encoder teaches patch tokens, layers and stain variants, as a card's does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import columns_of
from distill.recipes.recipe_table import make_recipe
from distill.students.student_table import make_task
from distill.students.task import on_device
from distill.targets.missing_stats import fit_missing
from distill.targets.norms import fit_norms, read_norms
from distill.train.batches import Feed
from featurestore import Lake, open_lake
from ingest import TeacherError, find_teachers, load_encoder
from tests.ingest.teachers.test_extract import fill

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = """
import timm, torch
from slidelake import Card

CARD = Card(
    name="own-vit", architecture="test_vit", dim=64, input_px=64, mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5), poolings=("cls",), prefix_tokens=1, patch_px=16,
)

def build():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=64)
"""
COLUMNS = {
    "own-vit": 64,
    "own-vit:patches": 16 * 64,
    "own-vit:patches5": 5 * 64,
    "own-vit:places5": 5,
    "own-vit@L2": 64,
    "own-vit@S1": 64,
}
STUDENT = {"architecture": "test_efficientnet", "input_px": 64, "head_width": 16, "mpps": (2.0,)}


@pytest.fixture
def taught(lake_copy: Path, tmp_path: Path) -> Lake:
    """A lake with all that an own encoder teaches."""
    path = tmp_path / "own_vit.py"
    path.write_text(ENCODER)
    taken = ["", ":patches", ":patches5", "@L2", "@S1"]
    return fill(open_lake(lake_copy), [f"{path}{what}" for what in taken])


def step_losses(lake: Lake, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return the losses of a recipe's first step."""
    needs, ids = recipe.needs(lake.config.mpps), lake.slides().collect()["slide_id"].to_list()
    fit_missing(lake, needs, ids)
    task = make_task(lake, recipe, read_norms(fit_norms(lake, recipe.targets, needs, ids)))
    (stream,) = Feed(lake=lake, recipe=recipe, slide_ids=ids).training()
    batch = on_device(next(iter(stream)), "cpu")
    losses: dict[str, torch.Tensor] = task(batch, torch.Generator().manual_seed(0))
    return losses


def test_it_teaches_tokens_layers_and_stain_variants(taught: Lake, tmp_path: Path) -> None:
    dims = taught.teachers(mpp=2.0)
    assert {name: dims[name] for name in COLUMNS} == COLUMNS
    layers = make_recipe("agglomerate", ("own-vit", "own-vit@L2", "own-vit@S1"), **STUDENT)
    tokens = make_recipe("h0", ("own-vit", "own-vit:patches", "own-vit:patches5"), **STUDENT)
    whole, sample = columns_of(taught, tokens)[1:]
    assert (whole.tokens, whole.dim, whole.side) == (16, 64, 4)
    assert (sample.tokens, sample.side, sample.places) == (5, 4, "own-vit:places5")
    assert {column.teacher for column in columns_of(taught, layers)} == {"own-vit"}
    for recipe in (layers, tokens):
        losses = step_losses(taught, recipe)
        assert all(bool(loss.isfinite().all()) for loss in losses.values()), losses
    # The tokens are those of the network itself.
    (teacher,) = find_teachers(taught.store, [f"{tmp_path / 'own_vit.py'}:patches"])
    slide = taught.slides().collect()["slide_id"][0]
    (batch,) = taught.stream(
        "own-vit:patches", mpp=2.0, slide_ids=[slide], pixels="uint8", shuffle=False
    )
    assert batch.pixels is not None
    encoder = load_encoder(taught.store, teacher)
    again = encoder(batch.pixels, batch.tile_id, teacher.outputs)["own-vit:patches"]
    np.testing.assert_allclose(batch.features["own-vit:patches"], again, atol=1e-2)


def test_what_its_card_has_not_is_refused(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "own_vit.py"
    path.write_text(ENCODER)
    with pytest.raises(TeacherError, match="has 16 patch tokens a tile, not 17 of patches"):
        find_teachers(lake.store, [f"{path}:patches17"])
    path.write_text(ENCODER.replace("prefix_tokens=1, patch_px=16,", ""))
    with pytest.raises(TeacherError, match="own-vit gives cls, not patches"):
        find_teachers(lake.store, [f"{path}:patches"])
