"""CRC-32 of a slide's rows and columns. Lance keeps no checksums of its own data files."""

import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.tables.schema import TILE_FIELDS

#: The numbers of a tile's row, little-endian; the slide's own are those of the catalog's row.
TILE_NUMBERS = {
    field.name: np.dtype(field.type.to_pandas_dtype()).newbyteorder("<")
    for field in TILE_FIELDS
    if field.name not in ("slide", "slide_id", "codec")
}


def tiles_crc32(tiles: pa.Table) -> int:
    """Return the checksum of a slide's tile columns, column after column in row order.

    Numbers as little-endian bytes, nulls as NaN; then `codec` as text, a line per tile.
    """
    crc = 0
    for name, kind in TILE_NUMBERS.items():
        numbers = tiles[name].to_numpy()
        crc = zlib.crc32(np.ascontiguousarray(numbers, dtype=kind).data, crc)
    return zlib.crc32("\n".join(name or "" for name in tiles["codec"].to_pylist()).encode(), crc)


#: Each code as float16.
CODE_VALUES = np.arange(256).astype("<f2")


def features_crc32(features: npt.NDArray[np.float16 | np.uint8], crc: int = 0) -> int:
    """Return the checksum of features [N, D] in row order, continuing an earlier part's `crc`.

    Codes of a quantised column are summed up as float16 numbers: so do versions of slidelake that
    know no codes, when they verify a lake.
    """
    if features.dtype == np.uint8:
        return zlib.crc32(CODE_VALUES[features].data, crc)
    return zlib.crc32(np.ascontiguousarray(features, dtype="<f2").data, crc)


def values_crc32(tile_values: list[Any]) -> int:
    """Return the checksum of an annotation's values of a slide's tiles, in row order.

    They are encoded as a JSON array without spaces, with non-ASCII characters escaped.
    """
    return zlib.crc32(json.dumps(tile_values, separators=(",", ":")).encode())


def row_crc32(row: dict[str, Any]) -> int:
    """Return the checksum of a row of `slides` or `catalog` as it is read from its table.

    The values, by column name, as JSON without spaces; bytes in hexadecimal. `row_crc32` itself is
    left out, and so are nulls: a column that is added later changes no checksum.
    """
    fields = {k: v for k, v in row.items() if v is not None and k != "row_crc32"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), default=bytes.hex)
    return zlib.crc32(text.encode())


def with_row_crc32(table: pa.Table) -> pa.Table:
    """Return the table with its column `row_crc32` filled in."""
    crc = pa.array([row_crc32(row) for row in table.to_pylist()], pa.uint32())
    at = table.schema.get_field_index("row_crc32")
    return table.set_column(at, table.schema.field(at), crc)
