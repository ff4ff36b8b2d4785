"""The task of the training loop: a module that computes losses per sample from a batch.

The loop does not depend on teachers, pixels or regions; a task does not depend on files, Ray or
optimisers.

Shape letters: B samples, H W pixels, D embedding, r children side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.recipes.student_settings import StudentSettings
from distill.targets.target import TargetNorm
from distill.train.mosaics import MosaicBatch
from featurestore import TileBatch


@dataclass(frozen=True, kw_only=True)
class FinerTiles:
    """Cached features of the tiles of a finer mpp that lie under each tile of a batch.

    Attributes:
        features: raw float16 features [B, r, r, D] by teacher, row after row; 0 without a tile.
        mask: true where a tile exists [B, r, r]; elsewhere is background.
    """

    features: Mapping[str, Tensor]
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tiles of one mpp on the device that trains.

    Attributes:
        mpp: mpp of the tiles.
        tile_id: keys of the tiles [B].
        features: raw float16 features [B, D], by teacher.
        pixels: uint8 RGB pixels [B, H, W, 3], if the task reads pixels.
        under: the finer tiles under each tile, by mpp.
        neighbours: the tiles to the right, below, and below to the right of each tile, if the views
            show them.
    """

    mpp: float
    tile_id: Tensor
    features: Mapping[str, Tensor]
    pixels: Tensor | None = None
    under: Mapping[float, FinerTiles] = field(default_factory=dict)
    neighbours: Sequence["Batch"] = ()


@dataclass(frozen=True, kw_only=True)
class FeaturePrediction:
    """A task's prediction of a teacher's features, and the true ones.

    Attributes:
        predicted: predictions in the space of targets [M, D].
        features: raw features [M, D].
        norm: normalisation between features and targets.
        mpp: mpp of the features.
    """

    predicted: Tensor
    features: Tensor
    norm: TargetNorm
    mpp: float


class KeptStudent(Protocol):
    """A trained student with the modules that are kept of it."""

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the modules that are kept as NAME.safetensors; the student is `model`."""
        ...

    @property
    def dim(self) -> int:
        """Return the width of the student's embedding."""
        ...


#: What names of predictions of a second student end with.
SECOND = " peer"


@dataclass(frozen=True, kw_only=True)
class SecondStudent:
    """A second student that a run trains beside the first.

    Attributes:
        settings: settings of its network.
        network: the network.
        heads: its heads, which predict the teachers' embeddings.
        trunk: the part of the network that is kept.
        dim: width of its embedding.
    """

    settings: StudentSettings
    network: nn.Module
    heads: nn.Module
    trunk: nn.Module
    dim: int

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the modules that are kept as NAME.safetensors; the student is `model`."""
        return {"model": self.trunk, "heads": self.heads}


class TrainingTask(nn.Module, ABC):
    """A student with its heads, terms and moving averages; their state goes into checkpoints.

    Parameters that require gradients are trained; each must take part in every `forward`, since
    workers wait for each other's gradients.
    """

    @abstractmethod
    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the weighted losses [B] by name; training minimises their sum.

        A name is "TERM TEACHER" if the loss belongs to one teacher, else "TERM".

        Args:
            batch: batch of one worker.
            generator: source of all random draws, on the CPU; it depends on seed, step and worker.
        """

    def after_step(self, step: int) -> None:
        """Update moving averages after optimiser step `step` (from 0)."""

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Predict each teacher's features; called in evaluation mode on held-out tiles."""

    @property
    @abstractmethod
    def student(self) -> nn.Module:
        """Return the network that is kept for use; `model.safetensors` holds its weights."""

    @property
    def second_student(self) -> SecondStudent | None:
        """Return the second student of mutual distillation, if the recipe trains one."""
        return None

    @property
    def sizes(self) -> Sequence[int]:
        """Return the sides of the student's input in pixels, if training draws from several."""
        return ()

    def at_size(self, side_px: int) -> AbstractContextManager[None]:
        """Return a context in which `predict` reads inputs of another side in pixels.

        Raises:
            NotImplementedError: the student has one size.
        """
        msg = f"{type(self).__name__} has inputs of one size, {side_px} px given"
        raise NotImplementedError(msg)

    @property
    def kept_parts(self) -> dict[str, nn.Module]:
        """Return the modules that are kept as NAME.safetensors; the student is `model`."""
        return {"model": self.student}

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        """Return the modules of the student that a step calls as functions: `module(...)`.

        torch.compile replaces a module's call alone. A method of another name that a step calls
        would run uncompiled, and nothing would say so.
        """
        return [self.student]

    def compile_student(self, backend: str = "inductor") -> None:
        """Compile the student by torch.compile, in place; names of parameters do not change.

        Args:
            backend: torch's name of the compiler.
        """
        for part in self.compiled_parts:
            part.compile(backend=backend)

    @property
    @abstractmethod
    def dim(self) -> int:
        """Return the width of the student's embedding."""


def on_device(batch: TileBatch, device: torch.device | str) -> Batch:
    """Return a stream's batch as tensors on a device."""

    def moved(features: Mapping[str, object]) -> dict[str, Tensor]:
        return {name: torch.as_tensor(x).to(device) for name, x in features.items()}

    neighbours = batch.neighbours if isinstance(batch, MosaicBatch) else ()
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
        neighbours=[on_device(one, device) for one in neighbours],
    )
