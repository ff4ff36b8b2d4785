"""Weights under other implementations' names, against those implementations.

References are written by hand from the published code, or are timm's own converters.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import eva, vision_transformer
from torch import Tensor

from ingest.errors import TeacherError
from ingest.teachers.cards.card import Card
from ingest.teachers.cards.card_table import CARDS
from ingest.teachers.networks import build
from ingest.teachers.weights.weight_keys import read_weights
from ingest.teachers.weights.weights_files import find_weights
from tests.worlds.hugging_face_vit import HuggingFace
from tests.worlds.tiny_networks import (
    Tensors,
    images,
    loaded,
    network,
    randomised,
    saved,
    small,
    tokens,
)


@pytest.mark.parametrize("prefix", ["", "own."])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("phikon", functools.partial(HuggingFace, 16, 14, dino=False)),
        ("phikon_v2", functools.partial(HuggingFace, 16, 14, dino=True)),
        ("hibou_b", functools.partial(HuggingFace, 14, 16, dino=True, gated=128, registers=4)),
        ("midnight12k", functools.partial(HuggingFace, 14, 37, dino=True, gated=128)),
    ],
)
def test_hugging_face_names(
    tmp_path: Path, name: str, reference: Callable[[], HuggingFace], prefix: str
) -> None:
    """The base model's names, and those under the base model's own prefix."""
    reference_model = reference()
    card = small(name, mlp_ratio=2 * reference_model.gated / 48 if reference_model.gated else 4.0)
    own = {"own.": "dinov2." if reference_model.dino else "vit."}.get(prefix, "")
    extra = {} if reference_model.dino else {"pooler.dense.bias": torch.zeros(48)}
    file = {own + n: t for n, t in {**reference_model.weights, **extra}.items()}
    model = loaded(card, saved(tmp_path / "model.safetensors", file))
    with torch.inference_mode():
        expected = reference_model(images(card))
    torch.testing.assert_close(tokens(model, card), expected, atol=2e-5, rtol=1e-4)


def meta_dinov2(card: Card, registers: int, side: int) -> Tensors:
    """A file under the names of Meta's own code."""
    tensors = randomised(build(card.architecture, side, card.arguments))
    if registers:
        tensors["register_tokens"] = tensors.pop("reg_token")
        tensors["pos_embed"] = torch.cat([torch.randn(1, 1, 48) * 0.1, tensors["pos_embed"]], dim=1)
    tensors["mask_token"] = torch.zeros(1, 48)
    swiglu = "SwiGLUPacked" in str(card.arguments) or "giant" in card.architecture
    names = (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")) if swiglu else ()
    for ours, file_name in names:
        tensors = {n.replace(ours, file_name): t for n, t in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    ("name", "registers", "side"),
    [
        ("dinov2_vits14", 0, 518),
        ("dinov2_vitb14_reg4", 4, 518),
        ("dinov2_vitg14", 0, 518),
        ("dinov2_vitg14_reg4", 4, 224),
        ("hibou_b", 4, 224),
    ],
)
def test_metas_names(tmp_path: Path, name: str, registers: int, side: int) -> None:
    """Against timm's converter, which also resizes the table of positions."""
    card = small(name)
    file = meta_dinov2(card, registers, side)
    model = loaded(card, saved(tmp_path / "weights.pth", file))
    reference = network(card)
    reference.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(file), reference))
    assert torch.equal(tokens(model, card), tokens(reference, card))


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg4", "kaiko_vitl14"])
def test_timms_table_of_518_px_is_resized_as_timm_does_on_the_fly(
    tmp_path: Path, name: str
) -> None:
    card = small(name)
    large = timm.create_model(
        card.architecture, num_classes=0, img_size=518, dynamic_img_size=True, **card.arguments
    ).eval()
    large.load_state_dict(randomised(large))
    model = loaded(card, saved(tmp_path / "model.safetensors", large.state_dict()))
    torch.testing.assert_close(tokens(model, card), tokens(large, card), atol=1e-5, rtol=1e-5)


