"""The encoder itself: preprocessing, tokens, and numbers that depend on nothing but the tile."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from featurestore import tile_ids
from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.encoder import Encoder, cropped, preprocess, resized
from ingest.teachers.networks import Plain
from ingest.teachers.outputs import outputs_of, places

KEYS = tile_ids(3, 0.5, np.arange(70) // 10, np.arange(70) % 10)
VIT = Card(
    name="vit",
    architecture="vit_tiny_patch16_224",
    dim=192,
    input_px=64,
    mean=(0.5, 0.4, 0.6),
    std=(0.2, 0.3, 0.25),
    poolings=("cls", "cls+mean"),
    prefix_tokens=5,
    patch_px=16,
)


def vit(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, reg_tokens=4, depth=3, num_classes=0, **arguments
    )
    return model


@pytest.fixture(scope="module")
def tiles() -> np.typing.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3)).astype(np.uint8)


def encode(
    encoder: Encoder, tiles: np.typing.NDArray[np.uint8], *names: str
) -> dict[str, np.typing.NDArray[np.float32]]:
    outputs = [output for name in names for output in outputs_of(name, encoder.card)]
    return encoder(tiles, KEYS[: len(tiles)], outputs)


def test_preprocessing_is_that_of_torchvision(tiles: np.typing.NDArray[np.uint8]) -> None:
    expected = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(VIT.mean, VIT.std)]
    )
    ours = preprocess(tiles[:2], VIT.mean, VIT.std)
    for x, tile in zip(ours, tiles, strict=False):
        torch.testing.assert_close(x, expected(tile), atol=1e-5, rtol=1e-5)


def test_resizing_is_that_of_pil() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    for interpolation, pil in (
        ("bicubic", Image.Resampling.BICUBIC),
        ("bilinear", Image.Resampling.BILINEAR),
    ):
        for side in (32, 56, 80):
            expected = [
                np.asarray(Image.fromarray(tile).resize((side, side), pil)) for tile in tiles
            ]
            gap = np.abs(resized(tiles, side, interpolation).astype(int) - np.stack(expected))
            assert gap.max() <= 1
    assert resized(tiles, 64, "bicubic") is tiles


@pytest.mark.parametrize(("side", "px"), [(64, 40), (64, 41), (65, 40), (40, 40)])
def test_the_middle_is_that_of_torchvision(side: int, px: int) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    expected = v2.CenterCrop(px)(Image.fromarray(tile))
    np.testing.assert_array_equal(cropped(tile[None], px)[0], np.asarray(expected))


def test_tokens_are_those_of_the_network(tiles: np.typing.NDArray[np.uint8]) -> None:
    """The reference is timm's own model, tile by tile; registers are in no mean and no grid."""
    model = vit()
    encoder = Encoder(VIT, model)
    names = ("vit:cls", "vit:cls+mean", "vit:mean", "vit:patches", "vit:patches3", "vit:cls@L2")
    features = encode(encoder, tiles[:6], *names)
    x = preprocess(tiles[:6], VIT.mean, VIT.std)
    with torch.inference_mode():
        tokens = model.forward_features(x)  # type: ignore[operator]
        after = x
        between = model.get_intermediate_layers(x, n=[1], norm=True, return_prefix_tokens=True)  # type: ignore[operator]
        del after
    assert tokens.shape == (6, 5 + 16, 192)
    expected = {
        "vit:cls": tokens[:, 0],
        "vit:mean": tokens[:, 5:].mean(1),
        "vit:cls+mean": torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1),
        "vit:patches": tokens[:, 5:].flatten(1),
        "vit:cls@L2": between[0][1][:, 0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(features[name]), values, atol=1e-5, rtol=1e-5)
    at = places(KEYS[:6], 16, 3)
    np.testing.assert_array_equal(features["vit:places3"], at)
    grid = features["vit:patches"].reshape(6, 16, 192)
    kept = features["vit:patches3"].reshape(6, 3, 192)
    np.testing.assert_array_equal(kept, np.take_along_axis(grid, at[..., None], axis=1))


