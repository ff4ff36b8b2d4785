"""An encoder of one's own as a teacher: `slidelake extract LAKE --teacher examples/own_encoder.py`.

Such a file has two names: `CARD`, which describes how tiles become inputs and how long an
embedding is, and `build()`, which returns a torch network. This one measures colour: the mean and
the standard deviation of each channel, over the whole tile and over its four quarters. It has no
weights, so it runs anywhere, and is a baseline that a foundation model must beat.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelake import Card

CARD = Card(
    name="colour-moments",
    architecture="colour moments",
    dim=30,
    input_px=224,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    licence="Apache-2.0",
    source="examples/own_encoder.py",
)
# A file with weights is named by its path, so that its hash goes into the column's identity:
# WEIGHTS = "my_encoder.safetensors"


class ColourMoments(nn.Module):
    """Mean and standard deviation of each channel, of a tile and of its quarters."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return embeddings [B, 30] of normalised pixels [B, 3, 224, 224]."""
        moments = []
        for parts in (1, 2):
            mean = F.adaptive_avg_pool2d(x_BCHW, parts)
            square = F.adaptive_avg_pool2d(x_BCHW**2, parts)
            moments += [mean.flatten(1), (square - mean**2).clamp_min(0).sqrt().flatten(1)]
        return torch.cat(moments, dim=1)


def build() -> nn.Module:
    """Return the network with its weights."""
    return ColourMoments()
