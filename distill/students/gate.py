"""A gate over teachers' tokens that a following norm does not erase.

LayerNorm(w x) = LayerNorm(x) for any w > 0 (up to its epsilon), so a gate in front of a norm learns
nothing and does nothing. Here the norm comes first, and a gate followed by one is refused.

Letters in names: B samples, K teachers, D width of the tokens.
"""

import torch
from torch import Tensor, nn

from distill.errors import DistillError

# Norms that divide a token by its own size, if they are over the last axis alone. A batch norm does
# not: it divides by that of the batch.
ERASING = (nn.LayerNorm, nn.RMSNorm)
PASSING = (nn.Identity, nn.Dropout)


class Gate(nn.Module):
    """Weights tokens of K teachers by a softmax over all of them, after a norm.

    Source: Shazam gates before the norm; here the order is turned round.

    Args:
        teachers: K.
        dim: D.
        following: the module that takes the gated tokens, if there is one to check.

    Raises:
        DistillError: what follows starts with a norm.
    """

    def __init__(self, teachers: int, dim: int, *, following: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Sequential(
            nn.Linear(teachers * dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, teachers)
        )
        if following is not None:
            check_after_gate(following)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Return the gated tokens [B, K, D]."""
        normed_BKD: Tensor = self.norm(tokens_BKD)
        return self.shares(tokens_BKD)[..., None] * normed_BKD

    def shares(self, tokens_BKD: Tensor) -> Tensor:
        """Return the weights [B, K], which add up to 1."""
        return torch.softmax(self.score(self.norm(tokens_BKD).flatten(1)), dim=-1)


def check_after_gate(following: nn.Module) -> None:
    """Refuse a module that starts with a norm, in the order in which its parts were registered.

    Raises:
        DistillError: it does.
    """
    leaves = (part for part in following.modules() if not list(part.children()))
    first = next((leaf for leaf in leaves if not isinstance(leaf, PASSING)), None)
    if isinstance(first, ERASING) and len(first.normalized_shape) == 1:
        msg = (
            f"a gate before {type(first).__name__} is erased, as it gives the same whatever the "
            "scale of a token; put the gate after the norm"
        )
        raise DistillError(msg)
