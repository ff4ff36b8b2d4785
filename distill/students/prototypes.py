"""The head of self-distillation: embeddings to logits over prototypes.

Shape letters: B samples, D embedding, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 256
BOTTLENECK = 64


class PrototypeHead(nn.Module):
    """A head from embeddings to cosines with prototypes: an MLP, then unit length, in float32.

    Args:
        dim: width of the embeddings.
        prototypes: number of prototypes K.
    """

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, BOTTLENECK))
        self.prototypes = nn.Linear(BOTTLENECK, prototypes, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the logits [..., K]."""
        unit = F.normalize(self.mlp(x_BD).float(), dim=-1)
        with torch.autocast(unit.device.type, enabled=False):
            directions_KD = F.normalize(self.prototypes.weight.float(), dim=-1)
            return unit @ directions_KD.T
