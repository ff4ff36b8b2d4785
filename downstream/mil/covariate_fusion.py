"""Clinical covariates beside the pooled tiles of a MIL model.

Shape letters: B bags, K covariates, E embedding width, C outputs, Z width of embedded covariates.
"""

import torch
from torch import Tensor, nn

from downstream.run.study_spec import CovariateFusionName

_EMBEDDED = 32


class LateFusion(nn.Module):
    """Linear terms of the covariates, added to the logits of the tiles.

    For a Cox head they are the linear terms of a Cox regression. They start at 0, so that the model
    starts as that of the tiles.

    Args:
        covariates: number K of covariates.
        outputs: number C of logits.
    """

    def __init__(self, covariates: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(covariates, outputs, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, head: nn.Module, embedding: Tensor, covariates_BK: Tensor) -> Tensor:
        """Return the logits [B, C] of bags and their covariates."""
        logits_BC: Tensor = head(embedding) + self.linear(covariates_BK)
        return logits_BC


class GatedFusion(nn.Module):
    """Tiles and covariates, each multiplied by a gate that sees both, before the logits.

    After the gating of Pathomic Fusion (Chen et al. 2020, arXiv 1912.08937), without its Kronecker
    product, whose width is the product of both: logits are linear in the gated embedding and in the
    gated embedding of the covariates.

    Args:
        covariates: number K of covariates.
        width: width E of the tiles' embedding.
        outputs: number C of logits.
    """

    def __init__(self, covariates: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(covariates, _EMBEDDED), nn.ReLU())
        self.tile_gate = nn.Linear(width + _EMBEDDED, width)
        self.covariate_gate = nn.Linear(width + _EMBEDDED, _EMBEDDED)
        self.linear = nn.Linear(_EMBEDDED, outputs, bias=False)

    def forward(self, head: nn.Module, embedding: Tensor, covariates_BK: Tensor) -> Tensor:
        """Return the logits [B, C] of bags and their covariates.

        Args:
            head: layer from an embedding to logits.
            embedding: [B, E], or [B, C, E] of an aggregator with a branch for each class, whose
                gate sees their mean.
            covariates_BK: encoded covariates.
        """
        z_BZ = self.embed(covariates_BK)
        has_branches = embedding.ndim == 3
        summary_BE = embedding.mean(dim=1) if has_branches else embedding
        both = torch.cat([summary_BE, z_BZ], dim=1)
        gate = torch.sigmoid(self.tile_gate(both))
        gated = embedding * (gate[:, None] if has_branches else gate)
        spoken_BZ = torch.sigmoid(self.covariate_gate(both)) * z_BZ
        logits_BC: Tensor = head(gated) + self.linear(spoken_BZ)
        return logits_BC


def make_fusion(
    name: CovariateFusionName, covariates: int, *, width: int, outputs: int
) -> LateFusion | GatedFusion:
    """Return the fusion of a name for K covariates, see the classes."""
    if name == "gated":
        return GatedFusion(covariates, width, outputs)
    return LateFusion(covariates, outputs)
