"""Image sides of CLIPs: names of transformers' and open_clip's files, by torch's and timm's layers.

The same networks of full width gave equal numbers in transformers 5.24.0 and open_clip 3.3.0.
"""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import vision_transformer
from torch import Tensor, nn

from ingest.teachers.networks import build
from tests.worlds.tiny_networks import (
    TINY,
    Tensors,
    images,
    loaded,
    randomised,
    saved,
    small,
    tokens,
)

DIM, HEADS, DEPTH = TINY["embed_dim"], TINY["num_heads"], TINY["depth"]
TEXT = {"text_model.final_layer_norm.bias": torch.zeros(2), "logit_scale": torch.zeros(())}


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class Tower(nn.Module):
    """A ViT of torch's own encoder layers, and its weights under the names of transformers."""

    def __init__(self, patch: int, px: int, *, hidden: int = 4 * DIM, siglip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        eps, places = (1e-6, 0) if siglip else (1e-5, 1)
        self.conv = nn.Conv2d(3, DIM, patch, patch, bias=siglip)
        self.cls = None if siglip else nn.Parameter(torch.randn(DIM))
        self.table = nn.Parameter(torch.randn((px // patch) ** 2 + places, DIM))
        self.pre, self.post = nn.LayerNorm(DIM), nn.LayerNorm(DIM, eps=eps)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                DIM, HEADS, hidden, 0.0, tanh_gelu if siglip else quick_gelu, eps,
                batch_first=True, norm_first=True,
            )
            for _ in range(DEPTH)
        )  # fmt: skip
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape) * 0.1 + (parameter.data == 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the tokens before the last norm [B, N, D]."""
        x = self.conv(x_BCHW).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        x = x + self.table
        x = x if self.cls is None else self.pre(x)
        for layer in self.layers:
            x = layer(x)
        tokens_BND: Tensor = x
        return tokens_BND

    def file(self) -> Tensors:
        """The weights as transformers names them."""
        ends = {"weight": "weight", "bias": "bias"}
        out = {f"embeddings.patch_embedding.{n}": t for n, t in self.conv.state_dict().items()}
        out["embeddings.position_embedding.weight"] = self.table.data
        if self.cls is not None:
            out["embeddings.class_embedding"] = self.cls.data
            out["embeddings.position_ids"] = torch.arange(len(self.table))[None]
            out |= {f"pre_layrnorm.{n}": t for n, t in self.pre.state_dict().items()}
        out |= {f"post_layernorm.{n}": t for n, t in self.post.state_dict().items()}
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "linear1": "mlp.fc1",
                 "linear2": "mlp.fc2", "self_attn.out_proj": "self_attn.out_proj"}  # fmt: skip
        for number, layer in enumerate(self.layers):
            own, at = layer.state_dict(), f"encoder.layers.{number}."
            out |= {f"{at}{new}.{e}": own[f"{old}.{e}"] for old, new in names.items() for e in ends}
            for end in ends:
                parts = own[f"self_attn.in_proj_{end}"].chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    out[f"{at}self_attn.{letter}_proj.{end}"] = part
        return {f"vision_model.{name}": tensor for name, tensor in out.items()}


@torch.inference_mode()
def test_a_clip_of_transformers(tmp_path: Path) -> None:
    card = small("plip")
    tower, proj = Tower(32, 224).eval(), torch.randn(512, DIM)
    file = {**tower.file(), **TEXT, "visual_projection.weight": proj}
    model = loaded(card, saved(tmp_path / "pytorch_model.bin", file))
    expected = tower.post(tower(images(card)))
    torch.testing.assert_close(tokens(model, card), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images(card)), expected[:, 0] @ proj.T, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_isight_has_no_last_norm(tmp_path: Path) -> None:
    """Its file is a training checkpoint with optimizer and heads, which are of no use."""
    card = small("isight")
    tower, proj = Tower(14, 336).eval(), nn.Linear(DIM, DIM)
    model_state = {f"patch_encoder.{n}": t for n, t in {**tower.file(), **TEXT}.items()}
    model_state |= {f"visual_token_projection.{n}": t for n, t in proj.state_dict().items()}
    model_state["classifiers.0.weight"] = torch.zeros(3, 3)
    state = {"epoch": 3, "model_state_dict": model_state,
             "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}}}  # fmt: skip
    model = loaded(card, saved(tmp_path / "iSight_model_checkpoint.pth", state))
    expected = proj(tower(images(card)))
    torch.testing.assert_close(tokens(model, card), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(images(card)), expected.mean(1), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_siglip_of_transformers(tmp_path: Path) -> None:
    card = small("medsiglip", mlp_ratio=2.0)
    tower = Tower(14, 448, hidden=2 * DIM, siglip=True).eval()
    torch.manual_seed(5)
    probe, attention = torch.randn(1, 1, DIM), nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    norm, fc1, fc2 = nn.LayerNorm(DIM, eps=1e-6), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
    head = {"probe": probe}
    for name, module in (("attention", attention), ("layernorm", norm), ("mlp.fc1", fc1),
                         ("mlp.fc2", fc2)):  # fmt: skip
        head |= {f"{name}.{n}": t for n, t in module.state_dict().items()}
    file = {**tower.file(), **TEXT, "logit_bias": torch.zeros(())}
    file |= {f"vision_model.head.{name}": tensor for name, tensor in head.items()}
    model = loaded(card, saved(tmp_path / "model.safetensors", file))
    x = tower.post(tower(images(card)))
    torch.testing.assert_close(tokens(model, card), x, atol=1e-4, rtol=1e-4)
    pooled = attention(probe.expand(len(x), 1, -1), x, x, need_weights=False)[0]
    pooled = pooled + fc2(tanh_gelu(fc1(norm(pooled))))
    torch.testing.assert_close(model(images(card)), pooled[:, 0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["quiltnet_b32", "quiltnet_b16"])
def test_a_clip_of_open_clip(tmp_path: Path, name: str) -> None:
    """Against timm's converter, which makes a classifier of the projection."""
    card = small(name)
    file = open_clip_file(card.patch_px or 0, projection=torch.randn(DIM, 512))
    model = loaded(card, saved(tmp_path / "open_clip_pytorch_model.bin", file))
    reference = timm.create_model(str(card.arguments["trunk"]), num_classes=512, **TINY).eval()
    converted = vision_transformer.checkpoint_filter_fn(dict(file), reference)
    reference.load_state_dict(converted)
    torch.testing.assert_close(model(images(card)), reference(images(card)), atol=1e-5, rtol=1e-4)


def open_clip_file(patch: int, *, projection: Tensor, dim: int = DIM) -> Tensors:
    """Random weights of two blocks under the names of open_clip."""
    torch.manual_seed(6)
    block = {
        "ln_1.weight": (dim,), "ln_1.bias": (dim,), "ln_2.weight": (dim,), "ln_2.bias": (dim,),
        "attn.in_proj_weight": (3 * dim, dim), "attn.in_proj_bias": (3 * dim,),
        "attn.out_proj.weight": (dim, dim), "attn.out_proj.bias": (dim,),
        "mlp.c_fc.weight": (4 * dim, dim), "mlp.c_fc.bias": (4 * dim,),
        "mlp.c_proj.weight": (dim, 4 * dim), "mlp.c_proj.bias": (dim,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (dim,),
        "positional_embedding": ((224 // patch) ** 2 + 1, dim),
        "conv1.weight": (dim, 3, patch, patch),
        "ln_pre.weight": (dim,), "ln_pre.bias": (dim,),
        "ln_post.weight": (projection.shape[0],), "ln_post.bias": (projection.shape[0],),
    }  # fmt: skip
    for number in range(DEPTH):
        shapes |= {f"transformer.resblocks.{number}.{n}": s for n, s in block.items()}
    file = {f"visual.{name}": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    others = ("token_embedding.weight", "positional_embedding", "text_projection", "attn_mask",
              "transformer.resblocks.0.ln_1.weight", "logit_scale")  # fmt: skip
    return {**file, "visual.proj": projection, **{name: torch.zeros(2, 2) for name in others}}


@torch.inference_mode()
@pytest.mark.parametrize("name", ["biomedclip", "quiltnet_b16pmb"])
def test_a_clip_of_open_clip_on_a_network_of_timm(tmp_path: Path, name: str) -> None:
    card = small(name)
    own = randomised(build(card.architecture, card.input_px, card.arguments))
    file = {f"visual.{n.replace('proj.weight', 'head.proj.weight') if n == 'proj.weight' else n}": t
            for n, t in own.items()}  # fmt: skip
    file |= {"text.transformer.embeddings.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    model = loaded(card, saved(tmp_path / "open_clip_model.safetensors", file))
    expected = tokens(model, card)[:, 0] @ own["proj.weight"].T
    torch.testing.assert_close(model(images(card)), expected, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_coca_pools_by_attention_before_its_norm(tmp_path: Path, prefix: str) -> None:
    card = small("omiclip", projection=64)
    file = open_clip_file(14, projection=torch.randn(64, 64))
    pooler = nn.MultiheadAttention(64, 8, kdim=DIM, vdim=DIM, batch_first=True)
    query, ln_q, ln_k = torch.randn(256, 64), nn.LayerNorm(64), nn.LayerNorm(DIM)
    file["visual.attn_pool.query"] = query
    for at, module in (("attn", pooler), ("ln_q", ln_q), ("ln_k", ln_k)):
        file |= {f"visual.attn_pool.{at}.{n}": t for n, t in module.state_dict().items()}
    state = {"epoch": 1, "state_dict": {prefix + name: t for name, t in file.items()}}
    model = loaded(card, saved(tmp_path / "checkpoint.pt", state))
    x = ln_k(tokens(model, card))
    pooled = pooler(ln_q(query).expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0]
    pooled = F.layer_norm(pooled, (64,), file["visual.ln_post.weight"], file["visual.ln_post.bias"])
    expected = F.normalize(pooled @ file["visual.proj"], dim=-1)
    torch.testing.assert_close(model(images(card)), expected, atol=1e-5, rtol=1e-4)
