"""A network that sees a coarse tile and the tiles of finer mpps under it, from any teacher.

Source: TICON (arXiv 2512.21331; configuration in STAMP's `ticon.py`): tile embeddings of any of
several encoders go through a map of their own into one transformer, whose attention falls with the
distance of tiles.

Shape letters: B regions, S tokens (all tiles of a region), E embedding of a teacher, D width,
H heads, d width of a head.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.recipes.student_settings import ContextStudent
from distill.students.task import Batch
from distill.targets.kept_norms import KeptNorms, blank_norms
from distill.targets.target import Norms

MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class RegionTiles:
    """The tiles of a region, coarse to fine and row after row.

    Attributes:
        features: normalised features [B, S, E] by teacher; 0 where there is no tile.
        is_present: true where there is a tile [B, S]; the first, the coarse tile, always is.
        sides: number of tiles in a row of each mpp's grid, coarse to fine; the first is 1.
    """

    features: Mapping[str, Tensor]
    is_present: Tensor
    sides: tuple[int, ...]


class NearAttention(nn.Module):
    """Multi-head attention with a bias that falls with the distance of tiles.

    Args:
        width: width D.
        heads: number of heads H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, bias_BHSS: Tensor) -> Tensor:
        """Return the attended values [B, S, D]."""
        parts = self.query_key_value(x_BSD).chunk(3, dim=-1)
        query_BHSd, key_BHSd, value_BHSd = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts
        )
        bias_BHSS = bias_BHSS.to(query_BHSd.dtype)
        mixed_BHSd = F.scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSd, bias_BHSS)
        out_BSD: Tensor = self.out(mixed_BHSd.transpose(1, 2).flatten(2))
        return out_BSD


