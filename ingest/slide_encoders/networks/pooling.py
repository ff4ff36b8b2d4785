"""Baselines that any slide encoder must beat: mean, maximum, and mean of principal components.

Shape letters: N tiles of a slide, D width of a tile's features, K components.
"""

import numpy as np
import torch
from torch import Tensor

from ingest.errors import SlideEncoderError
from ingest.slide_encoders.slide_card import SlideCard
from ingest.slide_encoders.slide_network import NetworkInputs, SlideNetwork


class Mean(SlideNetwork):
    """The mean of a slide's tiles, added up in float64."""

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the mean [D]."""
        del places_N2
        return x_ND.double().mean(dim=0).float()


class Maximum(SlideNetwork):
    """The greatest value of each feature over a slide's tiles."""

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the maximum [D]."""
        del places_N2
        return x_ND.amax(dim=0)


class MeanComponents(SlideNetwork):
    """The mean of a slide's tiles on the first principal components of all tiles.

    Args:
        mean_D: mean of the tiles' features.
        components_KD: unit vectors of greatest variance, greatest first.
    """

    def __init__(self, mean_D: Tensor, components_KD: Tensor) -> None:
        super().__init__()
        self.mean_D, self.components_KD = mean_D, components_KD

    def forward(self, x_ND: Tensor, places_N2: Tensor) -> Tensor:
        """Return the components of the mean [K]: it is that of the tiles' components."""
        del places_N2
        centred_D = x_ND.cpu().double().mean(dim=0) - self.mean_D
        return (self.components_KD @ centred_D).float()


def build_mean(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return the mean of tiles."""
    del card, inputs
    return Mean()


def build_maximum(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return the maximum of tiles."""
    del card, inputs
    return Maximum()


def build_components(card: SlideCard, inputs: NetworkInputs) -> SlideNetwork:
    """Return the mean on principal components of the column's statistics.

    A component's sign is free; its greatest number is made positive.

    Raises:
        SlideEncoderError: several columns were given, whose covariance nothing keeps.
    """
    if inputs.stats is None or len(inputs.dims) != 1:
        msg = f"{card.name} is fitted on the statistics of one column; give one --features"
        raise SlideEncoderError(msg)
    _, vectors_DD = np.linalg.eigh(inputs.stats.covariance)
    count = min(int(card.arguments["components"]), inputs.dims[0])
    components_KD = vectors_DD[:, ::-1][:, :count].T.copy()
    largest = np.abs(components_KD).argmax(axis=1)
    components_KD *= np.sign(components_KD[np.arange(count), largest])[:, None]
    return MeanComponents(torch.from_numpy(inputs.stats.mean), torch.from_numpy(components_KD))
