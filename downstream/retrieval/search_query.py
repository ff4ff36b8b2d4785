"""The query of a search: its slide or tile, and the features.

Shape letters: S slides, D width of the features.
"""

import difflib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.run.feature_bags import is_of_slides

if TYPE_CHECKING:
    from featurestore import Bag, Lake

_PLACE = re.compile(r"(?P<slide>.+):(?P<x>-?\d+),\s*(?P<y>-?\d+)")
_READERS = 4


class RetrievalError(ValueError):
    """An error for a query without an answer: an unknown slide, a place without a tile.

    Examples:
        >>> sl.run_search("my-lake", "s99a", "student")
        Traceback (most recent call last):
            ...
        downstream.retrieval.search_query.RetrievalError: slide 's99a' is not among the 13 of ...
    """


@dataclass(frozen=True, kw_only=True)
class Query:
    """A tile or a slide, with the features that are compared.

    Attributes:
        slide_id: id of the slide, or of the tile's slide.
        features: name of the teacher.
        mpp: microns per pixel of the tiles.
        vector: float64[D] of the tile, or the mean of the slide's tiles.
        patients: every slide_id with its `patient` (the slide itself where none is known).
        tile_id: key of the tile; None for a slide.
        x: left edge of the tile in level-0 pixels; None for a slide.
        y: top edge of the tile in level-0 pixels; None for a slide.
    """

    slide_id: str
    features: str
    mpp: float
    vector: NDArray[np.float64]
    patients: pl.DataFrame
    tile_id: int | None = None
    x: int | None = None
    y: int | None = None

    @property
    def patient(self) -> str:
        """Return the patient of the query's slide."""
        patient: str = self.patients.row(by_predicate=pl.col("slide_id") == self.slide_id)[1]
        return patient

    def description(self) -> dict[str, Any]:
        """Return the query's slide, patient and tile, for people and JSON."""
        description: dict[str, Any] = {"slide_id": self.slide_id, "patient": self.patient}
        place = {"x": self.x, "y": self.y, "tile_id": self.tile_id}
        return description if self.tile_id is None else {**description, **place}


def check_k(k: int) -> None:
    """Raise RetrievalError if the number of neighbours is not allowed."""
    if not 1 <= k <= 10_000:
        msg = f"{k} neighbours were asked for; 1 to 10,000 are given"
        raise RetrievalError(msg)


