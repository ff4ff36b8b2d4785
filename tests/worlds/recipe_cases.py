"""Every recipe as a task with tiny batches, without a lake or Ray, on any number of workers.

A step's tiles are the same on any number of workers: each takes an equal part of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from distill.recipes.recipe import Recipe, Term
from distill.recipes.recipe_table import make_recipe, parse_terms
from distill.students.fusion import FusionTask
from distill.students.of_features.context_task import ContextTask
from distill.students.of_features.robust_head import RobustTask
from distill.students.task import Batch, FinerTiles, TrainingTask
from distill.terms.region_task import RegionTask
from featurestore import TileBatch, Under
from tests.worlds.feature_worlds import (
    STAINED,
    World,
    norms_of,
    region_batch,
    region_norms,
    stained_batch,
    stained_sites,
    tile_batch,
)
from tests.worlds.tile_worlds import FINE, TileWorld

STEP_TILES = 16
STEPS = 4
FUSED = World(dims={"a": 12, "b": 10})
REGIONS = World(dims={"eye": 12, "expert": 10})
CNN: dict[str, Any] = {"architecture": "test_efficientnet", "input_px": 32, "head_width": 16}
VIT: dict[str, Any] = {
    "architecture": "test_vit",
    "input_px": 32,
    "head_width": 16,
    "arguments": {"patch_size": 8},
}
DROPPED_CNN = {**CNN, "arguments": {"drop_rate": 0.3, "drop_path_rate": 0.3}}
DROPPED_VIT = {
    **VIT,
    "arguments": {"patch_size": 8, "drop_path_rate": 0.5, "proj_drop_rate": 0.2},
}
#: Terms that compare the tiles of a batch with each other.
BATCH_TERMS = (
    "contrast",
    "relation=10",
    "multi-level:b",
    "decoupled-levels:b/clinical.grade=0.1",
    "label/clinical.grade",
    "privileged:b=0.1",
    "self=0.1",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe with small settings.

    Attributes:
        recipe: name of the recipe.
        teachers: columns of its world.
        settings: changes of the recipe.
        terms: further terms.
    """

    recipe: str
    teachers: tuple[str, ...] = ("a", "b")
    settings: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[str, ...] = ()

    def made(self, **changes: Any) -> Recipe:  # noqa: ANN401
        """Return the recipe, with steps of `STEP_TILES`."""
        settings = {"batch_tiles": STEP_TILES, "epochs": 1, "targets": "z-score", "seed": 3}
        return make_recipe(
            self.recipe,
            self.teachers,
            **{**settings, **self.settings, **changes},
            extra_terms=parse_terms(self.terms),
        )

    def task(self, recipe: Recipe) -> TrainingTask:
        """Return the task with weights of the recipe's seed."""
        torch.manual_seed(recipe.seed)
        if self.recipe == "shazam":
            features = {(name, 0.5): x for name, x in tile_batch(FUSED, 128, 5).features.items()}
            return FusionTask(recipe, FUSED.dims, norms_of(features, recipe.targets))
        if self.recipe == "context":
            norms = region_norms(FUSED, _regions(32, 7), "z-score")
            return ContextTask(recipe, FUSED.dims, norms)
        if self.recipe == "robust":
            features = {(STAINED, 0.5): stained_batch(128, 5).features[STAINED]}
            norms = norms_of(features, recipe.targets)
            return RobustTask(recipe, {STAINED: 24}, norms, stained_sites())
        if self.recipe == "pathme":
            norms = region_norms(REGIONS, region_batch(REGIONS, 32, 7, side=2, each=2), "z-score")
            return RegionTask(recipe, REGIONS.dims, norms)
        world = TileWorld.make(scale=1.0)
        return world.task(recipe, fine=FINE if recipe.levels == 2 else None)

    def batch(self, step: int) -> Batch:
        """Return the tiles of a step, over all workers."""
        if self.recipe == "shazam":
            return tile_batch(FUSED, STEP_TILES, 50 + step)
        if self.recipe == "context":
            return _regions(STEP_TILES, 50 + step)
        if self.recipe == "robust":
            return stained_batch(STEP_TILES, 50 + step)
        if self.recipe == "pathme":
            return region_batch(REGIONS, STEP_TILES, 50 + step, side=2, each=2)
        return TileWorld.make(scale=1.0).batch(STEP_TILES, 50 + step)


