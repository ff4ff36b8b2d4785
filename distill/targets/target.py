"""Targets: cached features of a teacher, normalised with statistics fitted offline.

All functions work on the last axis: features [B, D] of tiles or [B, h, w, D] of patch tokens.

Shape letters: B samples, D embedding of a teacher, h w its grid of tokens, H W the student's.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.numeric import full_precision


@dataclass(frozen=True, kw_only=True)
class TargetNorm(ABC):
    """A map of raw features to targets that is fixed during training, and its inverse.

    Attributes:
        mean: mean of the raw features of the training slides [D]: a prediction without skill.
    """

    name: ClassVar[str]
    mean: Tensor

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Normalise raw features [B, D] to targets [B, D], float32, without gradient.

        Raises:
            DistillError: the widths differ.
        """
        if self.dim != features_BD.shape[-1]:
            msg = f"features have {features_BD.shape[-1]} channels, statistics {self.dim}"
            raise DistillError(msg)
        with torch.no_grad(), full_precision(features_BD) as (x_BD,):
            return self.normalised(x_BD).detach()

    @property
    def dim(self) -> int:
        """Return the width D that the statistics were fitted for."""
        return len(self.mean)

    @abstractmethod
    def normalised(self, x_BD: Tensor) -> Tensor:
        """Normalise features in float32."""

    @abstractmethod
    def inverse(self, target_BD: Tensor) -> Tensor:
        """Return raw features [B, D] of targets [B, D]; gradients flow."""

    def to(self, device: torch.device | str) -> Self:
        """Return the normalisation with its statistics on a device."""
        statistics = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {
            key: statistic for key, statistic in statistics.items() if isinstance(statistic, Tensor)
        }
        return replace(self, **{key: statistic.to(device) for key, statistic in tensors.items()})


@dataclass(frozen=True, kw_only=True)
class Unchanged(TargetNorm):
    """Leaves features raw, so that teachers weigh by their scales: for one teacher, or a cosine."""

    name: ClassVar[str] = "none"

    def normalised(self, x_BD: Tensor) -> Tensor:
        """Return the features unchanged."""
        return x_BD

    def inverse(self, target_BD: Tensor) -> Tensor:
        """Return the targets unchanged."""
        return target_BD


@dataclass(frozen=True, kw_only=True)
class UnitLength(TargetNorm):
    """Divides features by their length; 0 stays 0. Smooth L1 then adds nothing to the cosine.

    Attributes:
        length: length of all features after the inverse, since their own length is lost.
    """

    name: ClassVar[str] = "l2"
    length: float

    def normalised(self, x_BD: Tensor) -> Tensor:
        """Return the features at length 1."""
        return F.normalize(x_BD, dim=-1)

    def inverse(self, target_BD: Tensor) -> Tensor:
        """Return features with the target's direction and a typical length."""
        return F.normalize(target_BD.float(), dim=-1) * self.length


@dataclass(frozen=True, kw_only=True)
class Standardiser(TargetNorm):
    """Standardises each channel by statistics of the training slides, fixed during training.

    Every teacher then weighs the same whatever the scale of its features, and smooth L1 adds
    to the cosine (on L2-normalised targets it is (1 - cos) / D).

    Attributes:
        mean: mean of each channel [D].
        std: standard deviation of each channel [D], at least 1e-3 of the root mean square over all
            channels (`norm_arrays.STD_MIN`): a dead channel stays small.
    """

    name: ClassVar[str] = "z-score"
    std: Tensor

    def normalised(self, x_BD: Tensor) -> Tensor:
        """Return the features with mean 0 and variance 1 in each channel."""
        return (x_BD - self.mean) / self.std

    def inverse(self, target_BD: Tensor) -> Tensor:
        """Return raw features [B, D] of targets [B, D]."""
        return target_BD * self.std + self.mean


@dataclass(frozen=True, kw_only=True)
class Rotator(TargetNorm):
    """PHI-S: applies one rotation and one scale, so that all channels have the same variance.

    Unlike a standardisation it keeps all ratios of distances, so that an error of the student
    counts the same in every direction. Source: Ranzinger et al. 2024 (arXiv 2410.01680).

    Attributes:
        mean: mean of each channel [D].
        rotation: orthogonal matrix [D, D]; channel i of the target is the product with row i.
        scale: scale of all channels.
    """

    name: ClassVar[str] = "phi-s"
    rotation: Tensor
    scale: float

    def normalised(self, x_BD: Tensor) -> Tensor:
        """Return the features with mean 0, rotated, at the common scale."""
        return ((x_BD - self.mean) @ self.rotation.T) * self.scale

    def inverse(self, target_BD: Tensor) -> Tensor:
        """Return raw features [B, D] of targets [B, D]."""
        with full_precision(target_BD) as (y_BD,):
            return y_BD @ self.rotation / self.scale + self.mean


