"""The network of a student of pixels: a small timm network with an embedding and tokens as output.

Shape letters: B samples, C channels, H W pixels or the grid of tokens, D embedding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import TileStudent
from distill.train.views import MEAN, STD
from featurestore import Licence, forbidden_by_any
from ingest.teachers.cards import Card, Interpolation

INTERPOLATION: Interpolation = "bicubic"


@dataclass(frozen=True, kw_only=True)
class StudentOutputs:
    """A student's embeddings and tokens of a batch.

    Attributes:
        embedding: the vector of each tile [B, D], which is written to the lake.
        tokens: tokens of the parts of each tile [B, H, W, D'].
        levels: for a ladder, embeddings of earlier levels [B, D_i] and the last one; else empty.
    """

    embedding: Tensor
    tokens: Tensor
    levels: Sequence[Tensor] = ()


class TileNetwork(nn.Module):
    """The network of a student of pixels: a trunk, run as timm runs it.

    Args:
        settings: settings of the network.
        ladder: whether earlier levels are returned too.

    Attributes:
        trunk: the timm network; its weights are kept.
        dim: width of the embedding.
        token_dim: width of the tokens.
        grid: number of tokens down and across.
        level_dims: widths of the levels, for a ladder.
    """

    def __init__(self, settings: TileStudent, *, ladder: bool = False) -> None:
        # timm takes seconds to import, which a driver, that builds no network, need not pay
        from ingest.teachers import build

        super().__init__()
        self.trunk = build(settings.architecture, settings.input_px, settings.arguments)
        self.trunk.to(memory_format=torch.channels_last)
        self._ladder = ladder
        with torch.no_grad():
            # In evaluation mode: a probe must leave no trace in running statistics.
            self.trunk.eval()
            probe = self(torch.zeros(2, 3, settings.input_px, settings.input_px))
            self.trunk.train()
        self.dim, self.token_dim = probe.embedding.shape[-1], probe.tokens.shape[-1]
        self.grid = (probe.tokens.shape[1], probe.tokens.shape[2])
        self.level_dims = [level.shape[-1] for level in probe.levels]

    def forward(self, x_BCHW: Tensor) -> StudentOutputs:
        """Return the embeddings and tokens of a batch."""
        if self._ladder:
            features, between = self.trunk.forward_intermediates(x_BCHW)  # type: ignore[operator]
        else:
            features, between = self.trunk.forward_features(x_BCHW), []  # type: ignore[operator]
        embedding = self.trunk.forward_head(features)  # type: ignore[operator]
        levels = [level.mean(dim=(2, 3)) for level in between]
        return StudentOutputs(
            embedding=embedding,
            tokens=self._tokens(features),
            levels=[*levels, embedding] if levels else (),
        )

    def _tokens(self, features: Tensor) -> Tensor:
        """Arrange a map [B, C, H, W], or patch tokens among tokens [B, N, C], as a grid."""
        if features.ndim == 4:
            return features.permute(0, 2, 3, 1)
        patches = features[:, int(getattr(self.trunk, "num_prefix_tokens", 0)) :]
        side = math.isqrt(patches.shape[1])
        return patches.reshape(len(patches), side, side, -1)


def pooled(tokens_BHWD: Tensor, side: int) -> Tensor:
    """Pool tokens to a grid of `side` x `side`: means over the tokens of a cell [B, s, s, D]."""
    if tokens_BHWD.shape[1] == side == tokens_BHWD.shape[2]:
        return tokens_BHWD
    grid = F.adaptive_avg_pool2d(tokens_BHWD.permute(0, 3, 1, 2), side)
    return grid.permute(0, 2, 3, 1)


def student_card(
    recipe: Recipe, name: str, dim: int, licences: Mapping[str, Licence], mpps: Sequence[float]
) -> Card:
    """Return the card by which `extract` runs a student of pixels, with the teachers' licences.

    A student forbids what the licence of any of its teachers forbids.
    """
    settings = recipe.student_as(TileStudent)
    return Card(
        name=name,
        architecture=settings.architecture,
        arguments=dict(settings.arguments),
        dim=dim,
        input_px=settings.input_px,
        interpolation=INTERPOLATION,
        mean=MEAN,
        std=STD,
        mpps=tuple(mpps),
        licence="; ".join(f"{name}: {licence.text}" for name, licence in licences.items()),
        forbids=forbidden_by_any(list(licences.values())),
        source=f"distilled by recipe {recipe.name} from {', '.join(recipe.teachers)}",
    )
