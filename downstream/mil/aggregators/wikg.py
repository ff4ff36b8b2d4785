"""WiKG: each tile is joined to the tiles that tell it most, wherever they lie, and takes from them.

The graph is made anew in every step from head and tail embeddings; it knows no places. Scores of
all pairs are made for a block of tiles at a time and only the neighbours are kept, so that memory
is O(N k E) in place of O(N^2); time is O(N^2 E).

Shape letters: B bags, N tiles, D feature width, E width, Q tiles of a block, K neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import Aggregator, MilError, Pooled, masked_softmax

_BLOCK = 512


class WiKG(Aggregator):
    """Dynamic graph with knowledge-aware attention (Li et al., CVPR 2024, arXiv 2403.07719).

    Written from the paper and from WonderLandxD/WiKG with its defaults: 6 neighbours,
    bi-interaction, gated attention pooling, dropout 0.3. Differences:

    - The weight of a neighbour is the inner product of its tail and tanh(head + edge), as in the
      paper; the code multiplies the sum of one by the sum of the other.
    - The code's layers `gate_U`, `gate_V` and `gate_W`, which nothing uses, are left out.
    - A bag of fewer tiles than neighbours joins every tile with all; the code stops.
    - Neighbours are chosen in float32 whatever the precision.

    Args:
        width: feature width D.
        hidden: width E.
        dropout: dropout of the tiles after the exchange.
        neighbours: number K of tiles that a tile takes from, itself perhaps among them.
    """

    def __init__(
        self, width: int, *, hidden: int = 512, dropout: float = 0.3, neighbours: int = 6
    ) -> None:
        super().__init__()
        if neighbours < 1 or hidden < 2:
            msg = f"neighbours={neighbours}, hidden={hidden}; WiKG needs 1 and 2 at least"
            raise MilError(msg)
        self.stem = nn.Sequential(nn.Linear(width, hidden), nn.LeakyReLU())
        self.head, self.tail = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.of_sum, self.of_product = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)
        # the score has no bias, which the softmax would cancel
        self.score = nn.Sequential(
            nn.Linear(hidden, hidden // 2), nn.LeakyReLU(), nn.Linear(hidden // 2, 1, bias=False)
        )
        self.norm = nn.LayerNorm(hidden)
        self.width, self.neighbours = hidden, neighbours

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the attended nodes of the graph.

        The attention of a tile is the pooling's weight of its node, which holds what it took from
        its neighbours. The extras hold `neighbours` [B, N, K], rows of tiles, the nearest first.
        """
        del coords_BNK
        h_BNE = self.stem(x_BND) * mask_BN[..., None]
        mean_B1E = h_BNE.sum(dim=1, keepdim=True) / mask_BN.sum(dim=1)[:, None, None]
        h_BNE = (h_BNE + mean_B1E) / 2
        head_BNE, tail_BNE = self.head(h_BNE), self.tail(h_BNE)
        near_BNK = nearest_tails(head_BNE, tail_BNE, mask_BN, self.neighbours)
        # a bag has no more neighbours than tiles
        has_BK = torch.arange(near_BNK.shape[-1], device=mask_BN.device) < mask_BN.sum(1)[:, None]
        blocks = []
        for start in range(0, h_BNE.shape[1], _BLOCK):
            rows = slice(start, start + _BLOCK)
            part = (head_BNE[:, rows], tail_BNE, near_BNK[:, rows], has_BK)
            blocks.append(
                checkpoint(self._exchange, *part, use_reentrant=False)
                if torch.is_grad_enabled()
                else self._exchange(*part)
            )
        node_BNE = self.dropout(torch.cat(blocks, dim=1))
        a_BN = masked_softmax(self.score(node_BNE)[..., 0], mask_BN)
        embedding = torch.einsum("bn,bne->be", a_BN.to(node_BNE.dtype), node_BNE)
        return Pooled(
            embedding=self.norm(embedding), attention=a_BN, extras={"neighbours": near_BNK}
        )

    def _exchange(
        self, head_BQE: Tensor, tail_BNE: Tensor, near_BQK: Tensor, has_BK: Tensor
    ) -> Tensor:
        """Return the nodes [B, Q, E] of a block of tiles from their neighbours' tails."""
        bag = torch.arange(len(tail_BNE), device=tail_BNE.device)[:, None, None]
        tail_BQKE = tail_BNE[bag, near_BQK]
        score_BQK = torch.einsum("bqe,bqke->bqk", head_BQE, tail_BQKE) * tail_BNE.shape[-1] ** -0.5
        share_BQK1 = masked_softmax(score_BQK, has_BK[:, None])[..., None].to(tail_BNE.dtype)
        head_BQ1E = head_BQE[:, :, None]
        edge_BQKE = share_BQK1 * tail_BQKE + (1 - share_BQK1) * head_BQ1E
        weight_BQK = (tail_BQKE * torch.tanh(head_BQ1E + edge_BQKE)).sum(dim=-1)
        taken = masked_softmax(weight_BQK, has_BK[:, None]).to(tail_BQKE.dtype)
        near_BQE = torch.einsum("bqk,bqke->bqe", taken, tail_BQKE)
        node_BQE: Tensor = F.leaky_relu(self.of_sum(head_BQE + near_BQE)) + F.leaky_relu(
            self.of_product(head_BQE * near_BQE)
        )
        return node_BQE


@torch.no_grad()
def nearest_tails(head_BNE: Tensor, tail_BNE: Tensor, mask_BN: Tensor, most: int) -> Tensor:
    """Return for each tile the rows of the tiles whose tails match its head best [B, N, K].

    Args:
        head_BNE: head embeddings.
        tail_BNE: tail embeddings.
        mask_BN: true where there is a tile; others come last.
        most: neighbours K of a tile, fewer where a bag of the batch has no more tiles.
    """
    with torch.autocast(head_BNE.device.type, enabled=False):
        wide = torch.float64 if head_BNE.dtype == torch.float64 else torch.float32
        tails = tail_BNE.to(wide).mT.contiguous()
        near = [
            (part.to(wide) @ tails)
            .masked_fill_(~mask_BN[:, None], -torch.inf)
            .topk(min(most, head_BNE.shape[1]), dim=-1)
            .indices
            for part in torch.split(head_BNE, _BLOCK, dim=1)
        ]
    return torch.cat(near, dim=1)