def _regions(samples: int, seed: int) -> Batch:
    return region_batch(FUSED, samples, seed, side=2, each=2, everywhere=True)


CASES: dict[str, Case] = {
    "agglomerate": Case(
        recipe="agglomerate",
        teachers=("a", "a:patches", "b"),
        settings={**DROPPED_CNN, "ema": 0.9, "accumulate": 2},
    ),
    "agglomerate-vit": Case(
        recipe="agglomerate", settings={**DROPPED_VIT, "weighting": "balance"}
    ),
    "agglomerate-options": Case(
        recipe="agglomerate",
        teachers=("a", "a:patches", "b"),
        settings={
            **CNN,
            "shift": 0.5,
            "sizes": (64,),
            "size_balance": "tokens",
            "self_paced": 0.5,
            "terms": (
                Term(kind="match", settings={"angle": 1.0}),
                Term(kind="average", weight=0.5),
                Term(kind="mutual", labels="clinical.grade"),
                Term(kind="hint", teachers=("b",)),
            ),
        },
    ),
    "xmag": Case(recipe="xmag", settings=DROPPED_CNN),
    "gpfm": Case(recipe="gpfm", settings={**CNN, "input_px": 64}),
    "gpfm-vit": Case(recipe="gpfm", settings=DROPPED_VIT),
    "h0": Case(recipe="h0", teachers=("a", "a:patches"), settings=DROPPED_CNN),
    "g2l": Case(recipe="g2l", teachers=("a",), settings=CNN),
    "terms": Case(recipe="agglomerate", settings=DROPPED_VIT, terms=BATCH_TERMS),
    "shazam": Case(recipe="shazam", settings={"width": 16, "blocks": 1, "head_width": 16}),
    "context": Case(
        recipe="context",
        settings={"width": 16, "depth": 1, "heads": 2, "head_width": 16, "levels": 3},
    ),
    "robust": Case(
        recipe="robust",
        teachers=(STAINED, f"{STAINED}@S1"),
        settings={"atoms": 2, "rank": 2, "hidden": 8, "site": "clinical.site"},
    ),
    "pathme": Case(
        recipe="pathme",
        teachers=("eye", "expert"),
        settings={
            "width": 16, "depth": 1, "heads": 2, "prompts": 2, "attention_layers": 1,
            "prototypes": 24, "head_width": 16,
        },
    ),
}  # fmt: skip


def rows(batch: Batch, rank: int, world: int) -> Batch:
    """Return one worker's part of a step's tiles."""
    each = len(batch.tile_id) // world
    part = slice(rank * each, (rank + 1) * each)
    return replace(
        batch,
        tile_id=batch.tile_id[part],
        features={name: x[part] for name, x in batch.features.items()},
        pixels=None if batch.pixels is None else batch.pixels[part],
        under={
            mpp: FinerTiles(
                features={name: x[part] for name, x in under.features.items()},
                mask=under.mask[part],
            )
            for mpp, under in batch.under.items()
        },
    )


class CaseStream:
    """The tiles of a case in place of a stream of a lake, as `mixed` reads them.

    Args:
        case: the case.
        parts: number of parts of a step.
        rank: number of this worker.
        world: number of all workers.
    """

    def __init__(self, case: Case, *, parts: int = 1, rank: int = 0, world: int = 1) -> None:
        self._case, self._parts, self._place = case, parts, (rank, world)
        self.steps, self._first = STEPS * parts, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": 0, "given": self._first}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._first = state["given"]

    def __iter__(self) -> Iterator[TileBatch]:
        for number in range(self._first, self.steps):
            step, part = divmod(number, self._parts)
            own = rows(self._case.batch(step), *self._place)
            yield as_tiles(rows(own, part, self._parts))


def as_tiles(batch: Batch) -> TileBatch:
    """Return a batch as streams give it, in numpy."""
    zeros = np.zeros(len(batch.tile_id), np.int32)
    return TileBatch(
        mpp=batch.mpp,
        tile_id=batch.tile_id.numpy(),
        x=zeros,
        y=zeros,
        features={name: cast("Any", x.numpy()) for name, x in batch.features.items()},
        pixels=None if batch.pixels is None else batch.pixels.numpy(),
        under={
            mpp: Under(
                features={name: cast("Any", x.numpy()) for name, x in under.features.items()},
                mask=under.mask.numpy(),
            )
            for mpp, under in batch.under.items()
        },
    )
