"""The places of a teacher's rows in a Lance file as plain numbers, to be read in place.

Lance copies an embedding several times on its way to an array. A page that describes itself as
nothing but the values of whole rows, neither compressed nor null, is read straight into the array
instead, 3 to 5 times as fast. Lance reads every page with any other description.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import DamageError

Float16Array = npt.NDArray[np.float16]
StoredArray = npt.NDArray[np.float16 | np.uint8]

# What Lance 2.1 and later say of a page of `rows` lists of `dim` values, of 16 bits or of 8.
PLAIN_PAGE = (
    "PageLayout { layout: Some( FullZipLayout( FullZipLayout { bits_rep: 0, bits_def: 0, "
    "num_items: %(rows)d, num_visible_items: %(rows)d, value_compression: Some( "
    "CompressiveEncoding { compression: Some( FixedSizeList( FixedSizeList { "
    "items_per_value: %(dim)d, has_validity: false, values: Some( CompressiveEncoding { "
    "compression: Some( Flat( Flat { bits_per_value: %(value_bits)d, data: None, }, ), ), }, ), }, "
    "), ), }, ), "
    "layers: [ RepdefAllValidItem, ], details: Some( BitsPerValue( %(bits)d, ), ), }, ), ), }"
)


@dataclass(frozen=True, kw_only=True)
class FlatColumn:
    """A column in a local file.

    Attributes:
        path: the file.
        row_bytes: size of a row.
        ends: rows up to the end of each page [P].
        positions: start of each page in the file [P]; -1 if the page is not plain.
    """

    path: str
    row_bytes: int
    ends: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def read(self, ranges: Sequence[tuple[int, int, int]], into: StoredArray) -> bool:
        """Read ranges, each (first row, rows, row in the array); False if a page is not plain.

        Raises:
            DamageError: the file is shorter than its metadata name.
        """
        places = [self._segments(start, rows) for start, rows, _ in ranges]
        if any(position < 0 for segments in places for position, _ in segments):
            return False
        raw = into.data.cast("B")
        file = os.open(self.path, os.O_RDONLY)
        try:
            for (_, _, at), segments in zip(ranges, places, strict=True):
                byte = at * self.row_bytes
                for position, size in segments:
                    _read_exactly(file, raw[byte : byte + size], position)
                    byte += size
        finally:
            os.close(file)
        return True

    def _segments(self, start: int, rows: int) -> list[tuple[int, int]]:
        """Return (position, bytes) of a row range's segments in the file; -1 in pages not plain."""
        segments, stop = [], start + rows
        page = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            if page == len(self.ends):
                msg = f"{self.path} has no row {start}: it is not the file that was written"
                raise DamageError(msg)
            position, end = int(self.positions[page]), min(stop, int(self.ends[page]))
            skipped = start - (int(self.ends[page - 1]) if page else 0)
            if position >= 0:
                position += skipped * self.row_bytes
            segments.append((position, (end - start) * self.row_bytes))
            start, page = end, page + 1
        return segments


def flat_column(
    path: str, pages: Sequence[Any], dim: int, value_bytes: int = 2
) -> FlatColumn | None:
    """Return the places of a column's rows, from its pages' descriptions.

    It is None if rows can't be counted.

    Args:
        path: a local Lance file.
        pages: the column's, from the file's metadata.
        dim: values in a row.
        value_bytes: bytes of a value: 2 of float16, 1 of codes.
    """
    rows, positions = [], []
    for page in pages:
        text = " ".join(page.encoding.split())
        count = re.search(r"num_items: (\d+)", text)
        if count is None:
            return None
        rows.append(int(count[1]))
        bits = {"bits": 8 * value_bytes * dim, "value_bits": 8 * value_bytes}
        plain = text == PLAIN_PAGE % {"rows": rows[-1], "dim": dim, **bits}
        sizes = [buffer.size for buffer in page.buffers]
        fits = plain and sizes == [rows[-1] * value_bytes * dim]
        positions.append(page.buffers[0].position if fits else -1)
    return FlatColumn(
        path=path,
        row_bytes=value_bytes * dim,
        ends=np.cumsum(rows, dtype=np.int64),
        positions=np.array(positions, np.int64),
    )


def _read_exactly(file: int, into: memoryview, position: int) -> None:
    """Fill a buffer from a position of an open file.

    Raises:
        DamageError: the file ends before.
    """
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], position + done)
        if not count:
            msg = f"a data file ends before byte {position + len(into)}: it was cut"
            raise DamageError(msg)
        done += count
