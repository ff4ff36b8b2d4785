"""Sources of targets: features of the tile itself, its patch tokens, or the tiles under it.

A goal is a pure function of cached rows and of the turns of the student's views.

Shape letters: B samples, N tokens, D embedding, h w a teacher's grid, H W the student's grid,
r tiles under a tile, side by side.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import DistillError
from distill.students.student import StudentOutputs, pooled
from distill.students.task import Batch, FeaturePrediction
from distill.targets.target import Norms, TargetNorm, align_grid
from distill.train.views import mosaic, moved_places, shifted_cells, turned

# The outputs of a student that are matched.
CLS, PATCH, GRID = "cls", "patch", "grid"


@dataclass(frozen=True, kw_only=True)
class TeacherColumn:
    """A teacher's column, with the shape that a goal needs.

    Attributes:
        name: name of the column.
        teacher: the teacher of the column; columns of one teacher weigh as one.
        dim: width of an embedding or of one token.
        tokens: number of patch tokens of a tile; None if the column is an embedding.
        places: the column of the tokens' places, if the tokens are a sample.
        side: tokens down and across of the teacher's whole grid.
    """

    name: str
    teacher: str
    dim: int
    tokens: int | None = None
    places: str | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        if self.tokens is None:
            return
        whole = (self.side or 0) ** 2
        if not self.side or self.tokens > whole or (self.places is None and self.tokens != whole):
            msg = (
                f"'{self.name}' has {self.tokens} patch tokens a tile on a grid of {self.side} x "
                f"{self.side}: prefix tokens must be left out, and a sample needs its places"
            )
            raise DistillError(msg)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A target, and the tokens of the student that are compared with it.

    Attributes:
        target: normalised features [B, D], or [B, N, D] of tokens.
        features: the raw features of the target, of the same shape.
        weight: weight of each token [B, N], 0 where it is missing; if None, all count.
        cells: indices of the student's tokens [B, N]; if None, all tokens in order.
        norm: normalisation between features and target, if it is that of one mpp.
    """

    target: Tensor
    features: Tensor
    weight: Tensor | None = None
    cells: Tensor | None = None
    norm: TargetNorm | None = None


@dataclass(frozen=True, kw_only=True)
class ViewGeometry:
    """The geometry of the student's views of a batch, without their pixels.

    Attributes:
        turns: index among the eight symmetries of a square [B].
        shifts: shift down and across in the student's tokens [B, 2], before the turn; None if none.
        grid: number of the student's tokens down and across; its usual one if None.
    """

    turns: Tensor
    shifts: Tensor | None = None
    grid: tuple[int, int] | None = None


