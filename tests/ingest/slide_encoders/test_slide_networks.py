"""Networks of slide encoders against the formulas of their references, written plainly here.

Each reference below is the published formula as it stands: whole matrices of all tokens by all
tokens, no blocks. Weights are random, and have the names of the authors' files.
"""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.networks.authors_model import build_care, build_prism
from ingest.slide_encoders.networks.gated_attention import Chief, Eagle, Feather, Madeleine
from ingest.slide_encoders.networks.gigapath import GigaPathSlide, segment_lengths
from ingest.slide_encoders.networks.query_blocks import attend
from ingest.slide_encoders.networks.titan import Titan, head_slopes
from ingest.slide_encoders.slide_card_table import SLIDE_ENCODERS
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork
from ingest.slide_encoders.tile_cells import TilePlaces, cells_from_first
from ingest.slide_encoders.tile_cells import cells as cells_of
from tests.conftest import ROOT

Weights = dict[str, Tensor]


def random_weights(network: SlideNetwork, seed: int = 0) -> Weights:
    """Fill a network with random numbers, also where it begins with zeros or ones."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.2)
    network.double().eval()
    return dict(network.state_dict())


def norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.reshape(len(x), heads, -1).transpose(0, 1)


# ---------------------------------------------------------------------- TITAN


def titan_formula(x: Tensor, xy: np.ndarray, side: int, w: Weights, *, heads: int) -> Tensor:
    """TITAN from level-0 places: a grid of features, 2-D ALiBi on its tissue, a pooling query."""
    cell = (xy - xy.min(axis=0)) // side
    across, down = cell.max(axis=0) + 1
    grid = torch.zeros(across, down, x.shape[1], dtype=x.dtype)
    for (column, row), features in zip(cell, x, strict=True):
        grid[column, row] += features
    tissue = (grid != 0).any(dim=-1)
    tokens = gelu(linear(grid[tissue], w, "patch_embed.0"))
    tokens = torch.cat([w["cls_token"][0], tokens])
    points = np.argwhere(tissue.numpy())
    distance = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
    bias = np.zeros((heads, len(tokens), len(tokens)))
    bias[:, 1:, 1:] = -np.array(slopes(heads))[:, None, None] * distance
    depth = len({name.split(".")[2] for name in w if name.startswith("blocks.")})
    for number in range(depth):
        block = f"blocks.modules_list.{number}"
        q, k, v = linear(norm(tokens, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(
            3, 1
        )
        q, k, v = (heads_of(part, heads) for part in (q, k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + torch.from_numpy(bias)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(tokens), -1)
        tokens = tokens + linear(mixed, w, f"{block}.attn.proj")
        hidden = gelu(linear(norm(tokens, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
        tokens = tokens + linear(hidden, w, f"{block}.mlp.fc2")
    return pooled(norm(tokens, w, "norm", 1e-6), w, heads=heads)


def pooled(tokens: Tensor, w: Weights, *, heads: int) -> Tensor:
    name = "attn_pool_contrastive"
    query = norm(w[f"{name}.query"], w, f"{name}.ln_q", 1e-5)
    keys = norm(tokens, w, f"{name}.ln_k", 1e-5)
    weights, biases = (w[f"{name}.attn.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
    q, k, v = (
        heads_of(part @ weight.T + bias, heads)
        for part, weight, bias in zip((query, keys, keys), weights, biases, strict=True)
    )
    mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return linear(mixed.transpose(0, 1).reshape(1, -1), w, f"{name}.attn.out_proj")[0]


def slopes(n: int) -> list[float]:
    """The slopes as Press et al. publish them, by recursion."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return slopes(closest) + slopes(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
def test_slopes_are_those_of_alibi(heads: int) -> None:
    assert head_slopes(heads) == pytest.approx(slopes(heads))


