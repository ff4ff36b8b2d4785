"""Gated attention MIL (ABMIL): a bag of tiles in, class probabilities and attention out.

The model is the gated attention of Ilse et al. (2018, arXiv 1802.04712), in the form of CLAM's
`Attn_Net_Gated` without the instance loss. Tile order carries no information: permuting a bag
changes nothing.

Shape letters: N tiles in a bag, D feature width, H hidden width, C classes, P patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from downstream.mil_bags import MilError
from downstream.mil_losses import class_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from downstream.bags import Bags
    from downstream.settings import AbmilSettings

_MIN_STD = 1e-6


class Abmil(nn.Module):
    """Gated attention MIL, its feature standardisation included.

    The mean and standard deviation are buffers of the model, so that it cannot be applied with
    another fold's.

    Args:
        mean_D: Mean of the training tiles.
        std_D: Standard deviation of the training tiles, positive.
        classes: Number of classes C.
        settings: Widths and dropout.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean_D: Tensor, std_D: Tensor, *, classes: int, settings: AbmilSettings
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D)
        self.register_buffer("std", std_D)
        width = settings.hidden
        self.embedding = nn.Sequential(
            nn.Linear(len(mean_D), width), nn.ReLU(), nn.Dropout(settings.dropout)
        )
        self.content = nn.Linear(width, settings.attention)
        self.gate = nn.Linear(width, settings.attention)
        self.attention = nn.Linear(settings.attention, 1)
        self.head = nn.Linear(width, classes)

    def embed(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Tile by tile: raw features -> embeddings [N, H] and attention logits [N]."""
        h_NH = self.embedding((x_ND - self.mean) / self.std)
        gated = torch.tanh(self.content(h_NH)) * torch.sigmoid(self.gate(h_NH))
        return h_NH, self.attention(gated).squeeze(-1)

    def pool(self, h_NH: Tensor, score_N: Tensor) -> tuple[Tensor, Tensor]:
        """Whole bag: class logits [C] and attention [N], which sums to 1 over the bag."""
        a_N = torch.softmax(score_N, dim=0)
        return self.head(a_N @ h_NH), a_N

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [C] and attention [N] of one bag."""
        return self.pool(*self.embed(x_ND))


def tile_statistics(bags: Bags) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of every feature over all tiles of the bags, bag by bag.

    Args:
        bags: TRAINING bags only; statistics that have seen a test tile are a leak.

    Returns:
        float64[D] mean and float64[D] standard deviation, 1 where a feature is constant.
    """
    tiles, mean_D, squares_D = 0, np.zeros(1), np.zeros(1)
    for index in range(len(bags)):
        x_ND = bags[index].astype(np.float64)
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


def train_abmil(
    bags: Bags,
    label_P: NDArray[np.int64],
    *,
    classes: int,
    settings: AbmilSettings,
    seed: int,
    device: str = "cpu",
) -> Abmil:
    """Train on the bags of one training fold for a fixed number of epochs, no early stopping.

    One patient per step (AdamW, class-weighted cross-entropy). The result is a function of bags,
    labels, settings and seed on one machine; the caller's random state is left as it was.

    Args:
        bags: Training bags, one per patient.
        label_P: Class index of each patient.
        classes: Number of classes C.
        settings: Model and schedule.
        seed: Of initialisation, order, dropout and tile subsets.
        device: Torch device to train on.

    Returns:
        The model in evaluation mode.

    Raises:
        MilError: Bags and labels differ in number, or a class has no patients.
    """
    if len(bags) != len(label_P):
        msg = f"{len(bags)} bags with {len(label_P)} labels; give one label per bag"
        raise MilError(msg)
    weight_C = torch.tensor(class_weights(label_P, classes), dtype=torch.float32, device=device)
    mean_D, std_D = (torch.tensor(part, dtype=torch.float32) for part in tile_statistics(bags))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Abmil(mean_D, std_D, classes=classes, settings=settings).to(device).train()
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        for _ in range(settings.epochs):
            for index in rng.permutation(len(bags)):
                x_ND = _subset(bags[int(index)], settings.max_tiles, rng).to(device)
                loss = _bag_loss(model(x_ND)[0], int(label_P[index]), weight_C)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return model.eval()


@torch.no_grad()
def predict(
    model: Abmil, bag_ND: NDArray[np.float16], *, chunk_tiles: int = 4096
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Classify one bag, all its tiles.

    Args:
        model: What `train_abmil` returned.
        bag_ND: Raw features, any number of tiles.
        chunk_tiles: Tiles embedded at once; bounds memory and changes the result only by rounding.

    Returns:
        float64[C] probabilities, and float32[N] attention that sums to 1 over the bag.
    """
    device = model.mean.device
    starts = range(0, len(bag_ND), chunk_tiles)
    parts = [
        model.embed(_tensor(bag_ND[start : start + chunk_tiles]).to(device)) for start in starts
    ]
    logits_C, a_N = model.pool(
        torch.cat([h for h, _ in parts]), torch.cat([score for _, score in parts])
    )
    return torch.softmax(logits_C.double(), dim=0).cpu().numpy(), a_N.cpu().numpy()


def _bag_loss(logits_C: Tensor, label: int, weight_C: Tensor) -> Tensor:
    """Class-weighted cross-entropy of one bag.

    The weight multiplies outside: `cross_entropy(weight=...)` divides by the weights' sum, which
    for a batch of one cancels the weight altogether.
    """
    target = torch.tensor(label, device=logits_C.device)
    return weight_C[label] * F.cross_entropy(logits_C, target)


def _subset(bag_ND: NDArray[np.float16], most: int, rng: np.random.Generator) -> Tensor:
    """At most so many tiles of a bag, a fresh random subset at every call."""
    if len(bag_ND) > most:
        bag_ND = bag_ND[np.sort(rng.choice(len(bag_ND), size=most, replace=False))]
    return _tensor(bag_ND)


def _tensor(bag_ND: NDArray[np.float16]) -> Tensor:
    """float32 copy; the lake's arrays are read-only, which torch cannot express."""
    return torch.from_numpy(bag_ND.astype(np.float32))
