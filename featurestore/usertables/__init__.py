"""Users' tables: manifests, labels, splits, annotations. One reader for all.

CSV (comma, semicolon, tab), TSV, XLSX and Parquet are read alike; ids are text to the letter; what
can't be read is named by row and column.
"""

from featurestore.usertables.id_columns import ID_NAMES, Id, id_column
from featurestore.usertables.near_ids import near_key, refuse_near, refuse_near_others
from featurestore.usertables.read_table import (
    ENDINGS,
    HeldTable,
    is_table,
    parse_table,
    read_table,
    table_bytes,
)
from featurestore.usertables.table import MISSING_WORDS, UserTable
from featurestore.usertables.table_errors import TableError, tables_raise

__all__ = [
    "ENDINGS",
    "ID_NAMES",
    "MISSING_WORDS",
    "HeldTable",
    "Id",
    "TableError",
    "UserTable",
    "id_column",
    "is_table",
    "near_key",
    "parse_table",
    "read_table",
    "refuse_near",
    "refuse_near_others",
    "table_bytes",
    "tables_raise",
]
