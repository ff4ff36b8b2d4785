"""Networks that timm has only in part: names of their files, and their heads by hand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import swin_transformer
from torch import Tensor

from ingest.teachers.cards.card_table import CARDS
from tests.worlds.tiny_networks import Tensors, images, loaded, network, randomised, saved, tokens


def test_ctranspath(tmp_path: Path) -> None:
    """Names of timm 0.5, against timm's converter; the stem by hand."""
    card = replace(CARDS["ctranspath"], arguments={"embed_dim": 48, "depths": [2, 2, 2, 2]})
    own = {n.removeprefix("trunk."): t for n, t in randomised(network(card)).items()}
    moved = {
        re.sub(r"^layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", n): t
        for n, t in own.items()
    }
    index = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49).long()}
    file = {**moved, **index, "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    model = loaded(card, saved(tmp_path / "ctranspath.pth", {"model": file}))
    reference = network(card)
    timm_weights = swin_transformer.checkpoint_filter_fn(dict(file), reference.trunk)
    reference.trunk.load_state_dict(timm_weights)
    assert torch.equal(tokens(model, card), tokens(reference, card))
    with torch.inference_mode():
        assert torch.equal(model(images(card)), tokens(reference, card).mean(1))
        x = images(card)
        for conv, batch_norm in ((0, 1), (3, 4)):
            x = F.conv2d(x, own[f"patch_embed.proj.{conv}.weight"], stride=2, padding=1)
            at = f"patch_embed.proj.{batch_norm}."
            x = F.batch_norm(
                x, own[at + "running_mean"], own[at + "running_var"], own[at + "weight"],
                own[at + "bias"],
            ).relu()  # fmt: skip
        x = F.conv2d(x, own["patch_embed.proj.6.weight"], own["patch_embed.proj.6.bias"])
        weight, bias = own["patch_embed.norm.weight"], own["patch_embed.norm.bias"]
        expected = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-5)
        stem = model.trunk.patch_embed(images(card))
    torch.testing.assert_close(stem, expected, atol=1e-5, rtol=1e-4)


def attention_pool(key: Tensor, value: Tensor, query: Tensor) -> Tensor:
    """Eight heads of one query [D] over tokens [B, N, D], by hand."""
    heads = [torch.chunk(y, 8, dim=-1) for y in (query, key, value)]
    out = []
    for q, k, v in zip(*heads, strict=True):
        scores = (k @ q) / q.shape[-1] ** 0.5
        out.append((scores.softmax(-1)[:, None] @ v)[:, 0])
    return torch.cat(out, dim=-1)


def norm(own: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], own[name + ".weight"], own[name + ".bias"], 1e-5)


@torch.inference_mode()
def test_conch(tmp_path: Path) -> None:
    """Its head by hand, with torch's names; a table of another size as its own code resizes it."""
    card = replace(CARDS["conch"], arguments={"depth": 1})
    own = randomised(network(card))
    file = {f"visual.{n}": t for n, t in own.items()}
    file |= {"text.token_embedding.weight": torch.zeros(3, 3), "logit_scale": torch.zeros(()),
             "visual.proj_contrast": torch.zeros(512, 512),
             "visual.ln_caption.bias": torch.zeros(768),
             "visual.attn_pool_caption.query": torch.zeros(256, 768),
             "text_decoder.text_projection": torch.zeros(2, 2)}  # fmt: skip
    model = loaded(card, saved(tmp_path / "pytorch_model.bin", file))
    x, at = tokens(model, card), "attn_pool_contrast."
    keys, query = norm(own, at + "ln_k", x), norm(own, at + "ln_q", own[at + "query"])[0]
    bias_q, bias_k, bias_v = own[at + "attn.in_proj_bias"].chunk(3)
    pooled = attention_pool(
        F.linear(keys, own[at + "attn.k_proj_weight"], bias_k),
        F.linear(keys, own[at + "attn.v_proj_weight"], bias_v),
        F.linear(query, own[at + "attn.q_proj_weight"], bias_q),
    )  # fmt: skip
    pooled = F.linear(pooled, own[at + "attn.out_proj.weight"], own[at + "attn.out_proj.bias"])
    expected = norm(own, "ln_contrast", pooled)
    torch.testing.assert_close(model(images(card)), expected, atol=1e-5, rtol=1e-4)
    small_table = torch.randn(1, 197, 768)
    file["visual.trunk.pos_embed"] = small_table
    resized = loaded(card, saved(tmp_path / "small.bin", file)).trunk.pos_embed
    resampled = timm.layers.resample_abs_pos_embed(
        small_table, [28, 28], num_prefix_tokens=1, interpolation="bilinear", antialias=False
    )
    torch.testing.assert_close(resized, resampled)


