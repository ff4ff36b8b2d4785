"""The rows of a teacher's column, as they are handed over slide after slide, wherever they go."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.errors import LakeError

FLOAT16_MAX = 65504.0
ABSENT_ROWS = 1024


def to_float16(
    features: npt.NDArray[np.floating], tile_id: npt.NDArray[np.int64], teacher: str
) -> npt.NDArray[np.float16]:
    """Return features [N, D] as they are stored.

    Raises:
        LakeError: a value is NaN, infinite or beyond float16; the first such tile is named.
    """
    bad = ~(np.abs(features) < FLOAT16_MAX).all(axis=1)
    if bad.any():
        worst = features[bad][0]
        kind = "too large for float16" if np.isfinite(worst).all() else "NaN or infinite"
        msg = f"teacher '{teacher}' gave a value that is {kind} for tile {tile_id[bad][0]}"
        raise LakeError(msg)
    return features.astype(np.float16)


class ColumnRows(ABC):
    """Receiver of one teacher's features of one fragment, slide after slide in row order.

    Null are rows that get no features; NaN are tiles that the teacher leaves out.

    Args:
        field: the teacher's column, as `Committer.add_teacher` returned it.
        fragment: the fragment's id.
        first: number of the first row in the fragment.

    Attributes:
        rows: number of the fragment's row that comes next.
    """

    def __init__(self, field: pa.Field, fragment: int, *, first: int = 0) -> None:
        self.field, self.fragment, self.rows = field, fragment, first

    def add(
        self, slide: int, tile_id: npt.NDArray[np.int64], features: npt.NDArray[np.floating]
    ) -> None:
        """Append features [N, D] of the next tiles.

        Raises:
            LakeError: the width is not the column's, or a value can't be stored.
        """
        dim = self.field.type.list_size
        if features.ndim != 2 or features.shape != (len(tile_id), dim):
            msg = (
                f"teacher '{self.field.name}' gave an array {features.shape} for {len(tile_id)} "
                f"tiles; its column holds {dim} values a tile"
            )
            raise LakeError(msg)
        self.append(slide, to_float16(features, tile_id, self.field.name))

    def absent(self, slide: int, rows: int) -> None:
        """Append NaN for the next tiles, which the teacher leaves out."""
        for start in range(0, rows, ABSENT_ROWS):
            few = min(ABSENT_ROWS, rows - start)
            self.append(slide, np.full((few, self.field.type.list_size), np.nan, np.float16))

    @abstractmethod
    def append(self, slide: int, stored: npt.NDArray[np.float16]) -> None:
        """Append features [N, D] of the next tiles as they are stored."""

    @abstractmethod
    def skip(self, rows: int) -> None:
        """Append nulls for rows without features: deleted rows, or the rows of a slide."""
