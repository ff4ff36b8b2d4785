"""Bags of tile features, read from the lake when they are first used.

A patient's bag is all tiles of all the patient's slides, at one mpp or at several nested ones. Bags
are kept in memory up to a limit and read again beyond it (2-3 GB/s from a local lake), so that a
cohort larger than memory trains too.

Shape letters: N tiles in a bag, D width of a feature set, K coordinates.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort import listing
from downstream.mil.aggregators.tile_canvas import (
    families,
    stack_levels,
    stack_slides,
    under_parents,
)
from downstream.mil.bag_moments import TileMoments, bag_moments

if TYPE_CHECKING:
    from featurestore import Lake
    from featurestore.tables import Rows

_CACHE_BYTES = 2**30
# Every plus but that of the pooling `cls+mean`.
_JOIN = re.compile(r"\+(?!mean(?:[@+]|$))")


class BagError(ValueError):
    """An error for missing features, or for teachers without features of the same tiles.

    Examples:
        >>> issubclass(sl.BagError, ValueError)  # run extract for the slides
        True
    """


@dataclass(frozen=True, kw_only=True)
class PatientBag:
    """The bag of a patient: the tiles of all slides, or one vector of each slide.

    Attributes:
        features: float16[N, D], teachers side by side in the order of the feature set's name;
            float32 for vectors of slides.
        places: int64[N, 2] (y, x) on one canvas of all slides; at several mpps int64[N, 3], the
            level before them, 0 the coarsest.
        family: int32[N] number of the tile's family, see `families`.
        slide: int32[N] number of the slide among the patient's slides.
        tile_id: int64[N] keys of the tiles; -1 for vectors of slides.
        x: int32[N] left edges in level-0 pixels.
        y: int32[N] top edges in level-0 pixels.
    """

    features: NDArray[np.float16 | np.float32]
    places: NDArray[np.int64]
    family: NDArray[np.int32]
    slide: NDArray[np.int32]
    tile_id: NDArray[np.int64]
    x: NDArray[np.int32]
    y: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Return the memory of the bag in bytes."""
        return sum(part.nbytes for part in vars(self).values())

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tile_id)


def teachers_of(features: str) -> list[str]:
    """Return the teachers of a feature set.

    >>> teachers_of("virchow2:cls+mean+uni2")
    ['virchow2:cls+mean', 'uni2']
    """
    return _JOIN.split(features)


def is_of_slides(features: str) -> bool:
    """Whether a feature set is of vectors of slides (`slidelake encode`), not of tiles.

    Raises:
        BagError: it joins both, which have no rows in common.

    >>> is_of_slides("mean.uni2_h+titan.conch15"), is_of_slides("uni2_h+conch15")
    (True, False)
    """
    from featurestore.encodings import is_slide_encoding

    are_of_slides = [is_slide_encoding(name) for name in teachers_of(features)]
    if any(are_of_slides) and not all(are_of_slides):
        msg = (
            f"feature set {features!r} joins vectors of slides (their names have a dot) with "
            "features of tiles; join those of one kind"
        )
        raise BagError(msg)
    return any(are_of_slides)


def feature_width(lake: "Lake", name: str, *, mpp: float) -> int:
    """Return the width of a column of tiles, or of vectors of slides.

    Raises:
        LakeError: The lake has none of this name at this mpp.
    """
    if is_of_slides(name):
        return lake.encoded(name, mpp=mpp).encoding.dim
    lake.check_teacher(name, mpp=mpp)
    return lake.teachers(mpp=mpp)[name]


def column_identity(lake: "Lake", name: str, *, mpp: float) -> dict[str, Any]:
    """Return all that decides the numbers of a column of tiles, or of vectors of slides."""
    if is_of_slides(name):
        return dict(lake.encoded(name, mpp=mpp).encoding.identity)
    return lake.identity(name, mpp=mpp)


def slides_with_features(lake: "Lake", name: str, *, mpp: float) -> set[str]:
    """Return the slides that have features of a column, or a vector.

    Raises:
        LakeError: The lake has none of this name at this mpp.
    """
    if is_of_slides(name):
        return lake.encoded(name, mpp=mpp).slide_ids
    return set(lake.features_of(name, mpp=mpp)["slide_id"])


def tile_columns(lake: "Lake", features: str) -> list[str]:
    """Return the columns of tiles that a feature set is made of, vectors of slides included."""
    columns = {one.name: one.columns for one in lake.slide_encodings()}
    names = [columns.get(name, (name,)) for name in teachers_of(features)]
    return list(dict.fromkeys(itertools.chain.from_iterable(names)))


