"""A slide encoder of one's own: `slidelake encode LAKE --slide-encoder FILE --features NAME`.

Such a file has two names: `CARD`, which says what tiles the encoder knows and what it encodes, and
`build()`, which returns a torch network of one slide's tiles. This one has no weights: it is the
mean and the standard deviation of each feature, a baseline that also sees how varied a slide is.
"""

import torch
from torch import Tensor, nn

from slidelake import SlideCard

CARD = SlideCard(
    name="mean-and-spread",
    units=("slide", "patient"),
    licence="Apache-2.0",
    source="examples/own_slide_encoder.py",
)
# A network that knows certain tiles says so, and is refused others:
# CARD = SlideCard(name="mine", inputs=("uni2_h",), tile_px=256, mpp=0.5, places="cells", ...)
# A file with weights is named by its path, so that its hash goes into the vectors' identity:
# WEIGHTS = "my_slide_encoder.safetensors"


class MeanAndSpread(nn.Module):
    """Mean and standard deviation of each feature over the tiles of a slide."""

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the vector [2 D] of features float32 [N, D] of tiles at cells int64 [N, 2]."""
        del places_N2
        return torch.cat([x_ND.mean(dim=0), x_ND.std(dim=0, correction=0)])


def build() -> nn.Module:
    """Return the network with its weights; `build(inputs)` gets the columns' widths, too."""
    return MeanAndSpread()
