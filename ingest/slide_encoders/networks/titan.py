"""TITAN's slide encoder: a transformer of CONCH 1.5 features with a bias by distance.

Each head subtracts a slope times the distance of two tiles, in tiles, from their score (2-D ALiBi);
the class token has no distance to anything. A pooling query attends to all tokens at the end.
Written from the formulas (arXiv 2411.19666 and the model's published configuration); names of
weights are those of its file. Tiles whose features are all zero are background to it.

Shape letters: N tiles, L tokens (a class token and N tiles), D width, H heads, C width of a head.
"""

import math

import torch
from torch import Tensor, nn

from ingest.slide_encoders.networks.query_blocks import attend
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork

NORM_EPS = 1e-6


def head_slopes(heads: int) -> list[float]:
    """Return the slopes of ALiBi: a geometric series, and every second one of a finer series.

    Source: Press et al., arXiv 2108.12409.

    >>> head_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> len(head_slopes(12)), head_slopes(12)[8]
    (12, 0.7071067811865476)
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (number + 1) / power) for number in range(power)]
    finer = [2 ** (-4 * (number + 1) / power) for number in range(0, 2 * power, 2)]
    return slopes + finer[: heads - power]


class TitanAttention(nn.Module):
    """Self-attention with a bias by the distance of tiles, in blocks of queries.

    Args:
        dim: width of a token.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_LD: Tensor, cells_N2: Tensor) -> Tensor:
        """Return the tokens after attention [L, D]; the first one is the class token."""
        tokens, dim = x_LD.shape
        qkv = self.qkv(x_LD).reshape(tokens, 3, self.heads, dim // self.heads)
        q_HLC, k_HLC, v_HLC = qkv.permute(1, 2, 0, 3)
        slopes_H = torch.tensor(head_slopes(self.heads), dtype=x_LD.dtype, device=x_LD.device)
        places_N2 = cells_N2.to(x_LD.dtype)

        def bias(start: int, stop: int) -> Tensor:
            scores = x_LD.new_zeros(self.heads, stop - start, tokens)
            first = max(start, 1)
            if first < stop:
                distance = torch.cdist(
                    places_N2[first - 1 : stop - 1],
                    places_N2,
                    compute_mode="donot_use_mm_for_euclid_dist",
                )
                torch.mul(distance, -slopes_H[:, None, None], out=scores[:, first - start :, 1:])
            return scores

        out_HLC, _ = attend(q_HLC, k_HLC, v_HLC, bias=bias)
        mixed_LD: Tensor = self.proj(out_HLC.transpose(0, 1).reshape(tokens, dim))
        return mixed_LD


class TitanMlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return tokens [L, D], in parts: the hidden layer is four times as wide."""
        parts = [self.fc2(nn.functional.gelu(self.fc1(part))) for part in torch.split(x_LD, 8192)]
        return torch.cat(parts)


class TitanBlock(nn.Module):
    """A block of the transformer: attention and an MLP, each after a norm."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = TitanAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = TitanMlp(dim, int(dim * mlp_ratio))

    def forward(self, x_LD: Tensor, cells_N2: Tensor) -> Tensor:
        """Return the tokens [L, D]."""
        x_LD = x_LD + self.attn(self.norm1(x_LD), cells_N2)
        x_LD = x_LD + self.mlp(self.norm2(x_LD))
        return x_LD


class TitanBlocks(nn.Module):
    """The blocks under the name that the file of weights has for them."""

    def __init__(self, blocks: list[TitanBlock]) -> None:
        super().__init__()
        self.modules_list = nn.ModuleList(blocks)


class QueryPooling(nn.Module):
    """A learned query that attends to all tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(dim, heads)
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x_LD: Tensor) -> Tensor:
        """Return the pooled token [D]."""
        keys_LD = self.ln_k(x_LD)
        pooled_QD, _ = self.attn(self.ln_q(self.query), keys_LD, keys_LD, need_weights=False)
        vector_D: Tensor = pooled_QD[0]
        return vector_D


class Titan(SlideNetwork):
    """The slide encoder of TITAN.

    Args:
        dim: width of a tile's features and of all tokens.
        depth: number of blocks.
        heads: heads of a block.
        mlp_ratio: width of an MLP's hidden layer in widths of a token.
        pool_heads: heads of the pooling query.
    """

    def __init__(
        self,
        *,
        dim: int = 768,
        depth: int = 6,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        pool_heads: int = 8,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Linear(dim, dim), nn.GELU())
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = TitanBlocks([TitanBlock(dim, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn_pool_contrastive = QueryPooling(dim, pool_heads)

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the slide's vector [D] of tiles at cells (column, row)."""
        tissue_N = x_ND.any(dim=1)
        x_ND, places_N2 = x_ND[tissue_N], places_N2[tissue_N]
        x_LD = torch.cat([self.cls_token[0], self.patch_embed(x_ND)])
        for block in self.blocks.modules_list:
            x_LD = block(x_LD, places_N2)
        vector_D: Tensor = self.attn_pool_contrastive(self.norm(x_LD))
        return vector_D


def build_titan(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return TITAN's network, without weights."""
    del inputs
    return Titan(**card.arguments)
