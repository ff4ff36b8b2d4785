"""Bags: all tiles of a slide with the features of some teachers.

A bag is a range of rows of one fragment, read in one piece per teacher.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.errors import LakeError
from featurestore.notebook.shown import Shown
from featurestore.read.first_reads import FirstReads, place_of
from featurestore.read.selection import Selection
from featurestore.storage.read_errors import reading
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.lance_rows import RowReader, Rows


@dataclass(frozen=True, kw_only=True, repr=False)
class Bag(Shown):
    """The tiles of a slide at one mpp that have features of all teachers, sorted by (y, x).

    Attributes:
        slide_id: slide of the tiles.
        tile_id: keys [N].
        x: level-0 pixels of the tiles' left edges [N].
        y: level-0 pixels of the tiles' top edges [N].
        by_teacher: float16 [N, D] per teacher, in the order of the request.

    Examples:
        >>> bag = sl.open_lake("my-lake").bag("s01a", "uni2_h", mpp=0.5)
        >>> bag.slide_id, bag.features.shape, bag.features.dtype
        ('s01a', (24, 1536), dtype('float16'))
        >>> bag.x[:3], bag.y[:3]
        (array([  0, 256, 512], dtype=int32), array([0, 0, 0], dtype=int32))
    """

    slide_id: str
    tile_id: npt.NDArray[np.int64]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    by_teacher: dict[str, Float16Array]

    @functools.cached_property
    def features(self) -> Float16Array:
        """Return the features of all teachers side by side [N, sum of D].

        Examples:
            >>> sl.open_lake("my-lake").bag("s01a", ["uni2_h", "student"], mpp=0.5).features.shape
            (24, 1600)
        """
        arrays = list(self.by_teacher.values())
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)


def names_of(teachers: str | Sequence[str]) -> list[str]:
    """Return one teacher name or several names as a list.

    Raises:
        LakeError: no name, or a name twice.

    >>> names_of("uni2"), names_of(("uni2", "virchow2"))
    (['uni2'], ['uni2', 'virchow2'])
    """
    names = [teachers] if isinstance(teachers, str) else list(teachers)
    if not names or len(set(names)) != len(names):
        msg = f"teachers {names} given; name at least one, each once"
        raise LakeError(msg)
    return names


#: A slide of a selection, by its place in it.
Place = tuple[Selection, int]


def read_slides(
    reader: RowReader, places: Sequence[Place], teachers: Sequence[str], first_reads: FirstReads
) -> tuple[Rows, npt.NDArray[np.int32]]:
    """Return the tiles of some slides that have features of all teachers, slide after slide.

    Args:
        reader: reader of the features table.
        places: the slides, each in a selection that holds its checksums.
        teachers: names of the teachers to read.
        first_reads: compares slides with their checksums that were not read before.

    Returns:
        The rows, and the number of each row's slide among `places` [N].

    Raises:
        DamageError: the stored rows differ from the catalog's, or from the written rows.
    """
    sizes = [selection.place(slide)[2] for selection, slide in places]
    rows = Rows.empty(sum(sizes), {name: reader.dim(name) for name in teachers})
    stop = 0
    for (selection, slide), size in zip(places, sizes, strict=True):
        start, stop = stop, stop + size
        located = selection.whole([slide])
        with reading(reader.store, place_of(selection, slide)):
            reader.fill(located.ranges, rows, start)
        selection.check(located, rows.tile_id[start:stop])
        of_slide = {name: array[start:stop] for name, array in rows.by_teacher.items()}
        first_reads.compare_read(reader, selection, slide, of_slide)
    number = np.repeat(np.arange(len(places), dtype=np.int32), sizes)
    complete = rows.complete_rows()
    return (rows, number) if complete is None else (rows.take(complete), number[complete])
