"""A table from a file of any kind that people keep tables in, local or at a URL."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from featurestore.storage.user_files import bucket_errors_explained, files_at
from featurestore.usertables.cell_grid import CellGrid
from featurestore.usertables.columnar import read_columnar
from featurestore.usertables.delimited import read_delimited
from featurestore.usertables.table import UserTable
from featurestore.usertables.table_errors import TableError
from featurestore.usertables.workbook import read_workbook

ENDINGS = (".csv", ".tsv", ".txt", ".xlsx", ".parquet")
_WORKBOOK, _PARQUET = b"PK\x03\x04", b"PAR1"


@dataclass(frozen=True, kw_only=True)
class HeldTable(os.PathLike[str]):
    """A table in memory, such as a lake's annotation, that can replace a path.

    Attributes:
        name: name for messages; its ending determines the format.
        content: content of the file.
    """

    name: str
    content: bytes

    def __fspath__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


def read_table(path: str | os.PathLike[str]) -> UserTable:
    """Return the table in a file: CSV, TSV, XLSX (first visible sheet) or Parquet.

    Args:
        path: local path, or a URL that fsspec can open.

    Raises:
        TableError: no such file, another ending, or a file that can't be read.
    """
    name = os.fspath(path)
    return parse_table(table_bytes(path), name=name)


def table_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file, local or at a URL.

    Raises:
        TableError: the file isn't there, or can't be opened.
    """
    if isinstance(path, HeldTable):
        return path.content
    name = os.fspath(path)
    try:
        with bucket_errors_explained(name):
            files, place = files_at(os.path.expanduser(name))  # noqa: PTH111 - may be a URL
            content = bytes(files.cat_file(place))
    except FileNotFoundError as error:
        msg = f"there is no table {name!r}; give a file that ends in {', '.join(ENDINGS)}"
        raise TableError(msg) from error
    except (OSError, ValueError, ImportError) as error:
        msg = f"table {name!r} can't be read: {str(error).partition(chr(10))[0] or error!r}"
        raise TableError(msg) from error
    return content


def parse_table(content: bytes, *, name: str, any_ending: bool = False) -> UserTable:
    """Return the table in the bytes of a file.

    Args:
        content: the bytes.
        name: name of the file; its ending determines the format.
        any_ending: whether the format is seen in the bytes alone, whatever the name.

    Raises:
        TableError: another ending, or bytes that can't be read.
    """
    grid = _grid(content, name, _format(content, name, any_ending=any_ending))
    return UserTable.of(grid, name=name, sha256=hashlib.sha256(content).hexdigest())


def is_table(name: str) -> bool:
    """Whether a file's ending is that of a table.

    >>> is_table("a.CSV"), is_table("a.svs")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in ENDINGS


def _format(content: bytes, name: str, *, any_ending: bool) -> str:
    ending = PurePosixPath(name).suffix.lower()
    detected = {_WORKBOOK: ".xlsx", _PARQUET: ".parquet"}.get(content[:4])
    if any_ending:
        return detected or ".csv"
    if ending not in ENDINGS:
        msg = f"table {name!r} ends in {ending!r}; allowed are {', '.join(ENDINGS)}"
        raise TableError(msg)
    if detected not in (None, ending):
        msg = f"table {name!r} ends in {ending!r} but its bytes are those of {detected}; rename it"
        raise TableError(msg)
    return ending


def _grid(content: bytes, name: str, ending: str) -> CellGrid:
    if ending == ".xlsx":
        return read_workbook(content, name)
    if ending == ".parquet":
        return read_columnar(content, name)
    return read_delimited(content, name)
