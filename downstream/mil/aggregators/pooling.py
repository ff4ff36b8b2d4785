"""Pooling without structure: mean, max, and the gated attention of ABMIL.

Tiles are a set here: neither row order nor coordinates change anything. Memory is O(B N H).

Shape letters: B bags, N tiles, D feature width, H hidden width, C branches.
"""

import torch
from torch import Tensor, nn

from downstream.mil.aggregators.dropout import Dropout
from downstream.mil.padded_bags import Aggregator, Pooled, masked_softmax, stem


class _StemmedAggregator(Aggregator):
    """An aggregator of raw features, or of the output of a first layer.

    Args:
        width: feature width D.
        hidden: width of a linear-ReLU layer before the pooling; None for raw features.
        dropout: dropout after that layer.
    """

    def __init__(self, width: int, *, hidden: int | None = None, dropout: float = 0.25) -> None:
        super().__init__()
        self.stem = nn.Identity() if hidden is None else stem(width, hidden, dropout)
        self.width = hidden or width


class MeanPool(_StemmedAggregator):
    """Mean pooling of tiles, raw or after a layer; the baseline for attention."""

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the mean over the unmasked tiles; each of them has the same attention."""
        del coords_BNK
        h_BNH = self.stem(x_BND)
        share_BN = mask_BN.to(h_BNH.dtype) / mask_BN.sum(dim=1, keepdim=True)
        return Pooled(embedding=_weighted_sums(share_BN[:, None], h_BNH)[:, 0], attention=share_BN)


class MaxPool(_StemmedAggregator):
    """Maximum pooling of every feature over tiles, raw or after a layer.

    The attention of a tile is the share of features whose largest value is its own (the first of
    equals).
    """

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the maximum over the unmasked tiles, feature by feature."""
        del coords_BNK
        h_BNH = self.stem(x_BND).masked_fill(~mask_BN[..., None], -torch.inf)
        most_BH, where_BH = h_BNH.max(dim=1)
        share = torch.full_like(most_BH.detach(), 1 / self.width)
        return Pooled(
            embedding=most_BH,
            attention=share.new_zeros(mask_BN.shape).scatter_add(1, where_BH, share),
        )


class GatedAttention(nn.Module):
    """Attention logits w' (tanh(V h) * sigmoid(U h)) + b, one for each branch.

    Source: Ilse et al. 2018 (arXiv 1802.04712), eq. 9. V and U are one matrix product here.

    Args:
        width: width of the tile embeddings.
        hidden: output width of the layers V and U.
        branches: number of logits per tile.
        dropout: dropout after tanh and after sigmoid, as in CLAM.
    """

    def __init__(self, width: int, hidden: int, *, branches: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.content_gate = nn.Linear(width, 2 * hidden)
        self.dropout = Dropout(dropout)
        self.score = nn.Linear(hidden, branches)

    def forward(self, h_BNH: Tensor) -> Tensor:
        """Return logits [B, C, N]."""
        content, gate = self.content_gate(h_BNH).chunk(2, dim=-1)
        gated = self.dropout(torch.tanh(content)) * self.dropout(torch.sigmoid(gate))
        score_BNC: Tensor = self.score(gated)
        return score_BNC.transpose(1, 2)


class Abmil(Aggregator):
    """Gated attention MIL: a weighted mean of tiles whose weights are learnt.

    Source: Ilse et al. 2018, with CLAM's layer before it. The score has a bias as in CLAM, which
    the softmax cancels; torchmil and the paper leave it out, with the same outputs.

    Args:
        width: feature width D.
        hidden: width H of the first layer.
        attention: width of the gated attention.
        dropout: dropout after the first layer and in the attention.
    """

    def __init__(
        self, width: int, *, hidden: int = 512, attention: int = 256, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.stem = stem(width, hidden, dropout)
        self.attention = GatedAttention(hidden, attention, dropout=dropout)
        self.width = hidden

    def pool(self, x_BND: Tensor, mask_BN: Tensor, coords_BNK: Tensor | None) -> Pooled:
        """Return the attention-weighted mean of the embedded tiles."""
        del coords_BNK
        h_BNH = self.stem(x_BND)
        a_B1N = masked_softmax(self.attention(h_BNH), mask_BN[:, None])
        return Pooled(embedding=_weighted_sums(a_B1N, h_BNH)[:, 0], attention=a_B1N[:, 0])


def _weighted_sums(a_BCN: Tensor, h_BNH: Tensor) -> Tensor:
    """Return weighted sums of tiles [B, C, H]."""
    return torch.bmm(a_BCN.to(h_BNH.dtype), h_BNH)