class NearBlock(nn.Module):
    """A transformer block of `NearAttention`.

    Args:
        width: width D.
        heads: number of heads H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = NearAttention(width, heads)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )

    def forward(self, x_BSD: Tensor, bias_BHSS: Tensor) -> Tensor:
        """Return the tokens [B, S, D] after the block."""
        x_BSD = x_BSD + self.attention(self.norm(x_BSD), bias_BHSS)
        out_BSD: Tensor = x_BSD + self.mlp(self.mlp_norm(x_BSD))
        return out_BSD


class ContextNetwork(nn.Module):
    """Maps of all teachers into one transformer over the tiles of a region.

    Kept of TICON: a map for each teacher, one encoder, attention that falls with distance, masks in
    place of tiles. Changed: tiles of several nested mpps, each with a learned vector of its mpp and
    of its place through the bias alone; features are normalised by statistics that are kept with
    the weights; the slope of a head is 2^(-8 h / H) for each tile of the finest mpp (ALiBi).

    Args:
        settings: width, depth and heads.
        dims: width E of each teacher's features.
        norms: normalisation of every teacher at every mpp.

    Attributes:
        mpps: mpps of the tiles, coarse to fine.

    Raises:
        DistillError: the width is no multiple of the heads, or no such teacher makes the column.
    """

    def __init__(self, settings: ContextStudent, dims: Mapping[str, int], norms: Norms) -> None:
        super().__init__()
        self.teachers, self.width = tuple(dims), settings.width
        self.reads = settings.reads or self.teachers[0]
        if settings.width % settings.heads or self.reads not in dims:
            msg = (
                f"width {settings.width}, {settings.heads} heads and reads='{self.reads}' given; "
                f"the width is a multiple of the heads, and the column is of one of "
                f"{', '.join(self.teachers)}"
            )
            raise DistillError(msg)
        self.mpps = tuple(sorted({mpp for _, mpp in norms}, reverse=True))
        self.norms = KeptNorms(self.teachers, norms)
        self.maps = nn.ModuleList(nn.Linear(dim, settings.width) for dim in dims.values())
        self.levels = nn.Parameter(torch.randn(len(self.mpps), settings.width) * 0.02)
        self.hidden = nn.Parameter(torch.randn(settings.width) * 0.02)
        self.blocks = nn.ModuleList(
            NearBlock(settings.width, settings.heads) for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.width)
        self.heads = settings.heads

    @classmethod
    def restored(
        cls,
        settings: ContextStudent,
        teachers: Sequence[str],
        mpps: Sequence[float],
        targets: str,
        weights: Mapping[str, Tensor],
    ) -> Self:
        """Restore a network from its weights, in evaluation mode.

        Args:
            settings: the settings at training.
            teachers: the teachers in their order at training.
            mpps: mpps of the tiles.
            targets: kind of normalisation, one of `target.NORMS`.
            weights: state of the network.
        """
        dims = {name: weights[f"maps.{i}.weight"].shape[1] for i, name in enumerate(teachers)}
        network = cls(settings, dims, blank_norms(targets, dims, mpps))
        network.load_state_dict(dict(weights))
        return network.eval()

    def region(self, batch: Batch, teachers: Sequence[str] | None = None) -> RegionTiles:
        """Gather the normalised features of a batch.

        Args:
            batch: coarse tiles with the finer tiles under them.
            teachers: the teachers to gather; all if None.

        Raises:
            DistillError: the batch has another mpp, or lacks the tiles of the finer mpps.
        """
        coarse, *finer = self.mpps
        if batch.mpp != coarse or set(finer) - set(batch.under):
            msg = (
                f"a batch of mpp {batch.mpp} with {sorted(batch.under)} under it given; this "
                f"network sees {coarse} with {sorted(finer)}"
            )
            raise DistillError(msg)
        masks = [batch.under[mpp].mask for mpp in finer]
        features = {}
        for name in teachers or self.teachers:
            parts = [self.norms.norm(name, coarse)(batch.features[name])[:, None]]
            for mpp, mask_Brr in zip(finer, masks, strict=True):
                raw_BrrE = batch.under[mpp].features[name]
                # Features of tiles that do not exist are arbitrary.
                target = torch.where(mask_Brr[..., None], self.norms.norm(name, mpp)(raw_BrrE), 0)
                parts.append(target.flatten(1, 2))
            features[name] = torch.cat(parts, dim=1)
        ones_B1 = torch.ones_like(masks[0].flatten(1)[:, :1])
        return RegionTiles(
            features=features,
            is_present=torch.cat([ones_B1, *(mask.flatten(1) for mask in masks)], dim=1),
            sides=(1, *(mask.shape[1] for mask in masks)),
        )

    def tokens(self, region: RegionTiles, shares_BK: Tensor) -> Tensor:
        """Return the tokens [B, S, D] before the blocks.

        Args:
            region: tiles with the features of all teachers, or of those with a share.
            shares_BK: share of each teacher's map for each region; 1 for the teacher that is read.
        """
        mapped = [
            shares_BK[:, place, None, None] * linear(region.features[name])
            for place, (name, linear) in enumerate(zip(self.teachers, self.maps, strict=True))
            if name in region.features
        ]
        return torch.stack(mapped).sum(dim=0) + self.level_vectors(region)

    def level_vectors(self, region: RegionTiles) -> Tensor:
        """Return the learned vector of each token's mpp [S, D]."""
        counts = torch.tensor([side**2 for side in region.sides], device=self.levels.device)
        return self.levels.repeat_interleave(counts, dim=0)

    def forward(
        self, region: RegionTiles, shares_BK: Tensor, is_hidden_BS: Tensor | None = None
    ) -> Tensor:
        """Return the tokens [B, S, D] after the encoder.

        Args:
            region: the tiles.
            shares_BK: share of each teacher's map for each region.
            is_hidden_BS: true at the tiles that are hidden; none if None.
        """
        x_BSD = self.tokens(region, shares_BK)
        if is_hidden_BS is not None:
            replacement_SD = self.hidden + self.level_vectors(region)
            x_BSD = torch.where(is_hidden_BS[..., None], replacement_SD.to(x_BSD.dtype), x_BSD)
        bias_BHSS = self.bias(region)
        for block in self.blocks:
            x_BSD = block(x_BSD, bias_BHSS)
        out_BSD: Tensor = self.norm(x_BSD)
        return out_BSD

    def bias(self, region: RegionTiles) -> Tensor:
        """Return the attention's bias [B, H, S, S]; -inf towards tiles that do not exist."""
        device = self.levels.device
        distance_SS = _constant_distances(region.sides).to(device)
        head_H = torch.arange(1, self.heads + 1, device=device)
        slope_H = torch.exp2(-8.0 * head_H / self.heads)
        near_HSS: Tensor = -slope_H[:, None, None] * distance_SS
        absent_B11S = ~region.is_present[:, None, None, :]
        return near_HSS.masked_fill(absent_B11S, -torch.inf)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        """Embed coarse tiles in their context as vectors [B, D], float32."""
        region = self.region(batch, [self.reads])
        tokens_BSD: Tensor = self(region, self.shares_of(self.reads, len(region.is_present)))
        return tokens_BSD[:, 0].float()

    def shares_of(self, teacher: str, samples: int) -> Tensor:
        """Return the shares [B, K] with which one teacher alone is read."""
        place = torch.tensor(self.teachers.index(teacher), device=self.levels.device)
        shares_K = F.one_hot(place, len(self.teachers)).float()
        return shares_K.expand(samples, -1)


@functools.lru_cache(maxsize=16)
def tile_distances(sides: tuple[int, ...]) -> Tensor:
    """Return the distances [S, S] between the centres of nested tiles, in tiles of the finest mpp.

    >>> tile_distances((1, 2))[0].tolist()  # from the coarse tile's centre
    [0.0, 0.7071067690849304, 0.7071067690849304, 0.7071067690849304, 0.7071067690849304]
    """
    finest = sides[-1]
    centres = []
    for side in sides:
        line = (torch.arange(side, dtype=torch.float64) + 0.5) * (finest / side)
        centres.append(torch.cartesian_prod(line, line).view(-1, 2))
    centre_S2 = torch.cat(centres)
    return torch.cdist(centre_S2, centre_S2).float()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_distances(sides: tuple[int, ...]) -> Tensor:
    """Return `tile_distances`, which a compiled graph takes as a constant and does not trace."""
    return tile_distances(sides)
