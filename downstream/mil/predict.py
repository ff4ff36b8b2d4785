"""Reading bags for a MIL model: predictions of whole bags, and statistics of training tiles.

Shape letters: P patients, N tiles, D feature width, C outputs.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from downstream.mil.padded_bags import MilError

if TYPE_CHECKING:
    from downstream.mil.model import MilModel
    from downstream.run.feature_bags import PatientBag

Floats = NDArray[np.float64]


_MIN_STD = 1e-6


class BagSequence(Protocol):
    """A sequence of patients' bags, such as a list."""

    def __len__(self) -> int:
        """Return the number of patients."""

    def __getitem__(self, index: int, /) -> "PatientBag":
        """Return the bag of one patient."""


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
    model.eval()
    device = device_of(model)
    logits, attention = [], []
    with torch.inference_mode():
        for at in range(len(bags)):
            bag = bags[at]
            places = torch.from_numpy(bag.places).to(device)
            beside = None
            if covariates_PK is not None:
                beside = torch.from_numpy(covariates_PK[at : at + 1]).float().to(device)
            prediction = model(floats(bag.features).to(device), None, places, beside)
            logits.append(prediction.logits[0].double().cpu().numpy())
            attention.append(prediction.pooled.attention[0].float().cpu().numpy())
    return np.stack(logits), attention


def tile_statistics(bags: BagSequence) -> tuple[Floats, Floats]:
    """Return the mean and standard deviation of every feature over all tiles, bag by bag.

    Args:
        bags: TRAINING bags only; statistics that have seen a test tile are a leak.

    Returns:
        float64[D] mean and float64[D] standard deviation, 1 where a feature is constant.

    Raises:
        MilError: A feature is not finite.
    """
    tiles, mean_D, squares_D = 0, np.zeros(1), np.zeros(1)
    for index in range(len(bags)):
        x_ND = bags[index].features.astype(np.float64)
        if not np.isfinite(x_ND).all():
            msg = f"bag number {index} has features that are not finite; run slidelake verify"
            raise MilError(msg)
        bag_mean_D = x_ND.mean(axis=0)
        shift_D = bag_mean_D - mean_D
        total = tiles + len(x_ND)
        # Chan et al.'s pairwise update: a plain sum of squares cancels where the mean is large
        # against the spread
        squares_D = (
            squares_D
            + ((x_ND - bag_mean_D) ** 2).sum(axis=0)
            + shift_D**2 * tiles * len(x_ND) / total
        )
        mean_D = mean_D + shift_D * len(x_ND) / total
        tiles = total
    std_D = np.sqrt(squares_D / tiles)
    return mean_D, np.where(std_D > _MIN_STD, std_D, 1.0)


def floats(x_ND: NDArray[np.float16]) -> Tensor:
    """Return a float32 copy of features, by torch, ten times as fast as NumPy's cast."""
    # torch cannot express an array that is read-only, as the lake's are
    return torch.from_numpy(x_ND if x_ND.flags.writeable else x_ND.copy()).float()


def device_of(model: "MilModel") -> torch.device:
    """Return the device that holds a model."""
    return next(model.parameters()).device