Norms = Mapping[tuple[str, float], TargetNorm]  # by column and mpp

NORMS: dict[str, type[TargetNorm]] = {
    norm.name: norm for norm in (Unchanged, UnitLength, Standardiser, Rotator)
}


def norm_of(name: str, **statistics: npt.NDArray[np.floating]) -> TargetNorm:
    """Return a normalisation by name: none, l2, z-score or phi-s; its statistics become float32.

    Raises:
        DistillError: the name is not known, or statistics are missing or too many.
    """
    if name not in NORMS:
        msg = f"no normalisation '{name}' of targets; known are {', '.join(NORMS)}"
        raise DistillError(msg)
    needed = {field.name for field in fields(NORMS[name])}
    if needed != set(statistics):
        msg = f"targets '{name}' need {', '.join(sorted(needed))}; {', '.join(statistics)} given"
        raise DistillError(msg)
    arrays: dict[str, Any] = {
        key: torch.from_numpy(array).float() if array.ndim else float(array)
        for key, array in statistics.items()
    }
    return NORMS[name](**arrays)


def align_grid(
    tokens_BhwD: Tensor, grid: tuple[int, int], mask_Bhw: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Align a teacher's patch tokens with the grid of a student that reads the same square.

    Along each axis, a coarser grid has the mean over the area of each cell, a finer grid
    interpolates linearly between the centres of tokens, and an equal grid changes nothing. Masked
    tokens do not count: a cell has the mean of the tokens that are left under it.

    Args:
        tokens_BhwD: normalised targets.
        grid: height H and width W of the student's grid, in tokens.
        mask_Bhw: true at the tokens that count; all count if None.

    Returns:
        Tokens [B, H, W, D], 0 where nothing counts, and the share [B, H, W] of each cell that
        counts (0 to 1): weights for `weighted_mean` over tokens.

    Raises:
        DistillError: a side of the grid is below 1, or the mask is of another shape.
    """
    mask_Bhw = _checked_mask(tokens_BhwD, grid, mask_Bhw)
    with torch.no_grad(), full_precision(tokens_BhwD, mask_Bhw) as (x_BhwD, kept_Bhw):
        rows_Hh = axis_weights(x_BhwD.shape[1], grid[0]).to(x_BhwD.device)
        columns_Ww = axis_weights(x_BhwD.shape[2], grid[1]).to(x_BhwD.device)
        share_BHW = torch.einsum("Hh,Ww,bhw->bHW", rows_Hh, columns_Ww, kept_Bhw)
        kept_BhwD = torch.where(kept_Bhw[..., None] > 0, x_BhwD, 0)
        sum_BHWD = torch.einsum("Hh,Ww,bhwd->bHWd", rows_Hh, columns_Ww, kept_BhwD)
        mean_BHWD = sum_BHWD / torch.where(share_BHW > 0, share_BHW, 1)[..., None]
        return mean_BHWD.detach(), share_BHW


def _checked_mask(x_BhwD: Tensor, grid: tuple[int, int], mask_Bhw: Tensor | None) -> Tensor:
    if min(grid) < 1:
        msg = f"a grid of {grid[0]} x {grid[1]} tokens given; each side needs at least 1"
        raise DistillError(msg)
    if mask_Bhw is None:
        return torch.ones(x_BhwD.shape[:3], device=x_BhwD.device)
    if mask_Bhw.shape != x_BhwD.shape[:3]:
        msg = f"the mask is {tuple(mask_Bhw.shape)}, the tokens {tuple(x_BhwD.shape[:3])}"
        raise DistillError(msg)
    return mask_Bhw


@functools.lru_cache(maxsize=64)
def axis_weights(old: int, new: int) -> Tensor:
    """Return the share of each of `old` cells of a line in each of `new` cells, [new, old].

    Rows add up to 1: overlaps where new < old, linear interpolation where new > old.

    >>> axis_weights(3, 2)
    tensor([[0.6667, 0.3333, 0.0000],
            [0.0000, 0.3333, 0.6667]])
    """
    cells, step = torch.arange(old, dtype=torch.float64), old / new
    start = torch.arange(new, dtype=torch.float64)[:, None] * step
    if new <= old:
        ends = torch.minimum(start + step, cells + 1)
        weights = (ends - torch.maximum(start, cells)).clamp_min(0) / step
    else:
        # Beyond the outer centres there is nothing to interpolate: the outer token is repeated.
        centre = (start + step / 2 - 0.5).clamp(0, old - 1)
        weights = (1 - (centre - cells).abs()).clamp_min(0)
    return weights.float()
