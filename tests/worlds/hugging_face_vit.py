"""The ViT and the Dinov2 of Hugging Face's transformers, by hand: a reference for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worlds.tiny_networks import TINY


class HuggingFace:
    """Two blocks with random weights, after the modelling code: its names, its arithmetic."""

    def __init__(
        self, patch: int, table: int, *, dino: bool, gated: int = 0, registers: int = 0
    ) -> None:
        self.patch, self.dino, self.gated = patch, dino, gated
        dim = TINY["embed_dim"]
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, dim),
            "embeddings.position_embeddings": (1, table**2 + 1, dim),
            "embeddings.patch_embeddings.projection.weight": (dim, 3, patch, patch),
            "embeddings.patch_embeddings.projection.bias": (dim,),
            "layernorm.weight": (dim,),
            "layernorm.bias": (dim,),
        }
        if dino:
            shapes["embeddings.mask_token"] = (1, dim)
        if registers:
            shapes["embeddings.register_tokens"] = (1, registers, dim)
        for block in range(TINY["depth"]):
            shapes |= {f"encoder.layer.{block}.{n}": s for n, s in self._block(dim).items()}
        torch.manual_seed(3)
        self.weights = {
            name: torch.randn(shape) * 0.1 + ("norm" in name and name.endswith("weight"))
            for name, shape in shapes.items()
        }

    def _block(self, dim: int) -> dict[str, tuple[int, ...]]:
        first, second = (
            ("mlp.fc1", "mlp.fc2") if self.dino else ("intermediate.dense", "output.dense")
        )
        norms = ("norm1", "norm2") if self.dino else ("layernorm_before", "layernorm_after")
        wide = [(first, 4 * dim, dim), (second, dim, 4 * dim)]
        if self.gated:
            wide = [("mlp.weights_in", 2 * self.gated, dim), ("mlp.weights_out", dim, self.gated)]
        layers = [f"attention.attention.{n}" for n in ("query", "key", "value")]
        square = [(name, dim, dim) for name in (*layers, "attention.output.dense")]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, out, into in (*square, *wide):
            shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
        for name in norms:
            shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
        if self.dino:
            shapes |= {f"layer_scale{n}.lambda1": (dim,) for n in (1, 2)}
        return shapes

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        w = self.weights
        patches = F.conv2d(
            x_BCHW, w["embeddings.patch_embeddings.projection.weight"],
            w["embeddings.patch_embeddings.projection.bias"], stride=self.patch,
        )  # fmt: skip
        cls = w["embeddings.cls_token"].expand(len(x_BCHW), -1, -1)
        x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(patches.shape[-1])
        if "embeddings.register_tokens" in w:
            registers = w["embeddings.register_tokens"].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in range(TINY["depth"]):
            x = self._layer(x, f"encoder.layer.{block}.")
        return self._norm(x, "layernorm")

    def _positions(self, side: int) -> Tensor:
        table = self.weights["embeddings.position_embeddings"]
        old = int((table.shape[1] - 1) ** 0.5)
        if old == side:
            return table
        grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def _layer(self, x: Tensor, at: str) -> Tensor:
        w, heads = self.weights, TINY["num_heads"]
        before, after = ("norm1", "norm2") if self.dino else ("layernorm_before", "layernorm_after")
        y = self._norm(x, at + before)
        query, key, value = (
            self._linear(y, f"{at}attention.attention.{name}").reshape(*y.shape[:2], heads, -1)
            for name in ("query", "key", "value")
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
        y = self._linear(y, at + "attention.output.dense")
        x = x + (y * w[at + "layer_scale1.lambda1"] if self.dino else y)
        y = self._mlp(self._norm(x, at + after), at)
        return x + (y * w[at + "layer_scale2.lambda1"] if self.dino else y)

    def _mlp(self, y: Tensor, at: str) -> Tensor:
        if self.gated:
            gate, values = self._linear(y, at + "mlp.weights_in").chunk(2, dim=-1)
            return self._linear(F.silu(gate) * values, at + "mlp.weights_out")
        first, second = (
            ("mlp.fc1", "mlp.fc2") if self.dino else ("intermediate.dense", "output.dense")
        )
        return self._linear(F.gelu(self._linear(y, at + first)), at + second)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])