def parse_like(like: str, slide_ids: Sequence[str]) -> tuple[str, tuple[int, int] | None]:
    """Return the slide id of a query, and its place (x, y) or None; ids may have colons.

    Args:
        like: `SLIDE` or `SLIDE:x,y`.
        slide_ids: names of all slides.

    Raises:
        RetrievalError: There is no such slide; the message names a similar one, if any.

    >>> parse_like("a:1:30,40", ["a:1", "b"]), parse_like("a:1", ["a:1", "b"])
    (('a:1', (30, 40)), ('a:1', None))
    """
    parts = _PLACE.fullmatch(like)
    if like not in slide_ids and parts is not None:
        slide, place = parts["slide"], (int(parts["x"]), int(parts["y"]))
    else:
        slide, place = like, None
    if slide in slide_ids:
        return slide, place
    close = difflib.get_close_matches(slide, slide_ids, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    msg = f"slide '{slide}' is not among the {len(slide_ids)} of this lake{hint}"
    raise RetrievalError(msg)


def find_query(lake: "Lake", like: str, features: str, *, mpp: float) -> Query:
    """Return the tile or slide that a query names, with its features.

    Raises:
        LakeError: The lake has no such teacher at this mpp, or not on this slide.
        RetrievalError: The slide is unknown, or no tile with features covers the place.
    """
    from featurestore import patient_of

    if not is_of_slides(features):
        lake.check_teacher(features, mpp=mpp)
    slides = lake.slides().select("slide_id", "patient_id").collect()
    patients = patient_of(slides).select("slide_id", "patient").sort("slide_id")
    slide, place = parse_like(like, patients["slide_id"].to_list())
    mpp = lake.known_mpp(mpp)
    if is_of_slides(features):
        vector = _slide_query(lake, slide, place, features, mpp)
        return Query(slide_id=slide, features=features, mpp=mpp, vector=vector, patients=patients)
    bag = lake.bag(slide, features, mpp=mpp)
    if place is None:
        pooled = _pooled(bag)
        if pooled is None:
            msg = f"no tile of slide '{slide}' has features of '{features}' that can be compared"
            raise RetrievalError(msg)
        return Query(slide_id=slide, features=features, mpp=mpp, vector=pooled, patients=patients)
    side_px = int(lake.tiles_of(mpp=mpp, slide_ids=[slide])["tile_px_level0"][0])
    at = tile_at(bag, place, side_px)
    return Query(
        slide_id=slide,
        features=features,
        mpp=mpp,
        vector=bag.features[at].astype(np.float64),
        patients=patients,
        tile_id=int(bag.tile_id[at]),
        x=int(bag.x[at]),
        y=int(bag.y[at]),
    )


def _slide_query(
    lake: "Lake", slide: str, place: tuple[int, int] | None, features: str, mpp: float
) -> NDArray[np.float64]:
    """Return the vector of a slide [D].

    Raises:
        RetrievalError: A place on the slide was asked for, or its vector is zero.
        LakeError: The slide has no vector.
    """
    if place is not None:
        msg = f"'{features}' has a vector of each slide and none of its tiles; leave the place out"
        raise RetrievalError(msg)
    _, vectors_SD = slide_vectors(lake, [slide], features, mpp=mpp)
    if not len(vectors_SD):
        msg = f"the vector of slide '{slide}' in '{features}' is zero and can't be compared"
        raise RetrievalError(msg)
    query_D: NDArray[np.float64] = vectors_SD[0]
    return query_D


def slide_vectors(
    lake: "Lake", slide_ids: Sequence[str], features: str, *, mpp: float
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the ids and vectors of slides, without those whose vector is zero.

    Raises:
        RetrievalError: The vectors are of patients or sections.
        LakeError: A slide has no vector.
    """
    encoded = lake.encoded(features, mpp=mpp)
    if encoded.encoding.unit != "slide":
        msg = f"'{features}' has vectors of each {encoded.encoding.unit}; a search compares slides"
        raise RetrievalError(msg)
    vectors_SD, _ = encoded.rows_of(slide_ids)
    usable = np.flatnonzero(np.any(vectors_SD, axis=1))
    return [slide_ids[at] for at in usable.tolist()], vectors_SD[usable].astype(np.float64)


def tile_at(bag: "Bag", place: tuple[int, int], side_px: int) -> int:
    """Return the row of the tile that covers a place, with the nearest centre if tiles overlap.

    Args:
        bag: the slide's tiles.
        place: (x, y) in level-0 pixels.
        side_px: side of a tile in level-0 pixels.

    Raises:
        RetrievalError: No tile covers the place; the message names the nearest tile.
    """
    to_centre = np.stack([bag.x, bag.y]).astype(np.float64) + side_px / 2
    away = to_centre - np.array(place, np.float64)[:, None]
    # The right and the lower edge belong to the next tile.
    inside = ((away > -side_px / 2) & (away <= side_px / 2)).all(axis=0)
    squared = (away**2).sum(axis=0)
    if inside.any():
        return int(np.flatnonzero(inside)[np.argmin(squared[inside])])
    nearest = int(np.argmin(squared)) if len(squared) else None
    hint = (
        "it has none at all"
        if nearest is None
        else (
            f"the nearest of its {counted(len(bag.x), 'tile')} has its corner at {bag.x[nearest]},"
            f"{bag.y[nearest]} and a side of {side_px} px"
        )
    )
    msg = (
        f"no tile of slide '{bag.slide_id}' with these features covers {place[0]},{place[1]} "
        f"(level-0 pixels): {hint}"
    )
    raise RetrievalError(msg)


def pooled_features(
    lake: "Lake", slide_ids: Sequence[str], features: str, *, mpp: float
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the ids and mean features of slides, without slides whose mean is undefined.

    Vectors of slides (`slidelake encode`) are taken as they are.

    Returns:
        Ids of the slides with features, in the given order, and their means float64[S, D].

    Raises:
        LakeError: A slide has no features of this teacher.
    """
    if is_of_slides(features):
        return slide_vectors(lake, slide_ids, features, mpp=mpp)
    with ThreadPoolExecutor(_READERS) as pool:
        means = list(pool.map(lambda slide: _pooled(lake.bag(slide, features, mpp=mpp)), slide_ids))
    mean_of_slide = {name: m for name, m in zip(slide_ids, means, strict=True) if m is not None}
    width = lake.teachers(mpp=mpp)[features]
    return list(mean_of_slide), np.array(list(mean_of_slide.values()), np.float64).reshape(
        -1, width
    )


def _pooled(bag: "Bag") -> NDArray[np.float64] | None:
    """Return the mean of a bag's features [D]; None without features or if the mean is zero."""
    pooled = bag.features.astype(np.float32).mean(axis=0, dtype=np.float64) if len(bag.x) else None
    return pooled if pooled is not None and pooled.any() else None


def nearest_rows(
    query: NDArray[np.float64], rows_SD: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the indices of the k rows with the greatest cosine to a query, and the cosines.

    Args:
        query: features of the query [D], not all zero.
        rows_SD: rows to compare with, none all zero.
        k: number of rows; fewer are returned if there are fewer.
    """
    length_S = np.linalg.norm(rows_SD, axis=1) * np.linalg.norm(query)
    similarity_S = (rows_SD @ query) / length_S
    order = np.argsort(-similarity_S, kind="stable")[:k]
    return order, similarity_S[order]
