"""A segmenter of one's own: `slidelake ingest LAKE SLIDES --tissue examples/own_segmenter.py`.

Such a file has two names: `SEGMENTER`, with the microns per pixel at which it reads a
slide, and `build()`, which returns a function from an overview to a mask. This one is a network of
two layers whose weights are written here: it keeps what is darker and more colourful than its
surroundings. A real one loads its weights in `build()`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from slidelake import Segmenter

SEGMENTER = Segmenter(
    name="colour-and-shade",
    mpp=16.0,
    licence="Apache-2.0",
    source="examples/own_segmenter.py",
)
# A file with weights is named by its path, so that a slide's row tells by which it was cut:
# WEIGHTS = "my_segmenter.safetensors"


class ColourAndShade(nn.Module):
    """A network of colour (differences of R, G and B) and shade, smoothed and weighed."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.tensor([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0], [-0.3, -0.3, -0.3]])
        bias = torch.tensor([0.0, 0.0, 0.86])
        self.mix = nn.Conv2d(3, 3, 1)
        self.mix.load_state_dict({"weight": weights[:, :, None, None], "bias": bias})
        self.smooth = nn.AvgPool2d(5, stride=1, padding=2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return probabilities [B, H, W] of tissue, from R, G, B in 0 to 1."""
        strength = self.smooth(self.mix(x_BCHW)).clamp_min(0).sum(dim=1)
        return torch.sigmoid(40 * (strength - 0.1))


def build() -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """Return the function from a slide's overview [H, W, 3] to a mask [H, W], 0 to 1."""
    network = ColourAndShade().eval()

    def segment(overview: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        x_BCHW = torch.from_numpy(overview.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            mask: npt.NDArray[np.float32] = network(x_BCHW)[0].numpy()
        return mask

    return segment
