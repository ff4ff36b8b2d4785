"""Clusters and coresets of the tiles of slides, by a column of the lake.

Slides are read one after the other. The choice is made once, by the process that starts a run, and
its rows are kept in the run's folder; k-means may place a tile between two centres otherwise on
another kind of machine, so a run that has to go on elsewhere is started there from its folder.

Shape letters: N tiles of a slide, D embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from distill.recipes.recipe import Recipe
from distill.train.coresets import (
    COVERAGE,
    RANDOM,
    Clusters,
    farthest_first,
    kept_by_score,
    projected,
)
from featurestore import Lake

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

#: Tiles of each slide that k-means is fitted on.
SAMPLE_TILES = 256


@dataclass(frozen=True, kw_only=True)
class ChoiceTiles:
    """The tiles of a slide that are chosen from.

    Attributes:
        name: name of the slide.
        tile_id: keys of the tiles [N].
    """

    name: str
    tile_id: Int64Array


@dataclass(frozen=True, kw_only=True)
class ClusteredSlide:
    """The clusters of a slide's tiles.

    Attributes:
        cluster: number of each tile's cluster [N].
        distance: distance of each tile to the centre of its cluster [N].
    """

    cluster: Int64Array
    distance: Float32Array

    def at(self, places: Int64Array) -> "ClusteredSlide":
        """Return the clusters of the tiles at some places."""
        return replace(self, cluster=self.cluster[places], distance=self.distance[places])


def choice_column(lake: Lake, recipe: Recipe, mpp: float) -> str:
    """Return the column of features by which tiles are chosen.

    Raises:
        DistillError: the recipe has no embedding, or the column is not there.
    """
    choice = recipe.tiles
    candidates = [choice.column] if choice.column else list(recipe.teachers)
    for name in candidates:
        if name not in lake.teachers(mpp=mpp):
            continue
        if lake.identity(name, mpp=mpp).get("pooling") != "patches":
            return name
    msg = (
        f"tiles are chosen by a column of embeddings at mpp {mpp:g}, and {', '.join(candidates)} "
        "is none; name one by --set tiles.column=COLUMN"
    )
    raise DistillError(msg)


def slide_features(
    lake: Lake, column: str, mpp: float, slides: Sequence[ChoiceTiles]
) -> Iterator[Float32Array]:
    """Yield the features [N, D] of each slide's tiles, in the tiles' order.

    Raises:
        DistillError: a tile has no features in the column.
    """
    for slide in slides:
        if not len(slide.tile_id):
            yield np.empty((0, lake.teachers(mpp=mpp)[column]), np.float32)
            continue
        bag = lake.bag(slide.name, column, mpp=mpp)
        order = np.argsort(bag.tile_id)
        places = np.searchsorted(bag.tile_id[order], slide.tile_id).clip(max=len(order) - 1)
        if not np.array_equal(bag.tile_id[order[places]], slide.tile_id):
            msg = f"tiles of {slide.name} have no features in '{column}'; choose by another column"
            raise DistillError(msg)
        yield np.asarray(bag.features)[order[places]].astype(np.float32)


def cluster_slides(
    lake: Lake, recipe: Recipe, mpp: float, slides: Sequence[ChoiceTiles]
) -> list[ClusteredSlide]:
    """Return the clusters of each slide's tiles, by k-means fitted on a sample of all slides."""
    column, sample = choice_column(lake, recipe, mpp), list[Float32Array]()
    for number, features_ND in enumerate(slide_features(lake, column, mpp, slides)):
        random = np.random.default_rng([recipe.seed, number])
        count = min(SAMPLE_TILES, len(features_ND))
        sample.append(features_ND[random.choice(len(features_ND), count, replace=False)])
    clusters = Clusters(np.concatenate(sample), recipe.tiles.clusters, recipe.seed)
    clustered = []
    for features_ND in slide_features(lake, column, mpp, slides):
        if not len(features_ND):
            empty = np.empty(0)
            part = ClusteredSlide(cluster=empty.astype(np.int64), distance=empty.astype(np.float32))
        else:
            cluster, distance = clusters.of(features_ND)
            part = ClusteredSlide(cluster=cluster, distance=distance)
        clustered.append(part)
    return clustered


def coreset_places(
    lake: Lake,
    recipe: Recipe,
    mpp: float,
    slides: Sequence[ChoiceTiles],
    clustered: Sequence[ClusteredSlide] | None,
) -> list[Int64Array]:
    """Return the places, ascending, of the tiles of each slide that a coreset keeps.

    Args:
        lake: the lake at the run's version.
        recipe: recipe with the coreset.
        mpp: mpp of the tiles.
        slides: the tiles to choose from.
        clustered: clusters of the tiles, for hard and easy ones.
    """
    choice = recipe.tiles
    if clustered is not None and choice.coreset not in (COVERAGE, RANDOM):
        sizes = [len(part.distance) for part in clustered]
        distance = np.concatenate([part.distance for part in clustered])
        kept = np.zeros(len(distance), bool)
        kept[kept_by_score(distance, choice.share, choice.coreset)] = True
        parts = np.split(kept, np.cumsum(sizes)[:-1])
        return [np.flatnonzero(part) for part in parts]
    counts = [_count(len(slide.tile_id), choice.share) for slide in slides]
    if choice.coreset == RANDOM:
        return [
            np.sort(
                np.random.default_rng([recipe.seed, number, len(slides)]).choice(
                    len(slide.tile_id), count, replace=False
                )
            )
            for number, (slide, count) in enumerate(zip(slides, counts, strict=True))
        ]
    column = choice_column(lake, recipe, mpp)
    features = slide_features(lake, column, mpp, slides)
    return [
        np.sort(farthest_first(projected(x_ND), count)) if count else np.empty(0, np.int64)
        for x_ND, count in zip(features, counts, strict=True)
    ]


def _count(tiles: int, share: float) -> int:
    """Return the number of tiles of a slide that are kept: at least one of some."""
    return min(tiles, max(1, round(share * tiles))) if tiles else 0
