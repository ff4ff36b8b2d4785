"""A slide to be exported, and the check that an exported file is finished.

A file counts as finished if it opens, its datasets have the shapes and the coordinates that the
lake has, and it carries the checksums of its sources; its existence alone proves nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.annotations.annotation_export import SlideAnnotations
from featurestore.config import LakeConfig
from featurestore.interop.foreign_files import dataset, opened_h5
from featurestore.interop.foreign_slide import FloatArray, Int64Array, InteropError, SlideTiles
from featurestore.licences import Licence

MARK = "slidelake"


@dataclass(frozen=True, kw_only=True)
class TeacherOut:
    """A teacher's features of a slide in the lake: their width, checksum and encoder's identity."""

    dim: int
    crc32: int
    identity: Mapping[str, Any]
    licence: Licence | None = None


@dataclass(frozen=True, kw_only=True)
class SlideOut:
    """A slide to export; its features and tissue are read when they are used.

    Attributes:
        tiles: tiles of the slide, in the lake's order.
        crc32: checksum of the tiles.
        teachers: teachers to export, as far as the slide has their features.
        features: function that reads one teacher's features, float16 [N, D] in tile order.
        tissue: function that returns the tissue as a GeoJSON FeatureCollection in level-0 pixels;
            None if the lake has none.
        annotations: users' own columns.
        facts: what `slides` says of the slide, without pictures, number and state.
        grid: the catalog's row of the slide's tiles; empty without tiles.
        rows: function that reads all columns of the tiles, in their order, as `TILE_FIELDS`.
    """

    tiles: SlideTiles
    crc32: int
    teachers: Mapping[str, TeacherOut]
    features: Callable[[str], FloatArray]
    tissue: Callable[[], dict[str, Any] | None]
    annotations: SlideAnnotations = field(default_factory=SlideAnnotations)
    facts: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[], pa.Table] = lambda: pa.table({})


@dataclass(frozen=True, kw_only=True)
class CohortOut:
    """A cohort to export, for formats that write files of the whole cohort.

    Attributes:
        config: settings of the lake.
        mpp: microns per pixel of the exported tiles.
        teachers: the exported columns.
        licences: licence of each of them.
        slides: names of all slides, as they are exported, also of those that failed this time.
        random_names: whether the export is de-identified.
    """

    config: LakeConfig
    mpp: float
    teachers: Mapping[str, TeacherOut]
    licences: Mapping[str, Licence]
    slides: Sequence[str]
    random_names: bool


def mark_of(slide: SlideOut, *teachers: str) -> str:
    """Return the mark of a file made of these tiles and teachers."""
    sums = [slide.crc32, *(slide.teachers[teacher].crc32 for teacher in teachers)]
    return "-".join(f"{crc32:08x}" for crc32 in sums)


def is_done(
    path: Path, shapes: Mapping[str, tuple[int, ...]], mark: str, *, coords: Int64Array
) -> bool:
    """Whether an HDF5 file is there whole, with these datasets, this mark and these `coords`."""
    if not path.is_file():
        return False
    try:
        with opened_h5(path) as file:
            datasets = {name: dataset(file, name) for name in shapes}
            same = {name: datasets[name].shape for name in shapes} == dict(shapes)
            fits = same and file.attrs.get(MARK) == mark
            return bool(fits and np.array_equal(datasets["coords"][:], coords))
    except InteropError:
        return False