def test_dinov3_of_meta(tmp_path: Path) -> None:
    card = small("dinov3_vits16plus")
    own = randomised(network(card))
    names = (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma"),
             ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"))  # fmt: skip
    file = own
    for ours, file_name in names:
        file = {n.replace(ours, file_name): t for n, t in file.items()}
    file |= {"mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(3)}
    for block in range(2):
        file[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(144)
        file[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((144,), torch.nan)
    model = loaded(card, saved(tmp_path / "weights.pth", file))
    reference = network(card)
    reference.load_state_dict(eva.checkpoint_filter_fn(dict(file), reference))
    assert torch.equal(tokens(model, card), tokens(reference, card))
    file["blocks.1.attn.qkv.bias"][5] = 0.1
    with pytest.raises(
        TeacherError, match=r"1 of \d+ tensors differ, first blocks.1.attn.qkv.bias"
    ):
        loaded(card, saved(tmp_path / "biased.pth", file))


def test_both_files_of_gpfm(tmp_path: Path) -> None:
    card = small("gpfm", depth=4)
    own = randomised(network(card))
    chunked = {
        "backbone."
        + re.sub(r"^blocks\.(\d)", lambda at: f"blocks.{int(at[1]) // 2}.{at[1]}", name): t
        for name, t in own.items()
    }
    head = {"backbone.mask_token": torch.zeros(1, 48), "dino_head.mlp.0.weight": torch.zeros(2, 2)}
    bare = saved(tmp_path / "hub.pth", own)
    wrapped = saved(tmp_path / "github.pth", {"teacher": {**chunked, **head}, "iteration": 7})
    one, two = (tokens(loaded(card, path), card) for path in (bare, wrapped))
    assert torch.equal(one, two)


def test_musk(tmp_path: Path) -> None:
    """Against timm's converter, which leaves the final norm under another name."""
    card = small("musk")
    own = randomised(network(card))
    file: Tensors = {}
    for name, tensor in own.items():
        file |= torchscale(name, tensor)
    twins = {n.replace(".A.", ".B."): torch.randn_like(t) for n, t in file.items() if ".A." in n}
    other = {"beit3.text_embed.weight": torch.zeros(9, 48), "logit_scale": torch.zeros(()),
             "beit3.vision_embed.mask_token": torch.zeros(1, 1, 48)}  # fmt: skip
    other |= {f"{name}_head.weight": torch.zeros(48, 48) for name in ("vision", "language")}
    model = loaded(card, saved(tmp_path / "model.safetensors", {**file, **twins, **other}))
    reference = network(card)
    converted = vision_transformer.checkpoint_filter_fn({**file, **twins}, reference)
    reference.load_state_dict(
        {re.sub(r"^layer_norm\.", "norm.", n): t for n, t in converted.items()}
    )
    assert torch.equal(tokens(model, card), tokens(reference, card))
    assert torch.equal(tokens(model, card)[:, 0], model(images(card)).detach())


def torchscale(name: str, tensor: Tensor) -> Tensors:
    """One of timm's tensors under the names of the torchscale that MUSK is built from."""
    if name == "pos_embed":
        table = torch.cat([torch.randn(2, tensor.shape[-1]), tensor[0]])
        return {"beit3.encoder.embed_positions.A.weight": table}
    if name == "cls_token":
        return {"beit3.vision_embed.cls_token": tensor}
    if name.startswith("patch_embed."):
        return {f"beit3.vision_embed.{name.removeprefix('patch_embed.')}": tensor}
    if name.startswith("norm."):
        return {f"beit3.encoder.layer_norm.A.{name.removeprefix('norm.')}": tensor}
    _, block, rest = name.split(".", 2)
    layer = f"beit3.encoder.layers.{block}."
    if ".qkv." in name:
        kind, thirds = name.rsplit(".", 1)[1], tensor.chunk(3)
        return {
            f"{layer}self_attn.{n}_proj.A.{kind}": t for n, t in zip("qkv", thirds, strict=True)
        }
    for ours, file_name in (
        ("attn.norm", "self_attn.inner_attn_ln.A"), ("attn.proj", "self_attn.out_proj.A"),
        ("norm1", "self_attn_layer_norm.A"), ("norm2", "final_layer_norm.A"),
        ("mlp.norm", "ffn.A.ffn_layernorm"), ("mlp.fc1", "ffn.A.fc1"), ("mlp.fc2", "ffn.A.fc2"),
    ):  # fmt: skip
        if rest.startswith(ours):
            return {layer + rest.replace(ours, file_name): tensor}
    raise AssertionError(name)


@pytest.mark.parametrize("number", [0, 1])
def test_lite_is_filled_in_order(number: int) -> None:
    card = CARDS[f"efficientnet_lite{number}"]
    path = find_weights(card)
    assert path is not None
    file_tensors = [t for n, t in read_weights(path).items() if not n.startswith("_fc.")]
    ours = loaded(card, path).state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(ours, file_tensors, strict=True))
    other = find_weights(CARDS[f"efficientnet_lite{1 - number}"])
    assert other is not None
    with pytest.raises(TeacherError, match="tensors differ"):
        loaded(card, other)