class TargetSource(ABC):
    """Builds the goals of one column for one output of the student.

    Args:
        column: column of the teacher.
        norms: normalisations of all columns.
    """

    output: str

    def __init__(self, column: TeacherColumn, norms: Norms) -> None:
        self.column, self._norms = column, norms

    @abstractmethod
    def goal(self, batch: Batch, geometry: ViewGeometry) -> Goal:
        """Return the goal of a batch for the student's views."""

    @abstractmethod
    def mpp(self, batch: Batch) -> float:
        """Return the mpp of the features in goals."""

    def student(self, outputs: StudentOutputs, goal: Goal) -> Tensor:
        """Return the student's outputs that go into the head [B, D] or [B, N, D]."""
        tokens_BND = outputs.tokens.flatten(1, 2)
        if goal.cells is None:
            return tokens_BND
        at = goal.cells.to(tokens_BND.device)[..., None].expand(-1, -1, tokens_BND.shape[-1])
        return tokens_BND.gather(1, at)

    def prediction(self, predicted: Tensor, goal: Goal, batch: Batch) -> FeaturePrediction:
        """Pair the predictions of tokens or tiles that exist with their true features."""
        mpp = self.mpp(batch)
        norm = self._norms[self.column.name, mpp]
        if predicted.ndim == 2:
            return FeaturePrediction(
                predicted=predicted, features=goal.features, norm=norm, mpp=mpp
            )
        is_present = torch.ones(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
        if goal.weight is not None:
            is_present = goal.weight > 0
        return FeaturePrediction(
            predicted=predicted[is_present], features=goal.features[is_present], norm=norm, mpp=mpp
        )


class OwnSource(TargetSource):
    """Builds goals from the embedding of the tile itself."""

    output = CLS

    def goal(self, batch: Batch, geometry: ViewGeometry) -> Goal:
        """Return the normalised features; an embedding is neither turned nor shifted."""
        raw_BD = batch.features[self.column.name]
        norm = self._norms[self.column.name, batch.mpp]
        return Goal(target=norm(raw_BD), features=raw_BD, norm=norm)

    def mpp(self, batch: Batch) -> float:
        """Return the mpp of the batch."""
        return batch.mpp

    def student(self, outputs: StudentOutputs, goal: Goal) -> Tensor:
        """Return the embedding."""
        return outputs.embedding


class PatchSource(TargetSource):
    """Builds goals from patch tokens: all of them on the student's grid, or a sample at its places.

    Args:
        column: column of patch tokens.
        norms: normalisations of all columns.
        grid: number of the student's tokens down and across.
    """

    output = PATCH

    def __init__(self, column: TeacherColumn, norms: Norms, *, grid: tuple[int, int]) -> None:
        super().__init__(column, norms)
        self._grid = grid

    def mpp(self, batch: Batch) -> float:
        """Return the mpp of the batch."""
        return batch.mpp

    def goal(self, batch: Batch, geometry: ViewGeometry) -> Goal:
        """Return the targets at their places in the student's view."""
        raw_BND = batch.features[self.column.name].view(len(batch.tile_id), -1, self.column.dim)
        norm, grid = self._norms[self.column.name, batch.mpp], geometry.grid or self._grid
        if self.column.places is not None:
            cells, weight_BN = self._cells(batch.features[self.column.places], geometry, grid)
            return Goal(target=norm(raw_BND), features=raw_BND, cells=cells, weight=weight_BN)
        side = self.column.side or 0
        raw_BhwD, weight_BN = raw_BND.view(len(raw_BND), side, side, -1), None
        if geometry.shifts is not None and batch.neighbours:
            return self._mosaic_goal(batch, geometry, grid)
        if geometry.shifts is None:
            turned_BhwD = turned(raw_BhwD, geometry.turns, axes=(1, 2))
            target_BHWD, _ = align_grid(norm(turned_BhwD), grid)
            features_BHWD, _ = align_grid(turned_BhwD.float(), grid)
        else:
            cells, is_inside = shifted_cells(geometry.shifts, grid[0])
            target_BHWD, features_BHWD = (
                turned(_moved(align_grid(x, grid)[0], cells), geometry.turns, axes=(1, 2))
                for x in (norm(raw_BhwD), raw_BhwD.float())
            )
            inside_BHW = is_inside.view(-1, *grid).float()
            weight_BN = turned(inside_BHW, geometry.turns, axes=(1, 2)).flatten(1)
            weight_BN = weight_BN.to(target_BHWD.device)
        return Goal(
            target=target_BHWD.flatten(1, 2),
            features=features_BHWD.flatten(1, 2),
            weight=weight_BN,
        )

    def _mosaic_goal(self, batch: Batch, geometry: ViewGeometry, grid: tuple[int, int]) -> Goal:
        """Return the targets of views that show the tiles to the right and below."""
        side, norm = self.column.side or 0, self._norms[self.column.name, batch.mpp]
        raws = [
            part.features[self.column.name].view(len(batch.tile_id), side, side, -1)
            for part in (batch, *batch.neighbours)
        ]
        cells, _ = shifted_cells(geometry.shifts, 2 * grid[0])  # type: ignore[arg-type]
        target_BHWD, features_BHWD = (
            turned(
                _moved(mosaic([align_grid(x, grid)[0] for x in parts], axes=(1, 2)), cells)[
                    :, : grid[0], : grid[1]
                ],
                geometry.turns,
                axes=(1, 2),
            )
            for parts in ([norm(raw) for raw in raws], [raw.float() for raw in raws])
        )
        return Goal(target=target_BHWD.flatten(1, 2), features=features_BHWD.flatten(1, 2))

    def _cells(
        self, places_BN: Tensor, geometry: ViewGeometry, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Return the student's tokens that cover the centres of the teacher's sampled tokens.

        With a shift also whether each of them is in the view, as a weight.
        """
        side, (height, width) = self.column.side or 0, grid
        if geometry.shifts is None:
            turned_places = moved_places(side)[geometry.turns].gather(1, places_BN.long().cpu())
            row, column = turned_places // side, turned_places % side
            rows, columns = (
                (2 * row + 1) * height // (2 * side),
                (2 * column + 1) * width // (2 * side),
            )
            return rows * width + columns, None
        place = places_BN.long().cpu()
        row = (2 * (place // side) + 1) * height // (2 * side) - geometry.shifts[:, :1]
        column = (2 * (place % side) + 1) * width // (2 * side) - geometry.shifts[:, 1:]
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        cells = torch.where(is_inside, row * width + column, 0)
        return moved_places(height)[geometry.turns].gather(1, cells), is_inside.float().to(
            places_BN.device
        )


def _moved(x_BHWD: Tensor, cells_BN: Tensor) -> Tensor:
    """Return a grid whose tokens are those of other places [B, H * W]."""
    at = cells_BN.to(x_BHWD.device)[..., None].expand(-1, -1, x_BHWD.shape[-1])
    return x_BHWD.flatten(1, 2).gather(1, at).view(x_BHWD.shape)


class UnderSource(TargetSource):
    """Builds goals from the features of the tiles of a finer mpp under the tile, on their grid.

    Args:
        column: column of embeddings.
        norms: normalisations of all columns.
        fine: mpp of the finer tiles.
    """

    output = GRID

    def __init__(self, column: TeacherColumn, norms: Norms, *, fine: float) -> None:
        super().__init__(column, norms)
        self._fine = fine

    def mpp(self, batch: Batch) -> float:
        """Return the finer mpp."""
        return self._fine

    def goal(self, batch: Batch, geometry: ViewGeometry) -> Goal:
        """Return the targets [B, r * r, D] turned with the pixels; background has no weight.

        Raises:
            DistillError: views are shifted, by less than a finer tile.
        """
        if geometry.shifts is not None:
            msg = "views of tiles with finer tiles under them can't be shifted; set views.shift=0"
            raise DistillError(msg)
        under = batch.under[self._fine]
        raw_BrrD = turned(under.features[self.column.name], geometry.turns, axes=(1, 2))
        mask_Brr = turned(under.mask, geometry.turns, axes=(1, 2))
        norm = self._norms[self.column.name, self._fine]
        # Features of tiles that do not exist must not reach the loss, not even times 0.
        target_BrrD = torch.where(mask_Brr[..., None], norm(raw_BrrD), 0)
        return Goal(
            target=target_BrrD.flatten(1, 2),
            features=raw_BrrD.flatten(1, 2),
            weight=mask_Brr.flatten(1).float(),
        )

    def student(self, outputs: StudentOutputs, goal: Goal) -> Tensor:
        """Return the student's tokens on the grid of the tiles."""
        return pooled(outputs.tokens, math.isqrt(goal.target.shape[1])).flatten(1, 2)


class MeanUnderSource(UnderSource):
    """Builds goals of the embedding from the mean over the tiles under the tile."""

    output = CLS

    def goal(self, batch: Batch, geometry: ViewGeometry) -> Goal:
        """Return the targets [B, D]; 0, the mean of all tiles, if all is background."""
        grid = super().goal(batch, geometry)
        weight_BN1 = (grid.weight if grid.weight is not None else grid.target[..., 0])[..., None]
        count_B1 = weight_BN1.sum(dim=1)
        raw_BND = torch.where(weight_BN1 > 0, grid.features.float(), 0)
        return Goal(
            target=grid.target.sum(dim=1) / count_B1.clamp_min(1),
            features=raw_BND.sum(dim=1) / count_B1.clamp_min(1),
            weight=(count_B1[:, 0] > 0).float(),
            norm=self._norms[self.column.name, self._fine],
        )

    def student(self, outputs: StudentOutputs, goal: Goal) -> Tensor:
        """Return the embedding."""
        return outputs.embedding

    def prediction(self, predicted: Tensor, goal: Goal, batch: Batch) -> FeaturePrediction:
        """Pair the predictions of tiles with a finer tile under them with their true features."""
        whole = super().prediction(predicted, goal, batch)
        is_present = goal.weight > 0 if goal.weight is not None else slice(None)
        return FeaturePrediction(
            predicted=whole.predicted[is_present],
            features=whole.features[is_present],
            norm=whole.norm,
            mpp=whole.mpp,
        )
