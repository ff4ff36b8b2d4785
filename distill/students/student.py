"""The network of a student of pixels: a small timm network with an embedding and tokens as output.

Shape letters: B samples, C channels, H W pixels or the grid of tokens, D embedding.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.recipes.student_settings import TileStudent
from distill.train.views import MEAN, STD
from featurestore import Licence, forbidden_by_any
from ingest import TeacherError
from ingest.teachers import channels_last_map
from ingest.teachers.cards import Card, Interpolation

INTERPOLATION: Interpolation = "bicubic"
#: Arguments by which timm's networks of a fixed size take inputs of other sizes: vision
#: transformers, then those of windows (Swin). Their weights are the same.
ANY_SIZE: tuple[Mapping[str, object], ...] = (
    {},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)


@dataclass(frozen=True, kw_only=True)
class StudentOutputs:
    """A student's embeddings and tokens of a batch.

    Attributes:
        embedding: the vector of each tile [B, D], which is written to the lake.
        tokens: tokens of the parts of each tile [B, H, W, D'].
        levels: for a ladder, embeddings of earlier levels [B, D_i] and the last one; else empty.
        maps: for a ladder or hints, maps of earlier levels [B, D_i, H_i, W_i]; else empty.
    """

    embedding: Tensor
    tokens: Tensor
    levels: Sequence[Tensor] = ()
    maps: Sequence[Tensor] = ()


class TileNetwork(nn.Module):
    """The network of a student of pixels: a trunk, run as timm runs it.

    Args:
        settings: settings of the network.
        ladder: whether earlier levels, and their maps, are returned too.
        crop_share: side of further, smaller inputs as a share of the network's; None if all inputs
            are of its own size.

    Attributes:
        trunk: the timm network; its weights are kept.
        dim: width of the embedding.
        token_dim: width of the tokens.
        grid: number of tokens down and across.
        level_dims: widths of the levels, for a ladder.
        crop_px: side of the smaller inputs, a whole number of tokens; None without them.
        stride_px: side of the square of a token.

    Raises:
        DistillError: the network takes no inputs of another size, or its tokens are no grid.
    """

    def __init__(
        self, settings: TileStudent, *, ladder: bool = False, crop_share: float | None = None
    ) -> None:
        super().__init__()
        self._ladder = ladder
        self.crop_px: int | None = None
        one_size = crop_share is None and not settings.sizes
        for trunk in _trunks(settings, [{}] if one_size else ANY_SIZE):
            self.trunk = trunk
            probe = self._probe(settings.input_px)
            self.grid = (probe.tokens.shape[1], probe.tokens.shape[2])
            takes_crops = crop_share is None or self._takes_crops(settings, crop_share)
            if takes_crops and all(map(self._takes, settings.sizes)):
                break
        else:
            shows = "inputs" if crop_share is None else f"crops of {crop_share:g} of a tile's side"
            sizes = f" and {', '.join(map(str, settings.sizes))} px" if settings.sizes else ""
            msg = (
                f"the recipe shows the student {shows}{sizes}, and {settings.architecture} takes "
                f"{settings.input_px} px alone; take another --architecture, or no crops and sizes "
                "(--set terms.N.settings.crops=0, --set student.sizes=)"
            )
            raise DistillError(msg)
        self.stride_px = max(1, settings.input_px // self.grid[0])
        self.dim, self.token_dim = probe.embedding.shape[-1], probe.tokens.shape[-1]
        self.level_dims = [level.shape[-1] for level in probe.levels]

    def _probe(self, side_px: int) -> StudentOutputs:
        """Return the outputs for empty tiles; in evaluation mode, which leaves statistics alone."""
        self.trunk.eval()
        with torch.no_grad():
            outputs: StudentOutputs = self(torch.zeros(2, 3, side_px, side_px))
        self.trunk.train()
        return outputs

    def _takes_crops(self, settings: TileStudent, crop_share: float) -> bool:
        """Set `crop_px`, and return whether the network takes inputs of this side."""
        stride = max(1, settings.input_px // self.grid[0])
        self.crop_px = max(1, round(settings.input_px * crop_share / stride)) * stride
        return self._takes(self.crop_px)

    def _takes(self, side_px: int) -> bool:
        """Return whether the network takes inputs of a side."""
        try:
            self._probe(side_px)
        except (AssertionError, RuntimeError, ValueError):  # what timm and torch raise for a size
            return False
        return True

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
            maps=between,
        )

    def _tokens(self, features: Tensor) -> Tensor:
        """Arrange a map, or patch tokens among tokens [B, N, C], as a grid [B, H, W, C].

        Raises:
            DistillError: the patch tokens are not those of a square.
        """
        if features.ndim == 4:
            return channels_last_map(self.trunk, features)
        patches = features[:, int(getattr(self.trunk, "num_prefix_tokens", 0)) :]
        side = math.isqrt(patches.shape[1])
        if side**2 != patches.shape[1]:
            msg = (
                f"the student's network gives {patches.shape[1]} patch tokens, which are no square "
                "grid; take another --architecture"
            )
            raise DistillError(msg)
        return patches.reshape(len(patches), side, side, -1)


def _trunks(settings: TileStudent, choices: Sequence[Mapping[str, object]]) -> Iterator[nn.Module]:
    """Yield the network, built with each of some further arguments that it has."""
    # timm takes seconds to import, which a driver, that builds no network, need not pay
    from ingest.teachers import build

    for more in choices:
        arguments: dict[str, Any] = {**settings.arguments, **more}
        try:
            trunk: nn.Module = build(settings.architecture, settings.input_px, arguments)
        except TeacherError:
            if not more:
                raise
            continue
        yield trunk.to(memory_format=torch.channels_last)


def pooled(tokens_BHWD: Tensor, side: int) -> Tensor:
    """Pool tokens to a grid of `side` x `side`: means over the tokens of a cell [B, s, s, D]."""
    if tokens_BHWD.shape[1] == side == tokens_BHWD.shape[2]:
        return tokens_BHWD
    grid = F.adaptive_avg_pool2d(tokens_BHWD.permute(0, 3, 1, 2), side)
    return grid.permute(0, 2, 3, 1)


def student_card(
    recipe: Recipe,
    name: str,
    dim: int,
    licences: Mapping[str, Licence],
    mpps: Sequence[float],
    *,
    initial: Mapping[str, Any] = MappingProxyType({}),
) -> Card:
    """Return the card by which `extract` runs a student of pixels, with the teachers' licences.

    A student forbids what the licence of any of its teachers, or of its first weights, forbids.

    Args:
        recipe: recipe of the training.
        name: name of the student.
        dim: width of its embedding.
        licences: licence of each teacher, and of the weights that the training started from.
        mpps: mpps of the training.
        initial: facts of the weights that the training started from; empty for random ones.
    """
    settings = recipe.student_as(TileStudent)
    source = f"distilled by recipe {recipe.name} from {', '.join(recipe.teachers)}"
    if initial:
        source += (
            f", started from {initial['source']} (SHA-256 {initial['sha256']}, "
            f"{initial['parameters']:.0%} of the parameters)"
        )
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
        source=source,
    )
