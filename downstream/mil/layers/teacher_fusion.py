"""The parts of Shazam's fusion of teachers: a gate over their tokens, and attention between them.

Source: Shazam's code (Tuner12/Shazam). Each teacher's features of a tile are one token.

Shape letters: K teachers, D width of the tokens, H heads; leading axes, written ..., are free.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil.padded_bags import MilError


class TeacherGate(nn.Module):
    """A softmax over teachers that weights their normalised tokens.

    Shazam gates before the norm; LayerNorm(w x) = LayerNorm(x) would leave such a gate without
    effect, so here the norm comes first. Nothing that starts with a norm may follow.

    Args:
        teachers: number K of teachers.
        width: width D of the tokens.
    """

    def __init__(self, teachers: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score = nn.Sequential(
            nn.Linear(teachers * width, width),
            nn.GELU(),
            nn.LayerNorm(width),
            nn.Linear(width, teachers),
        )

    def forward(self, tokens_KD: Tensor) -> Tensor:
        """Return the weighted tokens [..., K, D]."""
        normed_KD: Tensor = self.norm(tokens_KD)
        return self._shares(normed_KD)[..., None] * normed_KD

    def shares(self, tokens_KD: Tensor) -> Tensor:
        """Return the weights of teachers [..., K], which add up to 1."""
        return self._shares(self.norm(tokens_KD))

    def _shares(self, normed_KD: Tensor) -> Tensor:
        return torch.softmax(self.score(normed_KD.flatten(-2)), dim=-1)


class TokenBlock(nn.Module):
    """Attention among the teachers' tokens of a tile, a residual, and a norm, in this order.

    The order is Shazam's: a norm in front would erase the gate that comes before the first block.

    Args:
        width: width D of the tokens.
        heads: number H of heads, a divisor of the width; Shazam has one.

    Raises:
        MilError: The width is no multiple of the heads.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if width % heads:
            msg = f"width {width} and {heads} heads; the width is a multiple of the heads"
            raise MilError(msg)
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_KD: Tensor) -> Tensor:
        """Return the mixed tokens [..., K, D]."""
        tokens_SKD = tokens_KD.flatten(0, -3)  # S: all leading axes as one
        parts = self.query_key_value(tokens_SKD).unflatten(-1, (3, self.heads, -1))
        query_SHKd, key_SHKd, value_SHKd = parts.permute(2, 0, 3, 1, 4)
        mixed_SKD = (
            F.scaled_dot_product_attention(query_SHKd, key_SHKd, value_SHKd)
            .transpose(1, 2)
            .flatten(2)
        )
        out_SKD: Tensor = self.norm(tokens_SKD + self.out(mixed_SKD))
        return out_SKD.view_as(tokens_KD)
