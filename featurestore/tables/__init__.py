"""The tables of a lake: their schemas, the files of commits, and readers of row ranges."""

from featurestore.tables.annotation import PATIENTS
from featurestore.tables.column_parts import (
    PartDamageError,
    PartName,
    PartWriter,
    column_key,
    join_parts,
    parts_in,
)
from featurestore.tables.column_rows import ColumnRows
from featurestore.tables.lance_columns import FragmentKeys
from featurestore.tables.lance_counts import count_tiles
from featurestore.tables.lance_rows import Ranges, Rows
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import (
    CATALOG,
    PENDING,
    READY,
    SLIDES,
    TILE_COLUMNS,
    features_table,
    identity_of,
    shard_path,
    teacher_field,
)

__all__ = [
    "CATALOG",
    "PATIENTS",
    "PENDING",
    "READY",
    "SLIDES",
    "TILE_COLUMNS",
    "ColumnRows",
    "FragmentKeys",
    "PartDamageError",
    "PartName",
    "PartWriter",
    "Ranges",
    "Rows",
    "column_key",
    "count_tiles",
    "features_table",
    "identity_of",
    "join_parts",
    "open_table",
    "parts_in",
    "shard_path",
    "teacher_field",
]
