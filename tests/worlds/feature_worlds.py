"""Small worlds of correlated features, for students that see features alone.

Every tile has hidden causes; each teacher sees them through its own nonlinear map, at its own scale
and offset, with noise. So each teacher's features predict those of all others in part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.students.task import Batch, FeaturePrediction, FinerTiles, TrainingTask
from distill.targets.norm_arrays import norm_arrays
from distill.targets.target import Norms, TargetNorm, norm_of
from distill.targets.tile_classes import TileClasses
from featurestore import Moments, PhiS, tile_ids
from featurestore.stats import phi_s

Floats = npt.NDArray[np.float64]

CAUSES = 4
SCALES = (1.0, 30.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class World:
    """Teachers that see hidden causes.

    Attributes:
        dims: of each teacher.
        seed: of their maps.
        noise: of each feature, in units of its scale.
    """

    dims: Mapping[str, int]
    seed: int = 0
    noise: float = 0.1
    _maps: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        for name, dim in self.dims.items():
            self._maps[name] = (rng.normal(size=(CAUSES, dim)), rng.normal(size=dim))

    def features(self, teacher: str, causes: Floats, rng: np.random.Generator) -> Tensor:
        """Raw float16 features [..., D] of causes [..., CAUSES]."""
        matrix, offset = self._maps[teacher]
        response = np.tanh(causes @ matrix) + offset
        response = response + self.noise * rng.normal(size=response.shape)
        scale = SCALES[list(self.dims).index(teacher) % len(SCALES)]
        return torch.from_numpy((response * scale).astype(np.float16))


def norm_inputs(features: Tensor) -> Moments:
    """Moments of raw features [..., D]."""
    x = features.flatten(0, -2).numpy().astype(np.float64)
    return Moments(n=len(x), mean=x.mean(0), covariance=np.cov(x.T, ddof=0))


def make_norm(name: str, *, moments: Moments, phi_s: PhiS | None = None) -> TargetNorm:
    """Make a normalisation by name from moments; phi-s takes its transform, or makes it of them."""
    return norm_of(name, mean=moments.mean, **norm_arrays(name, moments, phi_s))


def norms_of(features: Mapping[tuple[str, float], Tensor], name: str = "phi-s") -> Norms:
    """Normalisations fitted on raw features [..., D] by teacher and mpp."""
    moments = {key: norm_inputs(x) for key, x in features.items()}
    return {
        key: make_norm(name, moments=m, phi_s=phi_s(m.mean, m.covariance))
        for key, m in moments.items()
    }


def tile_batch(world: World, samples: int, seed: int, mpp: float = 0.5) -> Batch:
    """Tiles with all teachers' features."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(samples, CAUSES))
    features = {name: world.features(name, causes, rng) for name in world.dims}
    return Batch(mpp=mpp, tile_id=torch.arange(samples), features=features)


def region_batch(
    world: World,
    samples: int,
    seed: int,
    *,
    side: int = 4,
    each: int = 4,
    share: float = 0.7,
    everywhere: bool = False,
) -> Batch:
    """Regions of three mpps: the causes of a tile are the mean of those under it.

    Causes vary more between mid tiles than within one; `share` is that of fine tiles that are
    not background, and every mid tile above one of these is there. The first teacher is at all
    mpps, the others at the finest alone, or `everywhere`.
    """
    rng, big = np.random.default_rng(seed), side * each
    between = rng.normal(size=(samples, side, side, CAUSES)) * 0.7
    between += rng.normal(size=(samples, 1, 1, CAUSES))
    fine = between.repeat(each, 1).repeat(each, 2)
    fine = fine + 0.7 * rng.normal(size=fine.shape)
    fine_there = rng.random((samples, big, big)) < share
    blocks = fine_there.reshape(samples, side, each, side, each)
    mid_there = np.asarray(blocks.any(axis=(2, 4)))
    mid = fine.reshape(samples, side, each, side, each, CAUSES).mean(axis=(2, 4))
    eye, *others = world.dims
    coarse = [eye, *others] if everywhere else [eye]
    under = {
        1.0 * each: _under(world, coarse, mid, mid_there, rng),
        1.0: _under(world, [eye, *others], fine, fine_there, rng),
    }
    whole = {name: world.features(name, mid.mean(axis=(1, 2)), rng) for name in coarse}
    mpp = 1.0 * each * side
    return Batch(mpp=mpp, tile_id=torch.arange(samples), features=whole, under=under)


