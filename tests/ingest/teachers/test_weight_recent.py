"""Recent encoders: their heads by hand, and names of their files against timm's converters."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import eva, vision_transformer
from torch import Tensor

from ingest.teachers.cards.card_table import CARDS
from tests.worlds.tiny_networks import (
    TINY,
    Tensors,
    images,
    loaded,
    network,
    randomised,
    saved,
    small,
    tokens,
)


@torch.inference_mode()
def test_mettle_refines_its_class_token_alone(tmp_path: Path) -> None:
    card = small("mettle")
    own = randomised(network(card))
    file = {n.replace("trunk.", "backbone.", 1): t for n, t in own.items()}
    model = loaded(card, saved(tmp_path / "model.safetensors", file))
    x = tokens(model, card)
    e = x[:, 0]

    def layers(name: str) -> Tensor:
        hidden = F.gelu(F.linear(e, own[f"head.{name}.0.weight"], own[f"head.{name}.0.bias"]))
        return F.linear(hidden, own[f"head.{name}.2.weight"], own[f"head.{name}.2.bias"])

    refined = e + layers("shift")
    for atom, (down, up) in enumerate(zip(own["head.P"], own["head.Q"], strict=True)):
        refined = refined + layers("mix")[:, atom : atom + 1] * (e @ down @ up.T)
    expected = torch.cat([refined, x[:, 5:].mean(1)], dim=-1)
    torch.testing.assert_close(model(images(card)), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_genbio_sees_three_pictures_of_one_channel(tmp_path: Path) -> None:
    """Names of Meta's DINOv3, as its own code has them; each channel by timm's own network."""
    card = small("genbio_pathfm")
    own = {n.removeprefix("trunk."): t for n, t in randomised(network(card)).items()}
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma",
             "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}  # fmt: skip
    file: Tensors = {}
    for name, tensor in own.items():
        for new, old in names.items():
            name = name.replace(new, old)
        file[name] = tensor
    file["rope_embed.periods"] = torch.ones(3)
    model = loaded(card, saved(tmp_path / "model.pth", file))
    arguments = {k: v for k, v in card.arguments.items() if k != "norm_layer"}
    trunk: eva.Eva = timm.create_model(  # its norms have another epsilon than those of Meta's
        "vit_huge_plus_patch16_dinov3", in_chans=1, num_classes=0, global_pool="token",
        norm_layer=timm.layers.LayerNorm, **arguments,
    ).eval()  # fmt: skip
    trunk.load_state_dict(own)
    channels = [trunk.forward_features(images(card)[:, [number]]) for number in range(3)]
    x = tokens(model, card)
    torch.testing.assert_close(x, torch.cat(channels, dim=-1), atol=1e-5, rtol=1e-4)
    assert torch.equal(model(images(card)), x[:, 0])
    last, between = model.forward_intermediates(
        images(card), indices=[1], norm=True, output_fmt="NLC", return_prefix_tokens=True
    )
    torch.testing.assert_close(torch.cat([between[0][1], between[0][0]], dim=1), x)
    torch.testing.assert_close(last, x)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["c_radio_v3_b", "c_radio_v3_l", "c_radio_v4_h"])
def test_radio_is_what_timm_makes_of_nvidias_file(tmp_path: Path, name: str) -> None:
    """The B of version 3 resizes its table of positions with corners aligned."""
    card = small(name)
    own = randomised(network(card))
    registers = own["reg_token"].shape[1]
    file = {f"radio_model.model.{n}": t for n, t in own.items() if n.startswith("blocks.")}
    at = "radio_model.model.patch_generator."
    file |= {
        f"{at}embedder.weight": own["patch_embed.proj.weight"].flatten(1),
        f"{at}pos_embed": torch.randn(1, 128**2, TINY["embed_dim"]),
        f"{at}cls_token.token": torch.randn(1 + registers, TINY["embed_dim"]),
        "radio_model.input_conditioner.norm_mean": torch.zeros(3, 1, 1),
        "radio_model.summary_idxs": torch.arange(2),
    }
    model = loaded(card, saved(tmp_path / "model.safetensors", file))
    reference = network(card)
    converted = vision_transformer.checkpoint_filter_fn(
        dict(file),
        reference,
        interpolation="bilinear",
        antialias=False,
        align_corners=name.endswith("v3_b"),
    )
    reference.load_state_dict(converted)
    assert torch.equal(tokens(model, card), tokens(reference, card))


@torch.inference_mode()
def test_gemma_is_the_mean_of_its_soft_tokens(tmp_path: Path) -> None:
    """Against timm's own pooling, which is that of transformers; three by three patches each."""
    card = replace(
        CARDS["gemma4_e4b"], input_px=96, arguments={"depth": 1, "intermediate_size": 64}
    )
    own = {n.removeprefix("trunk."): t for n, t in network(card).state_dict().items()}
    model = loaded(card, saved(tmp_path / "model.safetensors", own))
    soft = timm.create_model("gemma4_vit_167m_enc", **card.arguments).eval()
    soft.load_state_dict(own)
    x_BCHW = images(card).sigmoid()  # it takes pixels from 0 to 1
    tokens_BND = soft(x_BCHW)
    assert tokens_BND.shape == (2, 4, 768)
    torch.testing.assert_close(model(x_BCHW), tokens_BND.mean(1), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_pathoduet_has_a_token_before_its_class_token(tmp_path: Path) -> None:
    """Their order changes nothing but the rows of the table: attention does not see it."""
    card = small("pathoduet_he")
    own = randomised(network(card))
    table = own["pos_embed"]
    file = {n: t for n, t in own.items() if n != "reg_token"}
    file |= {"pretext_token": own["reg_token"], "head.weight": torch.zeros(2, 2),
             "pos_embed": table[:, [1, 0, *range(2, table.shape[1])]]}  # fmt: skip
    model = loaded(card, saved(tmp_path / "checkpoint_HE.pth", file))
    x = model.patch_embed(images(card))
    both = [file["pretext_token"], file["cls_token"]]
    x = torch.cat([*(token.expand(len(x), 1, -1) for token in both), x], dim=1) + file["pos_embed"]
    patches = model.blocks(x)[:, 2:].mean(dim=1)
    torch.testing.assert_close(model(images(card)), model.fc_norm(patches), atol=1e-5, rtol=1e-4)


def test_tuned_encoders_are_the_networks_they_were_tuned_from() -> None:
    pairs = {"mascaret": "midnight12k", "phaet": "phikon_v2", "chief_ctranspath": "ctranspath"}
    for name, origin in pairs.items():
        kept, first = CARDS[name], CARDS[origin]
        assert replace(kept, name=origin).identity() == first.identity()
        assert kept.keys == first.keys
        assert kept.hub is None or kept.hub != first.hub