def _slide_vectors(
    lake: "Lake", slide_ids: Sequence[str], names: Sequence[str], mpps: Sequence[float]
) -> PatientBag:
    """Return a bag of one vector a slide, or one of the patient; names stand side by side.

    Raises:
        BagError: Several mpps, or encoders whose vectors are not of the same slides and sections.
        LakeError: A slide has no vector.
    """
    if len(mpps) != 1:
        msg = f"{', '.join(names)} at mpps {list(mpps)}; vectors of slides are of one mpp"
        raise BagError(msg)
    parts = [lake.encoded(name, mpp=mpps[0]).rows_of(slide_ids) for name in names]
    slide_N = parts[0][1]
    if any(not np.array_equal(slide_N, other) for _, other in parts):
        msg = f"{', '.join(names)} have not the same number of vectors for {', '.join(slide_ids)}"
        raise BagError(msg)
    count = len(slide_N)
    places = np.stack([slide_N, np.zeros(count)], axis=1).astype(np.int64)
    return PatientBag(
        features=np.concatenate([vectors for vectors, _ in parts], axis=1),
        places=places,
        family=families(places, []),
        slide=slide_N,
        tile_id=np.full(count, -1, np.int64),
        x=np.zeros(count, np.int32),
        y=np.zeros(count, np.int32),
    )


def read_patient(
    lake: "Lake", slide_ids: Sequence[str], features: str, mpps: Sequence[float]
) -> PatientBag:
    """Read all tiles of a patient, slide by slide, and within a slide from coarse to fine.

    At several mpps a tile whose coarser parent is not there (too little tissue in it) is left out:
    it has no place in the hierarchy.

    Args:
        lake: the lake that holds the features.
        slide_ids: the patient's slides, sorted.
        features: name of the feature set, teachers joined by `+`.
        mpps: microns per pixel of the tiles, one or several.

    Raises:
        LakeError: A slide has no features of a teacher.
    """
    teachers = teachers_of(features)
    if is_of_slides(features):
        return _slide_vectors(lake, slide_ids, teachers, mpps)
    if len(mpps) == 1:
        return _one_level(*lake.slide_rows(slide_ids, teachers, mpp=mpps[0]), len(slide_ids))
    return _several_levels(lake, slide_ids, teachers, mpps)


def _one_level(rows: "Rows", slide_N: NDArray[np.int32], slides: int) -> PatientBag:
    """Return the bag of tiles at one mpp; their features are not copied but to join teachers."""
    from featurestore import tile_parts

    grid_N2 = np.stack(tile_parts(rows.tile_id)[2:], axis=1)
    places = stack_slides([grid_N2[slide_N == number] for number in range(slides)])
    parts = list(rows.by_teacher.values())
    return PatientBag(
        features=parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1),
        places=places,
        family=families(places, []),
        slide=slide_N,
        tile_id=rows.tile_id,
        x=rows.x,
        y=rows.y,
    )


def _several_levels(
    lake: "Lake", slide_ids: Sequence[str], teachers: Sequence[str], mpps: Sequence[float]
) -> PatientBag:
    """Return the bag of tiles at nested mpps, slide by slide, from coarse to fine in each."""
    from featurestore import tile_parts

    levels = sorted(mpps, reverse=True)
    read = [[lake.bag(slide, teachers, mpp=mpp) for mpp in levels]
            for slide in slide_ids]  # fmt: skip
    grids = [[np.stack(tile_parts(bag.tile_id)[2:], axis=1) for bag in bags] for bags in read]
    ratios = [round(coarse / fine) for coarse, fine in itertools.pairwise(levels)]
    kept = [under_parents(per_level, ratios) for per_level in grids]
    bags = [
        (number, bag, rows)
        for number, (per_level, which) in enumerate(zip(read, kept, strict=True))
        for bag, rows in zip(per_level, which, strict=True)
    ]
    taken = [
        [g[rows] for g, rows in zip(*one, strict=True)] for one in zip(grids, kept, strict=True)
    ]
    places = stack_levels(taken, ratios)
    return PatientBag(
        features=np.concatenate([bag.features[rows] for _, bag, rows in bags]),
        places=places,
        family=families(places, ratios),
        slide=np.concatenate([np.full(int(rows.sum()), n, np.int32) for n, _, rows in bags]),
        tile_id=np.concatenate([bag.tile_id[rows] for _, bag, rows in bags]),
        x=np.concatenate([bag.x[rows] for _, bag, rows in bags]),
        y=np.concatenate([bag.y[rows] for _, bag, rows in bags]),
    )


