"""Views of tiles: every pixel stays, grids turn with them, stains are those of `ingest.stain`."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.recipes.recipe import Views
from distill.recipes.student_settings import TileStudent
from distill.students.student import TileNetwork
from distill.train.views import (
    TURNS,
    cropped,
    draw,
    moved_places,
    normalised,
    recoloured,
    restained,
    sized,
    turned,
)
from ingest.stain import jitter_stains
from ingest.teachers.encoder import preprocess, resized


def tiles(count: int = 16, side: int = 32, seed: int = 0) -> Tensor:
    """Random smooth RGB tiles, uint8 [B, H, W, C]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 250, (count, 4, 4, 3), dtype=np.uint8)
    return torch.from_numpy(
        np.stack([np.asarray(Image.fromarray(one).resize((side, side))) for one in coarse])
    )


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_student_sees_tiles_as_extract_will_show_them() -> None:
    pixels = tiles(side=48)
    ours = normalised(sized(pixels, 32))
    half = (0.5, 0.5, 0.5)
    torch.testing.assert_close(ours, preprocess(resized(pixels.numpy(), 32, "bicubic"), half, half))


def test_the_eight_symmetries_are_numpys_and_different() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(TURNS, 1, 3, 3)
    symmetries = turned(x, torch.arange(TURNS), axes=(2, 3))
    for turn in range(TURNS):
        one = x[0, 0].numpy()
        one = one[:, ::-1] if turn >= 4 else one
        np.testing.assert_array_equal(symmetries[turn, 0], np.rot90(one, turn % 4))
    assert len({tuple(one.flatten().tolist()) for one in symmetries}) == TURNS


def test_places_move_as_the_grid_does() -> None:
    grid = torch.arange(25).view(1, 5, 5).expand(TURNS, 5, 5)
    after = turned(grid, torch.arange(TURNS), axes=(1, 2)).flatten(1)
    for turn in range(TURNS):
        for cell in range(25):
            assert after[turn, moved_places(5)[turn, cell]] == cell


def test_a_view_keeps_every_pixel_but_for_their_places() -> None:
    x = sized(tiles(), 32)
    view = draw(x, Views(stain=0), random())
    assert len(set(view.turns.tolist())) > 1
    torch.testing.assert_close(
        view.pixels.flatten(2).sort(dim=2).values, normalised(x).flatten(2).sort(dim=2).values
    )


def test_stain_jitter_is_that_of_the_teachers_variants() -> None:
    pixels = tiles(4)
    generator = random(3)
    ours = restained(sized(pixels, 32), 0.05, generator)
    generator = random(3)
    scale, shift = ((torch.rand(4, 3, generator=generator) * 2 - 1) * 0.05 for _ in range(2))
    for one, tile, s, m in zip(ours, pixels.numpy(), 1 + scale, shift, strict=True):
        variant = jitter_stains(tile, s.numpy(), m.numpy()).astype(np.float32) / 255
        np.testing.assert_allclose(one.permute(1, 2, 0), variant, atol=0.6 / 255)
    assert float((ours - sized(pixels, 32) / 255).abs().max()) > 0.01


def test_colour_jitter_of_size_zero_changes_nothing_and_grey_stays_grey() -> None:
    x = sized(tiles(4), 32)
    torch.testing.assert_close(recoloured(x, 0.0, random()), x / 255)
    grey = x[:, :1].expand(-1, 3, -1, -1)
    light = recoloured(grey, 0.3, random())
    torch.testing.assert_close(light[:, 0], light[:, 1], atol=1e-3, rtol=0)
    assert not torch.allclose(light, grey / 255, atol=0.01)


def test_crops_are_parts_of_the_tile() -> None:
    x = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(8, 3, 64, 64)
    crops = cropped(x, 16, (0.25, 0.25), random())
    assert crops.shape == (8, 3, 16, 16)
    width = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    # A quarter of the area is half of the width, between the centres of its outer pixels.
    torch.testing.assert_close(width, torch.full((8,), 0.5 * 15 / 16 * 64 / 63), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "grid"), [("test_efficientnet", (2, 2)), ("test_vit", (4, 4))]
)
def test_failure_5_tokens_of_any_network_are_its_patches_alone(
    architecture: str, grid: tuple[int, int]
) -> None:
    """Prefix tokens are left out, and the embedding is the network's own."""
    student = TileNetwork(TileStudent(architecture=architecture, input_px=64)).eval()
    x = normalised(sized(tiles(3, 64), 64))
    outputs = student(x)
    assert student.grid == grid == tuple(outputs.tokens.shape[1:3])
    torch.testing.assert_close(outputs.embedding, student.trunk(x))
    assert outputs.embedding.shape[1] == student.dim
    assert outputs.tokens.shape[3] == student.token_dim
