"""Polygons as GeoParquet, the way SpatialData keeps shapes; no geometry library is needed.

Well-known binary: byte order 1, a uint32 type (3 Polygon, 6 MultiPolygon), then counts and points.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.interop.foreign_slide import Int64Array, InteropError

POLYGON, MULTI_POLYGON = 3, 6
SQUARE = np.dtype(
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))]
)

Rings = Sequence[Sequence[Sequence[float]]]


def squares(xy: Int64Array, side: int) -> pa.Array:
    """Return the WKB of squares by their top-left corners [N, 2] and their side."""
    steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * side
    made = np.zeros(len(xy), SQUARE)
    made["order"], made["kind"], made["rings"], made["points"] = 1, POLYGON, 1, 5
    made["xy"] = xy[:, None, :] + steps
    fixed = pa.binary(SQUARE.itemsize)
    array = pa.FixedSizeBinaryArray.from_buffers(fixed, len(xy), [None, pa.py_buffer(made.data)])
    return array.cast(pa.binary())


def geometry(shape: Mapping[str, Any]) -> bytes:
    """Return the WKB of a GeoJSON geometry.

    Raises:
        InteropError: the shape is no Polygon and no MultiPolygon.
    """
    if shape["type"] == "Polygon":
        return _polygon(shape["coordinates"])
    if shape["type"] == "MultiPolygon":
        parts = [_polygon(rings) for rings in shape["coordinates"]]
        return struct.pack("<BII", 1, MULTI_POLYGON, len(parts)) + b"".join(parts)
    msg = f"tissue is a {shape['type']}; polygons are needed"
    raise InteropError(msg)


def _polygon(rings: Rings) -> bytes:
    parts = [struct.pack("<BII", 1, POLYGON, len(rings))]
    for ring in rings:
        points = np.asarray([point[:2] for point in ring], "<f8")
        parts.append(struct.pack("<I", len(points)) + points.tobytes())
    return b"".join(parts)


def write_shapes(path: Path, columns: Mapping[str, pa.Array], kinds: Sequence[str]) -> None:
    """Write a GeoParquet file with these columns; the column `geometry` is WKB."""
    geo_metadata = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "crs": None, "geometry_types": list(kinds)}},
    }
    table = pa.table(dict(columns)).replace_schema_metadata({"geo": json.dumps(geo_metadata)})
    pq.write_table(table, path)