def _under(
    world: World,
    teachers: list[str],
    causes: Floats,
    present: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> FinerTiles:
    mask = torch.from_numpy(present)
    features = {name: world.features(name, causes, rng) for name in teachers}
    return FinerTiles(
        features={name: torch.where(mask[..., None], x, 0) for name, x in features.items()},
        mask=mask,
    )


def region_norms(world: World, batch: Batch, name: str = "phi-s") -> Norms:
    """Normalisations of a region batch's features, of tiles that are there."""
    features = {(name, batch.mpp): x for name, x in batch.features.items()}
    for mpp, under in batch.under.items():
        features |= {(name, mpp): x[under.mask] for name, x in under.features.items()}
    return norms_of(features, name)


def backward(losses: Mapping[str, Tensor]) -> float:
    """Gradients of the mean over samples of all losses [B]; returns it."""
    loss = torch.stack(list(losses.values())).sum(dim=0).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def fit(
    task: TrainingTask, batches: list[Batch], steps: int, *, rate: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train; returns the loss of each step."""
    task.train()
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    history = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed * 100_003 + step)
        losses = task(batches[step % len(batches)], generator)
        optimiser.zero_grad()
        history.append(backward(losses))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        task.after_step(step)
    return history


def centred_cosine(prediction: FeaturePrediction) -> float:
    """Mean cosine of predicted and raw features, both less the mean; the mean baseline gives 0."""
    raw = prediction.features.double()
    mean = prediction.norm.mean.double()
    predicted = prediction.norm.inverse(prediction.predicted).double() - mean
    return float(torch.nn.functional.cosine_similarity(predicted, raw - mean).mean())


STAINED = "t"
SITES = 2


def stained_batch(samples: int, seed: int, *, variants: int = 1, mpp: float = 0.5) -> Batch:
    """Tiles of 8 slides of two sites with one teacher's column and its stain variants.

    The teacher sees 4 hidden causes, and with them the stain of each variant along 3 directions and
    the site along one more, all at the size of the causes.
    """
    maps = np.random.default_rng(1)
    causes_map, stain_map, site_map = (maps.normal(size=(n, 24)) for n in (CAUSES, 3, 1))
    causes = stained_causes(samples, seed)
    rng = np.random.default_rng([seed, 1])
    slide = rng.integers(0, 8, samples)
    keys = np.concatenate([tile_ids(int(s), mpp, [0], [place]) for place, s in enumerate(slide)])
    features = {}
    for name in [STAINED, *(f"{STAINED}@S{n + 1}" for n in range(variants))]:
        stain = rng.normal(size=(samples, 3))
        x = causes @ causes_map + stain @ stain_map + (slide % SITES)[:, None] * site_map + 1
        features[name] = torch.from_numpy((x + 0.05 * rng.normal(size=x.shape)).astype(np.float16))
    return Batch(mpp=mpp, tile_id=torch.from_numpy(keys), features=features)


def stained_causes(samples: int, seed: int) -> Floats:
    """Return the hidden causes [B, 4] of the tiles of `stained_batch`."""
    return np.random.default_rng(seed).normal(size=(samples, CAUSES))


def stained_sites() -> TileClasses:
    """Return the site of each of the 8 slides."""
    slides = np.arange(8)
    return TileClasses(
        column="clinical.site",
        names=("x", "y"),
        of_slides=True,
        keys=slides,
        numbers=slides % SITES,
    )
