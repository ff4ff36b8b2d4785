"""Tiles with teachers that are known functions of their pixels, for students of pixels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.recipes.recipe import Recipe
from distill.students.task import Batch, FinerTiles
from distill.students.tile_task import TileTask
from distill.targets.target import Norms, TargetNorm
from distill.targets.target_sources import TeacherColumn
from distill.targets.tile_classes import TileClasses
from featurestore import Moments
from featurestore.stats import phi_s
from tests.worlds.feature_worlds import make_norm

SIDE, CELLS, DIM = 32, 4, 12
FINE = 0.5


def colours(pixels_BHWC: Tensor, cells: int = CELLS) -> Tensor:
    """Mean colour of each cell of a grid [B, cells, cells, 3], 0 to 1."""
    step = pixels_BHWC.shape[1] // cells
    x = pixels_BHWC.float().reshape(len(pixels_BHWC), cells, step, cells, step, -1)
    return x.mean(dim=(2, 4)) / 255


@dataclass(frozen=True, kw_only=True)
class TileWorld:
    """Teachers "a" and "b" (of other scales), tokens "a:patches" and "a:patches5", and children.

    A teacher is a fixed map of mean colours: of the tile, of its cells, of its quarters.
    """

    maps: Mapping[str, Tensor]

    @classmethod
    def make(cls, *, scale: float = 100.0) -> "TileWorld":
        drawn = torch.Generator().manual_seed(0)
        a, b = (torch.randn(3, DIM, generator=drawn) for _ in range(2))
        return cls(maps={"a": a, "b": b * scale})

    def of(self, teacher: str, colour: Tensor) -> Tensor:
        """Features of mean colours [..., 3]."""
        return (colour - 0.5) @ self.maps[teacher] + 0.3

    def batch(self, tiles: int = 32, seed: int = 0) -> Batch:
        """Random tiles with all their features."""
        rng = np.random.default_rng(seed)
        whole = rng.integers(60, 196, (tiles, 1, 1, 3))
        small = (whole + rng.integers(-40, 41, (tiles, CELLS, CELLS, 3))).astype(np.uint8)
        pixels = torch.from_numpy(small.repeat(SIDE // CELLS, 1).repeat(SIDE // CELLS, 2))
        cells, quarters = colours(pixels), colours(pixels, 2)
        places = torch.from_numpy(
            np.sort(np.stack([rng.permutation(CELLS**2)[:5] for _ in range(tiles)]), axis=1)
        )
        tokens = self.of("a", cells).flatten(1, 2)
        sample = tokens.gather(1, places[..., None].expand(-1, -1, DIM))
        mask = torch.from_numpy(rng.random((tiles, 2, 2)) < 0.8)
        children = {name: self.of(name, quarters) for name in self.maps}
        features = {name: self.of(name, cells.mean(dim=(1, 2))) for name in self.maps}
        features |= {"a:patches": tokens.flatten(1), "a:patches5": sample.flatten(1)}
        return Batch(
            mpp=2.0,
            tile_id=torch.arange(tiles),
            features={**features, "a:places5": places},
            pixels=pixels,
            under={FINE: FinerTiles(features=children, mask=mask)},
        )

    def norms(self, targets: str = "z-score") -> Norms:
        """Fit the normalisations of all columns, at both mpps."""
        norms: dict[tuple[str, float], TargetNorm] = {}
        cells = colours(self.pixels_of(9)).flatten(0, 2)
        for name in self.maps:
            raw = self.of(name, cells).double().numpy()
            moments = Moments(n=len(raw), mean=raw.mean(0), covariance=np.cov(raw.T, ddof=0))
            kept = phi_s(moments.mean, moments.covariance)
            norm = make_norm(targets, moments=moments, phi_s=kept)
            columns = [name, f"{name}:patches", f"{name}:patches5"]
            norms |= {(column, mpp): norm for column in columns for mpp in (FINE, 2.0)}
        return norms

    def pixels_of(self, seed: int) -> Tensor:
        pixels = self.batch(256, seed).pixels
        assert pixels is not None
        return pixels

    def task(
        self, recipe: Recipe, *, fine: float | None = None, initial: bytes | None = None
    ) -> TileTask:
        """A task with weights of the recipe's seed; labels are `GRADES`."""
        torch.manual_seed(recipe.seed)
        columns = [COLUMNS[name] for name in recipe.teachers]
        norms = self.norms(recipe.targets)
        classes = {GRADES.column: GRADES}
        return TileTask(recipe, columns, norms, fine=fine, initial=initial, classes=classes)


MOVING = ("dino", "ibot")
#: Classes of the first 256 tiles but each fifth, as many as a teacher's channels.
GRADES = TileClasses(
    column="clinical.grade",
    names=tuple(map(str, range(DIM))),
    of_slides=False,
    keys=np.arange(256)[np.arange(256) % 5 > 0],
    numbers=(np.arange(256) % DIM)[np.arange(256) % 5 > 0],
)
COLUMNS = {
    "a": TeacherColumn(name="a", teacher="a", dim=DIM),
    "b": TeacherColumn(name="b", teacher="b", dim=DIM),
    "a:patches": TeacherColumn(name="a:patches", teacher="a", dim=DIM, tokens=16, side=CELLS),
    "a:patches5": TeacherColumn(
        name="a:patches5", teacher="a", dim=DIM, tokens=5, side=CELLS, places="a:places5"
    ),
}


def train(task: TileTask, world: TileWorld, *, steps: int = 60, rate: float = 3e-3) -> list[float]:
    """Loss of each step against cached targets; new tiles each.

    DINO's and iBOT's are trained on but left out: their targets move with the student.
    """
    trained = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate)
    losses = []
    task.train()
    for step in range(steps):
        parts = task(world.batch(seed=100 + step), torch.Generator().manual_seed(step))
        total = torch.stack(list(parts.values())).sum(dim=0).mean()
        optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        task.after_step(step)
        fixed = [loss for part, loss in parts.items() if str(part) not in MOVING]
        losses.append(float(torch.stack(fixed).sum(dim=0).mean().detach()))
    return losses
