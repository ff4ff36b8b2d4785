"""The interface of a slide encoder's network, and what a builder gets to make one.

Shape letters: N tiles of a slide, D width of a tile's features, E width of a slide's vector.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore import Moments


@dataclass(frozen=True, kw_only=True)
class NetworkInputs:
    """The inputs of a network's builder beside its card.

    Attributes:
        dims: width of each column of tile features, in their order.
        stats: mean and covariance of the first column's features; None for cards without
            `needs_stats`.
        code: folder of the authors' code, or model, on this machine; None if none was given.
    """

    dims: tuple[int, ...]
    stats: "Moments | None" = None
    code: "Path | None" = None


class SlideNetwork(nn.Module):
    """A network of one slide's tiles."""

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the vector [E] of tiles with features float32 and places int64.

        Raises:
            NotImplementedError: a network defines its own.
        """
        raise NotImplementedError