@pytest.mark.parametrize("name", ["vit:cls", "vit:cls+mean"])
def test_numbers_depend_on_the_tile_alone(tiles: np.typing.NDArray[np.uint8], name: str) -> None:
    """Not on the batch (1, 7, 64), not on its neighbours, not on the number of threads."""
    outputs = outputs_of(name, VIT)
    whole = Encoder(VIT, vit())(tiles, KEYS, outputs)[outputs[0].column]
    for size, threads in ((1, 1), (7, 2), (64, 3)):
        encoder = Encoder(VIT, vit(), threads=threads)
        parts = [
            encoder(tiles[at : at + size], KEYS[at : at + size], outputs)[outputs[0].column]
            for at in range(0, len(tiles), size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


class OtherSums(nn.Module):
    """A network of which parts of fewer than `least` tiles get other numbers, as by other kernels.

    Args:
        least: size of a part from which on the numbers are the same.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.sizes = least, list[int]()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.sizes.append(len(x_BCHW))
        error = 1e-6 if len(x_BCHW) < self.least else 0.0
        return x_BCHW.mean(dim=(2, 3)) + error


@pytest.mark.parametrize(("least", "run"), [(1, [1, 4, 4]), (8, [8, 8, 8]), (40, [49, 49, 49])])
def test_short_part_is_filled_up_only_as_far_as_its_numbers_need(
    tiles: np.typing.NDArray[np.uint8], least: int, run: list[int]
) -> None:
    card = Card(name="m", architecture="m", dim=3, input_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    network = OtherSums(least)
    encoder = Encoder(card, Plain(network, 0))
    assert encoder.part_tiles == 49
    whole = encode(encoder, tiles[:49], "m")["m"]
    assert network.sizes == [49]  # a full part needs no trial
    encode(encoder, tiles[:1], "m")
    assert sorted(network.sizes[1:-1]) == [1, 2, 4, 8, 16, 32, 49]  # each size is tried once
    network.sizes.clear()
    for count in (1, 3, 4):
        np.testing.assert_array_equal(encode(encoder, tiles[:count], "m")["m"], whole[:count])
    assert network.sizes == run


def test_precision_is_that_of_the_arithmetic(tiles: np.typing.NDArray[np.uint8]) -> None:
    full = encode(Encoder(VIT, vit()), tiles[:4], "vit:cls")["vit:cls"]
    half = encode(Encoder(VIT, vit(), precision="bfloat16"), tiles[:4], "vit:cls")["vit:cls"]
    assert half.dtype == np.float32
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert (cosine > 0.999).all()
    assert (half != full).any()


def test_failure_5_a_card_that_is_wrong_about_prefix_tokens_is_refused(
    tiles: np.typing.NDArray[np.uint8],
) -> None:
    """Registers taken for patches, and the other way round, are the worst that can happen."""
    wrong = Card(**{**vars(VIT), "prefix_tokens": 1})
    with pytest.raises(TeacherError, match="its card has 1 prefix tokens, it has 5"):
        Encoder(wrong, vit())
    for change, reason in (
        ({"patch_px": 32}, r"gave tokens \[21, 192\]; its card says 5 \+ 2 x 2 of 192"),
        ({"dim": 384}, r"gave tokens \[21, 192\]; its card says 5 \+ 4 x 4 of 384"),
    ):
        card = Card(**{**vars(VIT), **change})
        with pytest.raises(TeacherError, match=reason):
            encode(Encoder(card, vit()), tiles[:1], "vit:mean")
    with pytest.raises(TeacherError, match="gives no tokens after block 9"):
        encode(Encoder(VIT, vit()), tiles[:1], "vit:cls@L9")


def test_what_does_not_fit_into_memory_is_run_in_halves(
    tiles: np.typing.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as on a GPU; the error is torch's own, put in for batches that are too large."""
    encoder = Encoder(VIT, vit())
    whole = encode(encoder, tiles, "vit:cls")["vit:cls"]
    plain, sizes = encoder._embed, []

    def small(x_BCHW: Tensor, *rest: object) -> dict[str, np.typing.NDArray[np.float32]]:
        sizes.append(len(x_BCHW))
        if len(x_BCHW) > 5:
            raise torch.OutOfMemoryError
        return plain(x_BCHW, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "_embed", small)
    again = encode(encoder, tiles, "vit:cls")["vit:cls"]
    assert max(sizes) > 5
    np.testing.assert_allclose(again, whole, atol=1e-5)


def test_failure_6_another_mean_gives_other_numbers(tiles: np.typing.NDArray[np.uint8]) -> None:
    shifted = Card(**{**vars(VIT), "mean": (0.485, 0.456, 0.406)})
    one, other = (encode(Encoder(card, vit()), tiles[:2], "vit:cls") for card in (VIT, shifted))
    assert np.abs(one["vit:cls"] - other["vit:cls"]).max() > 0.01


def test_a_network_without_timms_protocol(tiles: np.typing.NDArray[np.uint8]) -> None:
    class Mean(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return x_BCHW.mean(dim=(2, 3))

    card = Card(name="m", architecture="m", dim=3, input_px=64, mean=(0, 0, 0), std=(1, 1, 1))
    features = encode(Encoder(card, Plain(Mean(), 0)), tiles, "m")["m"]
    np.testing.assert_allclose(features, tiles.mean(axis=(1, 2)) / 255, atol=1e-5)
