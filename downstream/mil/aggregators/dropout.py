"""Dropout that is not slower than the layer before it.

torch draws a Bernoulli number a unit from one serial generator: on CPUs, with two matrix products
of ABMIL beside it, that was a quarter of a training step. Here four units share 64 random bits.
"""

import torch
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """Dropout as torch has it: units are 0 with probability `p`, others are divided by `1 - p`.

    On CPUs `p` is rounded to the nearest 1 / 65,536, and the bits come from torch's default
    generator; on other devices it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropped units in training; x unchanged otherwise."""
        dropped = round(self.p * _LEVELS)
        if not self.training or not 0 < dropped < _LEVELS or x.device.type != "cpu":
            return super().forward(x)
        # the whole range of int64: without a range, `random_` leaves the sign bit 0
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[: x.numel()]
        kept = levels >= dropped - _LEVELS // 2
        return x * kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(x.shape)
