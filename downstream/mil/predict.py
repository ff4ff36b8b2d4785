"""Predictions of whole bags by a MIL model.

Shape letters: P patients, N tiles, C outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.bag_feed import BagFeed, Room, sent_ahead
from downstream.mil.bag_sequence import BagSequence

if TYPE_CHECKING:
    from downstream.mil.model import MilModel

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WholeBag:
    """A bag on the device of a model.

    Attributes:
        x: float32[N, D] features.
        coords: int64[N, K] places.
        covariates: float32[1, K] encoded covariates of the patient; None without any.
    """

    x: Tensor
    coords: Tensor
    covariates: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Return the tensors on the device."""
        parts = [self.x, self.coords, self.covariates]
        return [part for part in parts if part is not None]


def predict(
    model: "MilModel", bags: BagSequence, covariates_PK: Floats | None = None
) -> tuple[Floats, list[NDArray[np.float32]]]:
    """Return the logits and the attention of whole bags, predicted one at a time.

    Args:
        model: trained model; it is left in evaluation mode.
        bags: one bag per patient.
        covariates_PK: encoded covariates of each patient, of a model that takes them.

    Returns:
        float64[P, C] logits, and float32[N] attention of each bag, which sums to 1.
    """
    return predict_feed(model, BagFeed(bags, device_of(model), room=Room(0)), covariates_PK)


def predict_feed(
    model: "MilModel",
    feed: BagFeed,
    covariates_PK: Floats | None = None,
    *,
    with_attention: bool = True,
) -> tuple[Floats, list[NDArray[np.float32]]]:
    """Return what `predict` does, of bags that may be on the device already.

    Results are fetched from a GPU after the last bag, so that it waits for nothing in between.

    Args:
        model: trained model; it is left in evaluation mode.
        feed: the bags.
        covariates_PK: see `predict`.
        with_attention: whether the attention is returned, or an empty list.
    """
    model.eval()
    logits, attention = [], []
    with torch.inference_mode():
        for bag in sent_ahead(_whole_bags(feed, covariates_PK), feed.device):
            prediction = model(bag.x, None, bag.coords, bag.covariates)
            logits.append(prediction.logits[0].double())
            if with_attention:
                attention.append(prediction.pooled.attention[0].float())
    return torch.stack(logits).cpu().numpy(), [part.cpu().numpy() for part in attention]


def _whole_bags(feed: BagFeed, covariates_PK: Floats | None) -> Iterator[WholeBag]:
    for index in range(len(feed)):
        x_ND, places_NK = feed.tiles(feed.bag(index))
        beside = None
        if covariates_PK is not None:
            beside = feed.send(torch.from_numpy(covariates_PK[index : index + 1]).float())
        yield WholeBag(x=x_ND, coords=places_NK, covariates=beside)


def device_of(model: "MilModel") -> torch.device:
    """Return the device that holds a model."""
    return next(model.parameters()).device
