"""CRC-32 of what a slide has in a table. Lance keeps no checksums of its own data files."""

import zlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def tiles_crc32(tiles: pa.Table) -> int:
    """Checksum of a slide's tile keys and level-0 coordinates, in row order."""
    crc = 0
    for name, kind in (("tile_id", "<i8"), ("x", "<i4"), ("y", "<i4")):
        crc = zlib.crc32(np.ascontiguousarray(tiles[name].to_numpy(), dtype=kind).data, crc)
    return crc


def features_crc32(features: npt.NDArray[np.float16], crc: int = 0) -> int:
    """Checksum of features [N, D] in row order, going on from an earlier part's."""
    return zlib.crc32(np.ascontiguousarray(features, dtype="<f2").data, crc)
