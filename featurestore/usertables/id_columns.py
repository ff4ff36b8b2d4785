"""Columns of slides and patients in users' tables, whatever tool the table is of."""

from typing import Literal

from featurestore.usertables.table import UserTable
from featurestore.usertables.table_errors import TableError

Id = Literal["patient_id", "slide_id"]
ID_NAMES: dict[Id, tuple[str, ...]] = {
    "patient_id": ("patient_id", "case_id", "patient"),
    "slide_id": ("slide_id", "filename"),
}
"""What columns that hold ids are called: ours, CLAM's and Patho-Bench's, STAMP's."""


def id_column(table: UserTable, key: Id, named: str | None = None) -> str | None:
    """Return the column that holds these ids, or None.

    Args:
        table: a user's table.
        key: `slide_id` or `patient_id`.
        named: the column that the user names for it.

    Raises:
        TableError: no column matches, or several columns do.
    """
    option = f"{key.removesuffix('_id')}_column"
    if named is not None:
        try:
            return table.column(named)
        except TableError as error:
            msg = f"{option}={named!r}: {error}"
            raise TableError(msg) from error
    columns = table.find(ID_NAMES[key])
    if len(columns) > 1:
        msg = (
            f"table {table.name!r} has the columns {', '.join(columns)}, each of which may hold "
            f"the {key}; choose one by {option}={columns[0]!r}"
        )
        raise TableError(msg)
    return next(iter(columns), None)
