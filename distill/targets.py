"""Targets: cached features of a teacher, normalised with statistics fitted offline.

Letters in names: B samples, D embedding of a teacher.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from distill.errors import DistillError
from featurestore import Moments

STD_MIN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Standardiser:
    """Per-channel standardisation, fitted on training slides and never updated while training.

    Every teacher then weighs the same whatever the scale of its features, and smooth L1 has
    something to say beside the cosine (on L2-normalised targets it is (1 - cos) / D).

    Attributes:
        mean: [D].
        std: [D], at least 1e-3 so that a dead channel stays small.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def from_moments(cls, moments: Moments) -> Self:
        """The standardisation by exact moments of a teacher's features."""
        mean = torch.from_numpy(moments.mean).float()
        return cls(mean=mean, std=torch.from_numpy(moments.std).float().clamp_min(STD_MIN))

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Targets [B, D] of raw features [B, D], without gradient.

        Raises:
            DistillError: the widths differ.
        """
        if features_BD.shape[-1] != self.mean.shape[0]:
            msg = f"features have {features_BD.shape[-1]} channels, statistics {len(self.mean)}"
            raise DistillError(msg)
        return ((features_BD.float() - self.mean) / self.std).detach()

    def inverse(self, target_BD: Tensor) -> Tensor:
        """Raw features [B, D] of targets [B, D]."""
        return target_BD * self.std + self.mean