def pooled_bag(bag: PatientBag) -> NDArray[np.float64]:
    """Return one vector of a patient, the mean over slides of mean tiles: see `risks.pool`."""
    from downstream.survival.risks import pool

    return pool([bag.features[bag.slide == number] for number in np.unique(bag.slide)])


def slides_with_tiles(lake: "Lake", *, mpp: float) -> set[str]:
    """Return the slides that have tiles at an mpp; a ready slide without tissue has none.

    Raises:
        LakeError: The lake has no tiles at this mpp.
    """
    return set(lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0)["slide_id"])


def feature_identity(lake: "Lake", slide_ids: Sequence[str], features: str, *, mpp: float) -> str:
    """Return a hash of the content of a feature set on some slides, from the catalog's checksums.

    It does not change when the lake gets other slides or teachers, as its version does.

    Args:
        lake: the lake.
        slide_ids: the slides in use, each with tiles at this mpp.
        features: name of the feature set, teachers joined by `+`.
        mpp: microns per pixel of the tiles.

    Raises:
        LakeError: The lake has no such teacher at this mpp, or a slide lacks its vector.
        BagError: A slide lacks the features of a teacher.
    """
    digest = hashlib.sha256()
    if is_of_slides(features):
        for name in teachers_of(features):
            vectors, _ = lake.encoded(name, mpp=mpp).rows_of(sorted(slide_ids))
            digest.update(repr((name, sorted(slide_ids))).encode() + vectors.tobytes())
        return digest.hexdigest()[:16]
    for teacher in teachers_of(features):
        rows = lake.features_of(teacher, mpp=mpp, slide_ids=slide_ids)
        missing = sorted(set(slide_ids) - set(rows["slide_id"]))
        if missing:
            msg = (
                f"{len(missing)} of {counted(len(slide_ids), 'slide', 'have')} no features of "
                f"{teacher!r} at "
                f"{mpp} mpp: {listing(missing)}; run `slidelake extract` with this teacher"
            )
            raise BagError(msg)
        checksums = rows.select("slide_id", "tiles", "crc32").sort("slide_id").rows()
        digest.update(repr((teacher, checksums)).encode())
    return digest.hexdigest()[:16]


class PatientBags:
    """The bags of some patients, read on demand and kept up to a limit.

    Args:
        lake: the lake that holds the features.
        slides: slide ids of each patient.
        features: name of the feature set, teachers joined by `+`.
        mpps: microns per pixel of the tiles, one or several.
        cache_bytes: most bytes of bags kept in memory.
    """

    def __init__(
        self,
        lake: "Lake",
        slides: Sequence[Sequence[str]],
        features: str,
        *,
        mpps: Sequence[float],
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self._lake = lake
        self._slides = slides
        self._features = features
        self._mpps = mpps
        self._room = cache_bytes
        self._kept: dict[int, PatientBag] = {}
        self._pooled: dict[int, NDArray[np.float64]] = {}
        self._moments: dict[int, TileMoments] = {}

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self._slides)

    def __getitem__(self, index: int) -> PatientBag:
        """Return the bag of one patient, slides one after the other.

        Raises:
            IndexError: No such patient.
            LakeError: A slide of the patient has no features of a teacher.
        """
        if index in self._kept:
            return self._kept[index]
        bag = read_patient(self._lake, self._slides[index], self._features, self._mpps)
        # What fits first stays and nothing is evicted: an epoch visits every bag once, so evicting
        # the least recently used one would throw out each bag just before its turn.
        if bag.nbytes <= self._room:
            self._room -= bag.nbytes
            self._kept[index] = bag
        return bag

    def pooled(self, index: int) -> NDArray[np.float64]:
        """Return one vector of a patient [D], see `pooled_bag`; its bag is read for it once."""
        if index not in self._pooled:
            self._pooled[index] = pooled_bag(self[index])
        return self._pooled[index]

    def moments(self, index: int) -> TileMoments:
        """Return the number, mean and squares of a patient's tiles; the bag is read for it once."""
        if index not in self._moments:
            self._moments[index] = bag_moments(self[index].features)
        return self._moments[index]
