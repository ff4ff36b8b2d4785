"""Fidelity: how well a student predicts its teachers, on patients that no fit has used.

Shape letters: B samples, D embedding.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.targets.target import TargetNorm


@dataclass(kw_only=True)
class Fidelity:
    """Running means over held-out tiles of one teacher at one mpp.

    Attributes:
        cosine: cosine of predicted and true raw features.
        baseline: cosine of the training mean and true raw features: a prediction without skill.
        centred: cosine of predicted and true raw features after the training mean is subtracted
            from both; 0 without skill.
        tiles: number of tiles that were added.
    """

    cosine: float = 0.0
    baseline: float = 0.0
    centred: float = 0.0
    tiles: int = 0
    _sums: dict[str, float] = field(default_factory=dict)

    def add(self, prediction_BD: Tensor, features_BD: Tensor, norm: TargetNorm) -> None:
        """Add predictions in the space of targets [B, D], and the raw features [B, D]."""
        if not len(features_BD):
            return
        raw, restored = features_BD.float(), norm.inverse(prediction_BD.float())
        mean = norm.mean.expand_as(raw)
        tile_cosines = {
            "cosine": F.cosine_similarity(restored, raw),
            "baseline": F.cosine_similarity(mean, raw),
            "centred": F.cosine_similarity(restored - mean, raw - mean),
        }
        self.tiles += len(raw)
        for name, cosines_B in tile_cosines.items():
            total = self._sums.get(name, 0.0) + float(torch.sum(cosines_B.double()))
            self._sums[name] = total
            setattr(self, name, total / self.tiles)

    def to_dict(self) -> dict[str, float]:
        """Return the means, rounded for reading."""
        means = {name: round(getattr(self, name), 5) for name in ("cosine", "baseline", "centred")}
        return {**means, "tiles": self.tiles}


def combined_fidelity(parts: dict[float, Fidelity]) -> dict[str, float]:
    """Average fidelity over all mpps; each tile weighs the same."""
    whole = Fidelity(tiles=sum(part.tiles for part in parts.values()))
    for name in ("cosine", "baseline", "centred"):
        total = sum(getattr(part, name) * part.tiles for part in parts.values())
        setattr(whole, name, total / max(1, whole.tiles))
    return whole.to_dict()
