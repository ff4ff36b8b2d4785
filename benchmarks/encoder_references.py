"""Networks of cards against the implementations that their authors' code uses, on random weights.

    pip install transformers open_clip_torch
    python -m benchmarks.encoder_references --genbio GENBIO_PATHFM

GENBIO_PATHFM is a checkout of genbio-ai/genbio-pathfm. Networks have their full width and two
blocks. A file is written under the other implementation's names and read as a card's weights are,
so the names are compared too. It prints the largest difference of an embedding, beside its mean
size.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import RESULTS, write_report
from ingest import CARDS
from ingest.teachers.cards import Card
from tests.worlds.tiny_networks import Tensors, images, loaded, saved

Case = tuple[str, Tensor, Tensor]
PREFIXED = ("norm", "ln_", "layrnorm")


def random_weights(model: nn.Module) -> Tensors:
    """Return random weights of a network, in which norms stay near one."""
    torch.manual_seed(1)
    return {
        name: torch.randn(tensor.shape) * 0.05
        + (name.endswith("weight") and any(words in name for words in PREFIXED))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in model.state_dict().items()
    }


def two_blocks(name: str) -> Card:
    """Return a card's network with two blocks."""
    return replace(CARDS[name], arguments={**CARDS[name].arguments, "depth": 2})


def ours(card: Card, file: object, folder: Path) -> Tensor:
    """Return our embeddings of two random tiles, with weights from a file."""
    embedding: Tensor = loaded(card, saved(folder / "weights.pth", file))(images(card))
    return embedding


def filled(model: Any) -> Any:  # noqa: ANN401 - other packages' networks
    """Return a network with random weights, which are its `kept`."""
    model.kept = random_weights(model)
    model.load_state_dict(model.kept)
    return model.eval()


def of_transformers(folder: Path) -> Iterator[Case]:
    """Yield PLIP, iSight and MedSigLIP."""
    hf = importlib.import_module("transformers")
    text: dict[str, Any] = {"num_hidden_layers": 1}
    clip: dict[str, Any] = {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
    base: dict[str, Any] = {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    large: dict[str, Any] = {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    card = two_blocks("plip")
    vision = {**clip, **base, "patch_size": 32, "image_size": 224}
    config = hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)
    model = filled(hf.CLIPModel(config))
    features = model.get_image_features(images(card))
    expected = getattr(features, "pooler_output", features)
    yield "plip", ours(card, model.kept, folder), expected

    card = two_blocks("isight")
    vision = {**clip, **large, "patch_size": 14, "image_size": 336}
    model = filled(hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text)))
    proj = nn.Linear(1024, 1024)
    state = {f"patch_encoder.{name}": tensor for name, tensor in model.kept.items()}
    state |= {f"visual_token_projection.{n}": tensor for n, tensor in proj.state_dict().items()}
    hidden = model.vision_model(images(card), output_hidden_states=True).hidden_states[-1]
    yield "isight", ours(card, {"model_state_dict": state}, folder), proj(hidden).mean(1)

    card = two_blocks("medsiglip")
    wide: dict[str, Any] = {"hidden_size": 1152, "num_attention_heads": 16}
    vision = {**wide, "intermediate_size": 4304, "num_hidden_layers": 2, "patch_size": 14,
              "image_size": 448}  # fmt: skip
    model = filled(
        hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config={**wide, **text}))
    )
    expected = model.vision_model(pixel_values=images(card)).pooler_output
    yield "medsiglip", ours(card, model.kept, folder), expected


def of_open_clip(folder: Path) -> Iterator[Case]:
    """Yield QuiltNet, BiomedCLIP and OmiCLIP."""
    clip = importlib.import_module("open_clip.model")
    coca = importlib.import_module("open_clip.coca_model")
    on_timm = importlib.import_module("open_clip.timm_model")
    card = two_blocks("quiltnet_b32")
    vision = clip.CLIPVisionCfg(layers=2, width=768, patch_size=32, image_size=224)
    model = filled(clip.CLIP(512, vision, clip.CLIPTextCfg(layers=1), quick_gelu=True))
    yield "quiltnet_b32", ours(card, model.kept, folder), model.encode_image(images(card))

    for name in ("biomedclip", "quiltnet_b16pmb"):
        tower = filled(
            on_timm.TimmModel("vit_base_patch16_224", 512, pool="", proj="linear", image_size=224)
        )
        file = {f"visual.{key}": tensor for key, tensor in tower.kept.items()}
        yield name, ours(CARDS[name], file, folder), tower(images(CARDS[name]))

    card = two_blocks("omiclip")
    vision = clip.CLIPVisionCfg(
        layers=2, width=1024, patch_size=14, image_size=224, attentional_pool=True,
        attn_pooler_heads=8, output_tokens=True,
    )  # fmt: skip
    words = clip.CLIPTextCfg(layers=1, width=768, heads=12, embed_cls=True, output_tokens=True,
                             context_length=76)  # fmt: skip
    both = coca.MultimodalCfg(width=768, heads=12, layers=1, context_length=76)
    model = filled(coca.CoCa(768, both, words, vision))
    file = {"state_dict": {f"module.{key}": tensor for key, tensor in model.kept.items()}}
    yield "omiclip", ours(card, file, folder), model.encode_image(images(card))


def of_genbio(folder: Path, checkout: str) -> Iterator[Case]:
    """Yield GenBio-PathFM, turned in float32 as by timm, and in bfloat16 as by its own code."""
    sys.path.append(checkout)
    code = importlib.import_module("genbio_pathfm.model")
    card = two_blocks("genbio_pathfm")
    for kind in ("fp32", "bf16"):
        model = code.VisionTransformer(
            embed_dim=1536, depth=2, num_heads=24, ffn_ratio=4, layerscale_init=1e-5,
            qkv_bias=False, pos_embed_rope_dtype=kind,
        )  # fmt: skip
        periods = model.rope_embed.periods.clone()
        kept = {
            name: torch.full_like(tensor, 0.5) if ".ls" in name else tensor
            for name, tensor in random_weights(model).items()
        }
        kept["rope_embed.periods"] = periods
        model.load_state_dict(kept)
        channels = images(card).flatten(0, 1).unsqueeze(1)
        tokens = model.eval().forward_features(channels)["x_norm_clstoken"]
        yield (
            f"genbio_pathfm, {kind}",
            ours(card, kept, folder),
            tokens.unflatten(0, (2, 3)).flatten(1),
        )


def main() -> None:
    """Compare, print and write all cases whose packages are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genbio", help="checkout of genbio-ai/genbio-pathfm")
    options = parser.parse_args()
    groups: list[Callable[[Path], Iterator[Case]]] = [of_transformers, of_open_clip]
    if options.genbio:
        groups.append(lambda folder: of_genbio(folder, options.genbio))
    lines = []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        for group in groups:
            for name, made, expected in group(Path(scratch)):
                cosine = torch.nn.functional.cosine_similarity(made, expected).min()
                line = {
                    "network": name,
                    "largest_difference": float((made - expected).abs().max()),
                    "mean_size": float(expected.abs().mean()),
                    "least_cosine": float(cosine),
                }
                lines.append(line)
                print(line)
    others = {
        name: getattr(sys.modules.get(name), "__version__", None)
        for name in ("timm", "transformers", "open_clip")
    }
    print(write_report(RESULTS, lines, others, name="encoder-references"))


if __name__ == "__main__":
    main()
