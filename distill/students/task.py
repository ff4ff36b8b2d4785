"""The task of the training loop: any module that turns a batch into losses per sample.

The loop does not depend on teachers, pixels or regions; a task does not depend on files, Ray or
optimisers.

Shape letters: B samples, H W pixels, D embedding, r children side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from distill.targets.target import TargetNorm
from featurestore import TileBatch


@dataclass(frozen=True, kw_only=True)
class FinerTiles:
    """Cached features of the tiles of a finer mpp that lie under each tile of a batch.

    Attributes:
        features: raw float16 [B, r, r, D] per teacher, row after row; 0 where there is no tile.
        mask: True where there is one [B, r, r]; elsewhere is background.
    """

    features: Mapping[str, Tensor]
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tiles of one mpp on the device that trains.

    Attributes:
        mpp: of the tiles.
        tile_id: their keys [B].
        features: raw float16 [B, D] per teacher.
        pixels: uint8 RGB [B, H, W, 3], if the task sees any.
        under: by finer mpp.
    """

    mpp: float
    tile_id: Tensor
    features: Mapping[str, Tensor]
    pixels: Tensor | None = None
    under: Mapping[float, FinerTiles] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FeaturePrediction:
    """A task's prediction of a teacher's features, and the true ones.

    Attributes:
        predicted: in the space of targets [M, D].
        features: raw [M, D].
        norm: between the two.
        mpp: of the features.
    """

    predicted: Tensor
    features: Tensor
    norm: TargetNorm
    mpp: float


class TrainingTask(nn.Module, ABC):
    """A student with all that trains it: heads, terms, moving averages. Its state is a checkpoint.

    Parameters that require gradients are trained; each must take part in every `forward`, since
    workers wait for each other's gradients.
    """

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return weighted losses [B] by name; their sum is minimised.

        Names are "TERM TEACHER" where a term is of one teacher, else "TERM".

        Args:
            batch: of one worker.
            generator: of all that is drawn, on the CPU; it depends on seed, step and worker alone.
        """

    def after_step(self, step: int) -> None:
        """Update moving averages after optimiser step `step` (from 0)."""

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict each teacher's features; called in evaluation mode on held-out tiles."""

    @property
    @abstractmethod
    def student(self) -> nn.Module:
        """The network that is kept for use: its weights become `model.safetensors`."""

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """The modules that are kept as NAME.safetensors; the student is `model`."""
        return {"model": self.student}

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the student's embedding."""


def on_device(batch: TileBatch, device: torch.device | str) -> Batch:
    """Move a batch of a stream to a device, as tensors."""

    def moved(features: Mapping[str, object]) -> dict[str, Tensor]:
        return {name: torch.as_tensor(x).to(device) for name, x in features.items()}

    return Batch(
        mpp=batch.mpp,
        tile_id=torch.from_numpy(batch.tile_id),
        features=moved(batch.features),
        pixels=None if batch.pixels is None else torch.from_numpy(batch.pixels).to(device),
        under={
            mpp: FinerTiles(
                features=moved(under.features), mask=torch.from_numpy(under.mask).to(device)
            )
            for mpp, under in batch.under.items()
        },
    )