@torch.inference_mode()
def test_conch15(tmp_path: Path) -> None:
    """Its head by hand; its table is 14 x 14 in the file and grows as its own code does it."""
    card = replace(CARDS["conch15"], arguments={"depth": 1})
    own = randomised(network(card))
    table = torch.randn(1, 197, 1024)
    file = {**own, "trunk.pos_embed": table}
    model = loaded(card, saved(tmp_path / "pytorch_model_vision.bin", file))
    grid = table[:, 1:].reshape(1, 14, 14, 1024).permute(0, 3, 1, 2)
    grown = F.interpolate(grid, scale_factor=(28.1 / 14, 28.1 / 14), mode="bicubic")
    grown = grown.permute(0, 2, 3, 1).reshape(1, -1, 1024)
    torch.testing.assert_close(model.trunk.pos_embed, torch.cat([table[:, :1], grown], dim=1))
    timms = timm.layers.resample_abs_pos_embed(table, [28, 28], num_prefix_tokens=1)
    assert (model.trunk.pos_embed - timms).abs().max() > 0.1
    x, at = tokens(model, card), "attn_pool_contrast."
    query = norm(own, at + "ln_q", own[at + "query"])[0] @ own[at + "to_q.weight"].T
    key, value = (norm(own, at + "ln_k", x) @ own[at + "to_kv.weight"].T).chunk(2, dim=-1)
    pooled = attention_pool(key, value, query) @ own[at + "to_out.weight"].T
    expected = norm(own, "ln_contrast", pooled)
    torch.testing.assert_close(model(images(card)), expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_keep(tmp_path: Path, scale: str) -> None:
    """LayerScale has two names: left at its start of 1e-5 it all but switches the blocks off."""
    card = replace(CARDS["keep"], arguments={"depth": 1})
    own = randomised(network(card))
    file = {
        re.sub(r"^trunk", "visual", re.sub(r"^head", "visual_head", name)): tensor
        for name, tensor in own.items()
    }
    file = {re.sub(r"\.(ls\d)\.gamma$", rf".\1.{scale}", n): t for n, t in file.items()}
    file |= {
        "text.embeddings.word_embeddings.weight": torch.zeros(2, 2),
        "logit_scale": torch.ones(()),
    }
    model = loaded(card, saved(tmp_path / "model.safetensors", file))
    assert torch.equal(model.trunk.blocks[0].ls1.gamma, own["trunk.blocks.0.ls1.gamma"])
    x = tokens(model, card)[:, 0]
    for layer in (0, 2):
        x = F.linear(x, own[f"head.{layer}.weight"], own[f"head.{layer}.bias"])
        x = F.gelu(x) if layer == 0 else x
    torch.testing.assert_close(model(images(card)), x / x.norm(dim=-1, keepdim=True))


@pytest.mark.slow
def test_resnet_up_to_its_third_stage(tmp_path: Path) -> None:
    """The whole network's file fills both cards; the first stages are the same."""
    whole = timm.create_model("resnet50", num_classes=1000).eval()
    path = saved(tmp_path / "model.safetensors", whole.state_dict())
    third, last = (loaded(CARDS[name], path) for name in ("resnet50_layer3", "resnet50"))
    x_BCHW = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        maps = timm.create_model("resnet50", features_only=True, out_indices=[3]).eval()
        maps.load_state_dict(whole.state_dict(), strict=False)
        assert torch.equal(third(x_BCHW), maps(x_BCHW)[0].mean((2, 3)))
        expected = whole.forward_head(whole.forward_features(x_BCHW), pre_logits=True)
        assert torch.equal(last(x_BCHW), expected)
