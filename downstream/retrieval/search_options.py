"""The settings of a search for similar tiles or slides, and of its measures."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """A query and the settings of its search.

    Attributes:
        like: `SLIDE:x,y` for the tile that covers a place (level-0 pixels), or `SLIDE`.
        features: name of one teacher or student.
        mpp: microns per pixel of the tiles.
        k: number of tiles or slides that are returned.
        exact: compare with all tiles, even if there is an index. Slides are always compared
            exactly.
        build_index: build the teacher's index first, if it is missing or does not cover all tiles.
        other_patients_only: leave out the query's patient; else its own tiles are marked.
        recall_tiles: random tiles on which the index is compared with the exact search; None takes
            16 if one pass over the features is short (up to 2 GB) and 0 beyond; 0 does not compare.
        version: version of the lake, or name of a snapshot; the newest if None.
    """

    like: str
    features: str
    mpp: float = 0.5
    k: int = 12
    exact: bool = False
    build_index: bool = False
    other_patients_only: bool = False
    recall_tiles: int | None = None
    version: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledSearchOptions:
    """Labels on which the search for slides is measured, and the columns that are compared.

    Attributes:
        labels: table of slides or patients and their classes, or `lake:NAME` for one in the lake.
        target: column of the classes.
        features: names of teachers or students.
        mpp: microns per pixel of the tiles.
        seed: seed of the intervals' resamples.
        version: version of the lake, or name of a snapshot; the newest if None.
    """

    labels: str
    target: str
    features: tuple[str, ...]
    mpp: float = 0.5
    seed: int = 0
    version: int | str | None = None