def test_titan_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    network = Titan(dim=24, depth=3, heads=6, pool_heads=6)
    weights = random_weights(network)
    side = 1024
    cells = rng.permutation(13 * 9)[:60]
    xy = np.stack([cells % 13, cells // 13], axis=1) * side + [300, 7]
    x = torch.from_numpy(rng.normal(size=(60, 24)))
    x[5] = 0  # background to TITAN
    places = TilePlaces(
        x=xy[:, 0].astype(np.int32), y=xy[:, 1].astype(np.int32), tile_px_level0=side
    )
    vector = network(x, torch.from_numpy(cells_from_first(places)))
    wanted = titan_formula(x, xy, side, weights, heads=6)
    assert torch.allclose(vector, wanted, atol=1e-10)
    moved = network(x, torch.from_numpy(cells_from_first(places)).flip(0))
    assert not torch.allclose(moved, wanted, atol=1e-5)


# ---------------------------------------------------------------------- GigaPath


def longnet_attention(x: Tensor, w: Weights, name: str, heads: int, lengths: list[int]) -> Tensor:
    """Dilated attention as masks: for each branch and head, who is a key of whom, and the padding.

    A key of zeros has score 0 and value 0: it adds one to the sum of exponents.
    """
    q, k, v = (heads_of(linear(x, w, f"{name}.{part}_proj"), heads) for part in ("q", "k", "v"))
    tokens, ratios = len(x), [1, 2, 4, 8, 16]
    at = np.arange(tokens)
    outputs, totals = [], []
    for length, ratio in zip(lengths, ratios, strict=True):
        length = min(length, tokens)
        in_branch, place = at // length, at % length
        output, total = torch.zeros_like(q), torch.full((heads, tokens), -torch.inf).double()
        for head in range(heads):
            group = head // (heads // ratio)
            taken = torch.from_numpy(place % ratio == group)
            keys = taken[None, :] & taken[:, None]
            keys &= torch.from_numpy(in_branch[:, None] == in_branch[None, :])
            scores = q[head] @ k[head].T / math.sqrt(q.shape[-1])
            exponents = torch.where(keys, scores.exp(), 0.0)
            slots = math.ceil(length / ratio)  # of a full segment
            sums = exponents.sum(1) + torch.where(taken, slots - keys.sum(1), 0)
            output[head] = torch.where(taken[:, None], exponents @ v[head] / sums[:, None], 0.0)
            total[head] = torch.where(taken, sums.log(), -torch.inf)
        outputs.append(output)
        totals.append(total)
    share = torch.stack(totals).softmax(0)[..., None]
    mixed = (torch.stack(outputs) * share).sum(0).transpose(0, 1).reshape(tokens, -1)
    return linear(norm(mixed, w, f"{name}.inner_attn_ln", 1e-5), w, f"{name}.out_proj")


def sincos_table(dim: int, side: int) -> np.ndarray:
    """The table of the masked autoencoder, line by line of a grid; the column's numbers lead."""

    def one(position: np.ndarray) -> np.ndarray:
        omega = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
        out = position.reshape(-1)[:, None] * omega[None]
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    across, lines = np.meshgrid(np.arange(side), np.arange(side))
    return np.concatenate([one(across), one(lines)], axis=1)


def gigapath_formula(
    x: Tensor, xy: np.ndarray, side: int, w: Weights, *, lengths: list[int], layers: int
) -> Tensor:
    grid = 40
    line = (xy // side)[:, 0] * grid + (xy // side)[:, 1]
    dim = w["cls_token"].shape[-1]
    tokens = linear(x, w, "patch_embed.proj") + torch.from_numpy(sincos_table(dim, grid)[line])
    tokens = torch.cat([w["cls_token"][0], tokens])
    for number in range(layers):
        layer = f"encoder.layers.{number}"
        tokens = tokens + longnet_attention(
            norm(tokens, w, f"{layer}.self_attn_layer_norm", 1e-5),
            w,
            f"{layer}.self_attn",
            16,
            lengths,
        )
        hidden = gelu(
            linear(norm(tokens, w, f"{layer}.final_layer_norm", 1e-5), w, f"{layer}.ffn.fc1")
        )
        hidden = norm(hidden, w, f"{layer}.ffn.ffn_layernorm", 1e-5)
        tokens = tokens + linear(hidden, w, f"{layer}.ffn.fc2")
    return norm(tokens[1:].mean(0), w, "norm", 1e-6)


@pytest.mark.parametrize(("layer", "tiles"), [(2, 90), (1, 9)])
def test_gigapath_is_its_formula(layer: int, tiles: int) -> None:
    rng = np.random.default_rng(1)
    network = GigaPathSlide(input_dim=10, dim=64, depth=2, layer=layer, grid=40)
    weights = random_weights(network)
    lengths = [20, 33, 64, 100, 400]  # short ones, so that all branches have several segments
    for one in network.encoder.layers:
        one.self_attn.lengths = lengths  # type: ignore[union-attr]
    side = 512
    cells = rng.permutation(40 * 40)[:tiles]
    xy = np.stack([cells % 40, cells // 40], axis=1) * side + 11
    x = torch.from_numpy(rng.normal(size=(tiles, 10)))
    places = TilePlaces(
        x=xy[:, 0].astype(np.int32), y=xy[:, 1].astype(np.int32), tile_px_level0=side
    )
    vector = network(x, torch.from_numpy(cells_of(places)))
    wanted = gigapath_formula(x, xy, side, weights, lengths=lengths, layers=layer)
    assert torch.allclose(vector, wanted, atol=1e-10)


def test_gigapath_has_the_published_segments() -> None:
    exponents = np.linspace(np.log2(1024), int(np.log2(1024**2)), 5)
    assert segment_lengths() == np.power(2, exponents).astype(int).tolist()


def test_gigapath_refuses_places_beyond_its_grid() -> None:
    network = GigaPathSlide(input_dim=4, dim=32, depth=1, layer=1)
    with pytest.raises(SlideEncoderError, match="a tile lies in cell 1000"):
        network(torch.zeros(1, 4), torch.tensor([[0, 1000]]))


# ---------------------------------------------------------------------- blocks and memory


def test_blocks_of_queries_change_nothing() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 50, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(3, 50, 50, dtype=torch.float64)
    whole, _ = attend(q, k, v, bias=lambda start, stop: bias[:, start:stop])
    parts, lse = attend(q, k, v, bias=lambda a, b: bias[:, a:b], block_bytes=4 * 3 * 50 * 7)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert torch.allclose(whole, wanted)
    assert torch.allclose(parts, wanted)
    scores = q @ k.transpose(1, 2) / math.sqrt(8) + bias
    assert torch.allclose(lse, scores.logsumexp(-1))


LARGE = """
import resource, torch
from ingest.slide_encoders.networks import gigapath, titan
from ingest.slide_encoders.networks.query_blocks import attend

def first_queries(q, k, v, **more):
    # blocks of queries run one after the other in the same memory: a few of TITAN's are enough
    out, (part, lse) = torch.zeros_like(q), attend(q[:, :{queries}], k, v, **more)
    out[:, :{queries}] = part
    return out, lse

titan.attend = first_queries
torch.manual_seed(0)
cells = torch.randperm(300 * 300)[:{tiles}]
with torch.inference_mode():
    network = {network}.eval()
    vector = network(torch.randn({tiles}, {dim}), torch.stack([cells % 300, cells // 300], 1))
assert vector.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "dim"),
    [("titan.Titan(depth=1)", 768), ("gigapath.GigaPathSlide(depth=1, layer=1)", 1536)],
)
def test_sixty_thousand_tiles_fit_in_four_gigabytes(network: str, dim: int) -> None:
    """Full width and one layer: layers run one after the other in the same memory."""
    code = LARGE.format(tiles=60_000, queries=1000, network=network, dim=dim)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 << 30


# ---------------------------------------------------------------------- gated attention


def gated_weights(x: Tensor, w: Weights, name: str) -> Tensor:
    hidden = linear(x, w, f"{name}.attention_a.0").tanh()
    hidden = hidden * linear(x, w, f"{name}.attention_b.0").sigmoid()
    return linear(hidden, w, f"{name}.attention_c").softmax(0)


def test_feather_is_its_formula() -> None:
    network = Feather(input_dim=9, dim=8, hidden=5)
    w, x = random_weights(network), torch.randn(20, 9, dtype=torch.float64)
    embedded = linear(x, w, "patch_embed.0").relu()
    wanted = (gated_weights(embedded, w, "global_attn") * embedded).sum(0)
    assert torch.allclose(network(x, torch.zeros(20, 2)), wanted)


def test_chief_and_eagle_are_their_formulas() -> None:
    network = Chief(input_dim=9, dim=8, hidden=5)
    w, x = random_weights(network), torch.randn(40, 9, dtype=torch.float64)
    weights = gated_weights(linear(x, w, "attention_net.0").relu(), w, "attention_net.3")
    assert torch.allclose(network(x, torch.zeros(40, 2)), (weights * x).sum(0))
    eagle = Eagle(widths=(9, 4), dim=8, hidden=5).double()
    eagle.load_state_dict(w)
    other = torch.randn(40, 4, dtype=torch.float64)
    chosen = np.argsort(-weights[:, 0].detach().numpy())[:25].copy()
    vector = eagle(torch.cat([x, other], dim=1), torch.zeros(40, 2))
    assert torch.allclose(vector, other[chosen].mean(0))
    few = eagle(torch.cat([x, other], dim=1)[:3], torch.zeros(3, 2))
    assert torch.allclose(few, other[:3].mean(0))


def test_madeleine_is_its_formula() -> None:
    heads, width = 3, 8
    network = Madeleine(input_dim=9, dim=width, heads=heads)
    w, x = random_weights(network), torch.randn(20, 9, dtype=torch.float64)
    hidden = x
    for number in (0, 4, 8):
        name = "wsi_embedders.pre_attn"
        hidden = linear(hidden, w, f"{name}.{number}")
        hidden = gelu(norm(hidden, w, f"{name}.{number + 1}", 1e-5))
    pooled_heads = torch.zeros(width, heads, dtype=torch.float64)
    for head in range(heads):
        embedded = hidden[:, head::heads]
        shares = gated_weights(embedded, w, f"wsi_embedders.attn.{head}")
        pooled_heads[:, head] = (shares * embedded).sum(0)
    wanted = linear(pooled_heads.reshape(-1), w, "projector")
    assert torch.allclose(network(x, torch.zeros(20, 2)), wanted)


class TheirModel(torch.nn.Module):
    """Stands for the authors' models: what it is called with is what TRIDENT calls it with."""

    text_decoder: object = "dear"

    def slide_representations(self, x: Tensor) -> dict[str, Tensor]:
        assert x.ndim == 3
        return {"image_embedding": x.sum(1), "image_latents": x}

    def forward(self, x: Tensor, tiles: Tensor, cells: Tensor) -> SimpleNamespace:
        assert tiles.tolist() == [x.shape[1]]
        assert cells.shape == (1, x.shape[1], 2)
        return SimpleNamespace(wsi_embedding=x.mean(1) + cells.sum(1).sum(1))


def test_authors_models_are_called_as_they_ask_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[dict[str, object]] = []

    def from_pretrained(folder: str, **settings: object) -> TheirModel:
        calls.append({"folder": folder, **settings})
        return TheirModel()

    theirs = SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=from_pretrained))
    theirs.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "transformers", theirs)
    inputs, x = NetworkInputs(dims=(4,), code=tmp_path), torch.randn(5, 4)
    prism = build_prism(SLIDE_ENCODERS["prism"], inputs)
    assert torch.equal(prism(x, torch.zeros(5, 2)), x.sum(0))
    care = build_care(SLIDE_ENCODERS["care"], inputs)
    assert torch.allclose(care(x, torch.ones(5, 2)), x.mean(0) + 10)
    for call in calls:
        assert call["folder"] == str(tmp_path)
        assert call["local_files_only"] is True
        assert call["use_safetensors"] is True
    with pytest.raises(SlideEncoderError, match="give the folder of your copy of paige-ai/Prism"):
        build_prism(SLIDE_ENCODERS["prism"], NetworkInputs(dims=(4,)))
