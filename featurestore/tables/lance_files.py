"""Single columns of fragments as files: read in physical order, written, and committed."""

import uuid
from collections.abc import Iterable, Mapping

import lance
import pyarrow as pa
from lance import LanceOperation
from lance.file import LanceFileReader, LanceFileWriter

from featurestore.errors import DamageError
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import STORAGE_VERSION, commit, open_table, shown_uri
from featurestore.tables.schema import TILE_COLUMNS


def physical_column(
    store: Store, rel: str, table: lance.LanceDataset, fragment: int, column: str
) -> pa.ChunkedArray:
    """Return a column of a fragment in the order of its file, deleted rows included.

    Raises:
        DamageError: the column's file is gone or can't be read.
    """
    field_id = next(field.id() for field in table.lance_schema.fields() if field.name() == column)
    table_fragment = table.get_fragment(fragment)
    files = [
        file
        for file in (table_fragment.metadata.files if table_fragment else ())
        if field_id in file.fields
    ]
    if not files:
        msg = f"{rel}, fragment {fragment}: no data file holds the column '{column}'"
        raise DamageError(msg)
    try:
        reader = LanceFileReader(
            f"{store.url(rel)}/data/{files[0].path}",
            storage_options=store.lance_options,
            columns=[column],
        )
        return reader.read_all().to_table()[column]
    except (OSError, ValueError, RuntimeError) as error:
        if explanation := store.explained(error):
            raise explanation from error
        msg = f"{rel}, fragment {fragment}: {str(error).partition(chr(10))[0]}"
        raise DamageError(msg) from error


def write_column(store: Store, rel: str, field: pa.Field, parts: Iterable[pa.Array]) -> str:
    """Write one column of one fragment as a file that no version names yet; return its name.

    Args:
        store: the lake's files.
        rel: path of the table.
        field: the column.
        parts: arrays of the column in row order, deleted rows included.
    """
    path = f"{uuid.uuid4()}.lance"
    schema = pa.schema([field])
    writer = LanceFileWriter(
        f"{store.url(rel)}/data/{path}",
        schema,
        version=STORAGE_VERSION,
        storage_options=store.lance_options,
    )
    for array in parts:
        writer.write_batch(pa.record_batch([array], schema=schema))
    writer.close()
    return path


def accept_nulls(store: Store, rel: str) -> None:
    """Make users' columns of a features table nullable, as new tiles have no values there."""
    table = open_table(store, rel)
    strict = [f.name for f in table.schema if f.name not in TILE_COLUMNS and not f.nullable]
    if strict:
        table.alter_columns(*({"path": name, "nullable": True} for name in strict))


def put_files(
    store: Store, rel: str, files: Mapping[int, str], properties: Mapping[str, str] | None = None
) -> None:
    """Replace one column of fragments by files, in one commit.

    Args:
        store: the lake's files.
        rel: path of the table.
        files: names of the files by fragment.
        properties: properties of the commit's transaction.

    Raises:
        DamageError: a file can't be read.
    """
    table = open_table(store, rel)
    groups = [replacement(store, table, fragment, path) for fragment, path in files.items()]
    if groups:
        operation = LanceOperation.DataReplacement(groups)
        version = table.version
        commit(store, rel, operation, read_version=version, properties=dict(properties or {}))


def replacement(store: Store, table: lance.LanceDataset, fragment: int, path: str) -> object:
    """Return the part of a DataReplacement that puts a file in its place in a fragment.

    Raises:
        DamageError: the file can't be read.
    """
    try:
        file = lance.fragment.DataFile.create(table, path)
    except (OSError, ValueError) as error:
        if explanation := store.explained(error):
            raise explanation from error
        msg = f"{shown_uri(table)}: {path} of fragment {fragment} can't be read: {error}"
        raise DamageError(msg) from error
    return LanceOperation.DataReplacementGroup(fragment, file)
