"""Bags of tile features, read from the lake when they are asked for.

A patient's bag is all tiles of all the patient's slides. Bags are kept in memory up to a limit and
read again beyond it (2-3 GB/s from a local lake), so that a cohort larger than memory trains too.

Shape letters: N tiles in a bag, D width of a feature set.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from downstream.cohort import listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore import Lake

_CACHE_BYTES = 2**30
# Every plus but that of the pooling `cls+mean`.
_JOIN = re.compile(r"\+(?!mean(?:[@+]|$))")


class BagError(ValueError):
    """Features that are not there, or teachers that do not describe the same tiles."""


class Bags(Protocol):
    """A sequence of float16[N, D] bags, one per patient; a list is one."""

    def __len__(self) -> int:
        """How many patients."""

    def __getitem__(self, index: int, /) -> NDArray[np.float16]:
        """The bag of one patient."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tiles of one slide with the features of a feature set.

    Attributes:
        tile_id: int64[N] keys.
        x: [N] left edges in level-0 pixels.
        y: [N] top edges in level-0 pixels.
        features: float16[N, D], teachers side by side in the order of the feature set's name.
    """

    tile_id: NDArray[np.int64]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    features: NDArray[np.float16]


def teachers_of(features: str) -> list[str]:
    """Teachers of a feature set.

    >>> teachers_of("virchow2:cls+mean+uni2")
    ['virchow2:cls+mean', 'uni2']
    """
    return _JOIN.split(features)


def slide_tiles(lake: Lake, slide_id: str, features: str, *, mpp: float) -> Tiles:
    """Read a slide's tiles with one teacher or several side by side.

    Raises:
        BagError: Two teachers list other tiles, or the same in another order.
    """
    teachers = teachers_of(features)
    bags = [lake.bag(slide_id, teacher, mpp=mpp) for teacher in teachers]
    first = bags[0]
    for teacher, bag in zip(teachers, bags, strict=True):
        # keys are compared because rows of equal count are not yet the same tiles
        if not np.array_equal(bag.tile_id, first.tile_id):
            msg = (
                f"slide {slide_id!r}: {teacher} and {teachers[0]} do not have the same tiles "
                f"at {mpp} mpp; run `slidelake verify`, then extract the missing ones"
            )
            raise BagError(msg)
    joined = (
        first.features if len(bags) == 1 else np.concatenate([bag.features for bag in bags], axis=1)
    )
    return Tiles(tile_id=first.tile_id, x=first.x, y=first.y, features=joined)


def slides_with_tiles(lake: Lake, *, mpp: float) -> set[str]:
    """Slides that have a tile at an mpp; one without tissue is ready and has none.

    Raises:
        LakeError: The lake has no tiles at this mpp.
    """
    return set(lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0)["slide_id"])


def feature_identity(lake: Lake, slide_ids: Sequence[str], features: str, *, mpp: float) -> str:
    """A hash of the content of a feature set on some slides, from the catalog's checksums.

    It does not change when the lake gets other slides or teachers, as its version does.

    Args:
        lake: The lake.
        slide_ids: The slides in use, each with tiles at this mpp.
        features: Feature set, teachers joined by `+`.
        mpp: Microns per pixel of the tiles.

    Raises:
        LakeError: The lake has no such teacher at this mpp.
        BagError: A slide lacks the features of a teacher.
    """
    digest = hashlib.sha256()
    for teacher in teachers_of(features):
        rows = lake.features_of(teacher, mpp=mpp, slide_ids=slide_ids)
        missing = sorted(set(slide_ids) - set(rows["slide_id"]))
        if missing:
            msg = (
                f"{len(missing)} of {len(slide_ids)} slides have no features of {teacher!r} at "
                f"{mpp} mpp: {listing(missing)}; run `slidelake extract` with this teacher"
            )
            raise BagError(msg)
        checksums = rows.select("slide_id", "tiles", "crc32").sort("slide_id").rows()
        digest.update(repr((teacher, checksums)).encode())
    return digest.hexdigest()[:16]


class PatientBags:
    """The bags of some patients, read on demand and kept up to a limit.

    Args:
        lake: Where the features are.
        slides: Slide ids of each patient.
        features: Feature set, teachers joined by `+`.
        mpp: Microns per pixel of the tiles.
        cache_bytes: Most bytes of bags kept in memory.
    """

    def __init__(
        self,
        lake: Lake,
        slides: Sequence[Sequence[str]],
        features: str,
        *,
        mpp: float,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self._lake = lake
        self._slides = slides
        self._features = features
        self._mpp = mpp
        self._room = cache_bytes
        self._kept: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        """How many patients."""
        return len(self._slides)

    def __getitem__(self, index: int) -> NDArray[np.float16]:
        """The bag of one patient: float16[N, D], slides one after the other.

        Raises:
            IndexError: No such patient.
            LakeError: A slide of the patient has no features of a teacher.
        """
        if index in self._kept:
            return self._kept[index]
        bag = self._read(index)
        # What fits first stays and nothing is evicted: an epoch visits every bag once, so evicting
        # the least recently used one would throw out each bag just before its turn.
        if bag.nbytes <= self._room:
            self._room -= bag.nbytes
            self._kept[index] = bag
        return bag

    def _read(self, index: int) -> NDArray[np.float16]:
        slides = self._slides[index]
        return np.concatenate([self._features_of(slide) for slide in slides])

    def _features_of(self, slide_id: str) -> NDArray[np.float16]:
        return slide_tiles(self._lake, slide_id, self._features, mpp=self._mpp).features
