"""GigaPath's slide encoder: LongNet, a transformer with dilated attention.

A branch of a length and a ratio r cuts the tokens into segments of that length; in a segment, head
group g of r attends from and to each r-th token, beginning with the g-th. The branches' outputs are
weighted by their sums of exponents. Segments and dilated tokens that are not full are padded by
tokens of zeros, which count as keys, as in the reference (prov-gigapath, and torchscale: MIT).
Written from the formulas of arXiv 2307.02486; names of weights are those of its file.

Shape letters: N tiles, L tokens (a class token and N tiles), D width, H heads, C width of a head,
S segments, R ratio, G heads of a group, M tokens of a dilated segment.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.networks.query_blocks import attend
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork

RATIOS = (1, 2, 4, 8, 16)
PART_TOKENS = 8192  # tokens that go through an MLP at once


def segment_lengths(max_side_px: int = 262_144, tile_px: int = 256) -> list[int]:
    """Return the lengths of the branches: a geometric series up to all tiles of the largest slide.

    >>> segment_lengths()
    [1024, 5792, 32768, 185363, 1048576]
    """
    longest = int(math.log2((max_side_px // tile_px) ** 2))
    step = (longest - 10) / (len(RATIOS) - 1)
    return [int(2 ** (10 + step * number)) for number in range(len(RATIOS))]


def cell_embedding(cells_N2: Tensor, dim: int) -> Tensor:
    """Return the sine-cosine embedding of cells [N, D]: the row in the first half of the numbers.

    It is that of the masked autoencoder (arXiv 2111.06377) on a square grid in which the first
    coordinate, a tile's column, counts the lines.
    """
    quarter = dim // 4
    omega = 1.0 / 10_000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = cells_N2.cpu().double()[:, :, None] * omega
    column, row = angles[:, 0], angles[:, 1]
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)


class DilatedAttention(nn.Module):
    """Self-attention in segments, over tokens further and further apart.

    Args:
        dim: width of a token.
        heads: number of heads; a multiple of the greatest ratio.
        lengths: tokens of a segment, by branch.
    """

    def __init__(self, dim: int, heads: int, lengths: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.lengths = heads, list(lengths)
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.inner_attn_ln = nn.LayerNorm(dim)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return the tokens after attention [L, D]."""
        tokens, dim = x_LD.shape
        qkv = [
            project(x_LD).reshape(tokens, self.heads, dim // self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        ]
        weight_LH = x_LD.new_full((tokens, self.heads), -torch.inf)
        out_LHC = torch.zeros_like(qkv[0])
        for length, ratio in zip(self.lengths, RATIOS, strict=True):
            self._add_branch(qkv, out_LHC, weight_LH, min(length, tokens), ratio)
        mixed_LD: Tensor = self.out_proj(self.inner_attn_ln(out_LHC.reshape(tokens, dim)))
        return mixed_LD

    def _add_branch(
        self, qkv: Sequence[Tensor], out_LHC: Tensor, weight_LH: Tensor, length: int, ratio: int
    ) -> None:
        """Add one branch to the output in place, and its sums of exponents to those so far."""
        tokens, group = len(out_LHC), self.heads // ratio
        for start in range(0, tokens, length):
            segment = slice(start, min(start + length, tokens))
            for offset in range(ratio):
                heads = slice(offset * group, (offset + 1) * group)
                parts = [
                    _dilated(part[segment, heads], length, ratio, offset).transpose(0, 1)
                    for part in qkv
                ]
                new_GMC, lse_GM = attend(*parts)
                rows = slice(segment.start + offset, segment.stop, ratio)
                count = len(range(tokens)[rows])
                _merge(
                    out_LHC[rows, heads],
                    weight_LH[rows, heads],
                    new_GMC.transpose(0, 1)[:count],
                    lse_GM.transpose(0, 1)[:count],
                )


def _dilated(part_LGC: Tensor, length: int, ratio: int, offset: int) -> Tensor:
    """Return each ratio-th token from an offset on, padded to the length of a full segment."""
    full = -(-length // ratio)
    taken = part_LGC[offset::ratio]
    if len(taken) == full:
        return taken
    padding = taken.new_zeros(full - len(taken), *taken.shape[1:])
    return torch.cat([taken, padding])


def _merge(out_MGC: Tensor, lse_MG: Tensor, new_MGC: Tensor, new_lse_MG: Tensor) -> None:
    """Merge attention over other keys into an output, in place, weighted by sums of exponents."""
    total_MG = torch.logaddexp(lse_MG, new_lse_MG)
    out_MGC.mul_((lse_MG - total_MG).exp()[..., None])
    out_MGC.add_(new_MGC * (new_lse_MG - total_MG).exp()[..., None])
    lse_MG.copy_(total_MG)


class FeedForward(nn.Module):
    """Two layers with GELU and a norm between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.ffn_layernorm = nn.LayerNorm(hidden)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return tokens [L, D], in parts: the hidden layer is four times as wide."""
        hidden = (nn.functional.gelu(self.fc1(part)) for part in torch.split(x_LD, PART_TOKENS))
        return torch.cat([self.fc2(self.ffn_layernorm(part)) for part in hidden])


class EncoderLayer(nn.Module):
    """A layer of LongNet: dilated attention and a feed-forward network, each after a norm."""

    def __init__(self, dim: int, heads: int, hidden: int, lengths: Sequence[int]) -> None:
        super().__init__()
        self.self_attn = DilatedAttention(dim, heads, lengths)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, hidden)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return the tokens [L, D]."""
        x_LD = x_LD + self.self_attn(self.self_attn_layer_norm(x_LD))
        x_LD = x_LD + self.ffn(self.final_layer_norm(x_LD))
        return x_LD


class LongNet(nn.Module):
    """The layers of LongNet, and the norm after the last, which only its own output uses."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        lengths = segment_lengths()
        self.layers = nn.ModuleList(
            [EncoderLayer(dim, heads, hidden, lengths) for _ in range(depth)]
        )
        self.layer_norm = nn.LayerNorm(dim)


class GigaPathSlide(SlideNetwork):
    """The slide encoder of Prov-GigaPath.

    Args:
        input_dim: width of a tile's features.
        dim: width of a token.
        depth: number of layers.
        heads: heads of a layer.
        layer: the layer whose tokens are averaged, from 1 on.
        grid: cells of the largest slide in each direction.
    """

    def __init__(
        self,
        *,
        input_dim: int = 1536,
        dim: int = 768,
        depth: int = 12,
        heads: int = 16,
        layer: int = 12,
        grid: int = 1000,
    ) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Linear(input_dim, dim)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = LongNet(dim, depth, heads, 4 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the slide's vector [D] of tiles at cells (column, row): the mean of their tokens.

        Raises:
            SlideEncoderError: a tile lies beyond the network's grid.
        """
        if len(places_N2) and int(places_N2.max()) >= self.grid:
            msg = (
                f"a tile lies in cell {int(places_N2.max())}; GigaPath knows places up to "
                f"{self.grid - 1} tiles from the slide's corner: are the tiles 256 px at 0.5 mpp?"
            )
            raise SlideEncoderError(msg)
        x_ND = self.patch_embed["proj"](x_ND)
        x_ND = x_ND + cell_embedding(places_N2, x_ND.shape[1]).to(x_ND)
        x_LD = torch.cat([self.cls_token[0], x_ND])
        for layer in self.encoder.layers[: self.layer]:
            x_LD = layer(x_LD)
        vector_D: Tensor = self.norm(x_LD[1:].mean(dim=0))
        return vector_D


def build_gigapath(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return GigaPath's network, without weights."""
    del inputs
    return GigaPathSlide(**card.arguments)
