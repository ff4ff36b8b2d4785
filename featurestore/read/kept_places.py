"""Keys and places of the tiles of whole slides, for a stream that reads blocks of them.

A block's features are one range of a column's file, its keys and places three short ones more. From
a bucket a slide's are no more requests than a block's, so they are read once and kept: 16 bytes a
tile.
"""

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from featurestore.read.selection import Located, Selection
from featurestore.storage.side_by_side import side_by_side
from featurestore.tables.lance_rows import Ranges, RowReader, Rows

KEPT_TILES = 16_000_000  # 256 MB


class KeptPlaces:
    """Keys and places of the slides that were read last. Safe for several threads.

    Args:
        reader: reader of the features table.
        selection: the slides.
        most: number of tiles that are kept.
    """

    def __init__(self, reader: RowReader, selection: Selection, most: int = KEPT_TILES) -> None:
        self._reader, self._selection, self._most = reader, selection, most
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._tiles = 0

    def fill(self, located: Located, into: Rows, at: int) -> None:
        """Fill keys and places of some rows into arrays from row `at` on.

        Raises:
            DamageError: a data file is gone or short.
        """
        numbers = np.unique(located.slide).tolist()
        read = side_by_side(self._reader.store, self._rows_of, numbers)
        by_slide = dict(zip(numbers, read, strict=True))
        ranges = zip(
            located.slide.tolist(),
            located.first.tolist(),
            located.ranges.rows.tolist(),
            strict=True,
        )
        for slide, first, rows in ranges:
            source, target = slice(first, first + rows), slice(at, at + rows)
            into.tile_id[target] = by_slide[slide].tile_id[source]
            into.x[target] = by_slide[slide].x[source]
            into.y[target] = by_slide[slide].y[source]
            at += rows

    def _rows_of(self, slide: int) -> Rows:
        with self._lock:
            if slide in self._kept:
                self._kept.move_to_end(slide)
                return self._kept[slide]
        place: list[npt.NDArray[np.int64]] = [
            np.array([part], np.int64) for part in self._selection.place(slide)
        ]
        fragment, start, rows = place
        read = self._reader.read(Ranges(fragment=fragment, start=start, rows=rows), [])
        with self._lock:
            if slide not in self._kept:
                self._kept[slide] = read
                self._tiles += len(read.tile_id)
            while self._tiles > self._most and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._tiles -= len(oldest.tile_id)
        return read
