"""The calls to Lance that create, open and change tables; versions and row ids are pinned."""

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar
from urllib.parse import unquote

import lance
import pyarrow as pa
from lance.dataset import Transaction
from lance.fragment import write_fragments

from featurestore.errors import DamageError, LakeError
from featurestore.storage.read_errors import reason_of
from featurestore.storage.store import Store
from featurestore.storage.user_files import bucket_errors_explained
from featurestore.tables.lance_held import held_by, kept_properties

STORAGE_VERSION = "2.2"
MAX_ROWS = 1 << 30  # a fragment's size is ours to choose: never split behind our back
LISTINGS = 4
# Lance repeats a request that fails, but no listing whose answer breaks off.
BROKEN_LISTING = "Error getting list response body"

T = TypeVar("T")


def repeated_listing(read: Callable[[], T]) -> T:
    """Return what a read returns that lists files of a table; repeat it if a listing breaks off."""
    for _ in range(LISTINGS - 1):
        try:
            return read()
        except OSError as error:
            if BROKEN_LISTING not in str(error):
                raise
    return read()


def create_table(store: Store, rel: str, schema: pa.Schema, properties: dict[str, str]) -> None:
    """Create an empty table where there is none."""
    held = held_by(store)
    table = lance.write_dataset(
        schema.empty_table(),
        store.url(rel),
        data_storage_version=STORAGE_VERSION,
        enable_stable_row_ids=True,
        transaction_properties=properties,
        storage_options=store.lance_options,
        session=held.session if held else None,
    )
    if held is not None:
        held.newest[rel] = table


def open_table(
    store: Store, rel: str, version: int | None = None, *, session: lance.Session | None = None
) -> lance.LanceDataset:
    """Open a table at a version, or its newest.

    The holder of the lake's commit lock opens the newest version once (`held_tables`).

    Args:
        store: the lake's files.
        rel: path of the table.
        version: the version; None for the newest.
        session: cache that this table shares with others.

    Raises:
        DamageError: the table is gone.
        LakeError: the table has no such version.
        BucketError: the bucket can't be read.
    """
    held = held_by(store)
    if held is None:
        return _opened(store, rel, version, session)
    newest = held.newest.get(rel)
    if newest is not None and version in {None, newest.version}:
        return newest
    table = _opened(store, rel, version, session or held.session)
    if version is None:
        held.newest[rel] = table
    return table


def _opened(
    store: Store, rel: str, version: int | None, session: lance.Session | None
) -> lance.LanceDataset:
    uri, options = store.url(rel), store.lance_options
    try:
        return repeated_listing(
            lambda: lance.dataset(uri, version=version, storage_options=options, session=session)
        )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if explanation := store.explained(error):
            raise explanation from error
        first = reason_of(error)
        if version is not None and store.exists(rel):
            msg = f"{store.shown(rel)} has no version {version}: {first}"
            raise LakeError(msg) from error
        msg = f"table {store.shown(rel)} can't be opened: {first}"
        raise DamageError(msg) from error


def add_missing_columns(store: Store, rel: str, schema: pa.Schema) -> None:
    """Add the missing nullable columns to a table of an earlier release; they hold nulls.

    No row changes. The new version has the same content as the version before.
    """
    table = open_table(store, rel)
    missing = [field for field in schema if field.name not in table.schema.names]
    if missing:
        table.add_columns(missing)


def make_index(store: Store, rel: str, column: str, *, replace: bool = False) -> None:
    """Index a column by a B-tree, so that a look-up by it costs the same at any size."""
    table = open_table(store, rel)
    table.create_scalar_index(column, "BTREE", name=f"{column}_idx", replace=replace)


def keep_indexed(store: Store, rel: str, *, fragments: int, rows: int) -> None:
    """Merge and index small fragments if more than `fragments` are outside the table's index.

    Fragments of `rows` rows or more are left as they are, so that the work on each row is bounded.
    """
    table = open_table(store, rel)
    parts = [part for index in table.describe_indices() for part in index.segments]
    indexed = {fragment for part in parts for fragment in part.fragment_ids}
    if len(set(table.fragment_ids()) - indexed) <= fragments:
        return
    table.optimize.compact_files(target_rows_per_fragment=rows)
    open_table(store, rel).optimize.optimize_indices()


def without_rows(
    table: lance.LanceDataset, where: str
) -> tuple[list[int], list[lance.FragmentMetadata]]:
    """Delete rows for an Update commit; return the fragments that it names.

    Returns:
        Ids of fragments that lose all rows, and the metadata of fragments that lose some rows.
    """
    removed, updated = [], []
    for fragment in table.get_fragments():
        if not fragment.count_rows(where):
            continue
        rest = fragment.delete(where)
        if rest is None:
            removed.append(int(fragment.fragment_id))
        else:
            updated.append(rest)
    return removed, updated


def write_fragment(
    store: Store, rel: str, table: pa.Table | pa.RecordBatchReader
) -> list[lance.FragmentMetadata]:
    """Write rows as a new fragment that no version names yet."""
    held = held_by(store)
    fragments: list[lance.FragmentMetadata] = write_fragments(
        table,
        # Lance opens a table that is given by its URI, for its schema.
        store.url(rel) if held is None else held.newest.get(rel, store.url(rel)),
        mode="append",
        max_rows_per_file=MAX_ROWS,
        data_storage_version=STORAGE_VERSION,
        enable_stable_row_ids=True,
        storage_options=store.lance_options,
    )
    return fragments


def commit(
    store: Store, rel: str, operation: object, *, read_version: int, properties: dict[str, str]
) -> lance.LanceDataset:
    """Commit an operation with properties that stay readable in its transaction."""
    transaction = Transaction(
        read_version=read_version, operation=operation, transaction_properties=properties
    )
    return commit_transaction(store, rel, transaction)


def commit_transaction(store: Store, rel: str, transaction: Transaction) -> lance.LanceDataset:
    """Commit a transaction that was prepared."""
    held = held_by(store)
    # Lance opens a table that is given by its URI once more.
    table = store.url(rel) if held is None else held.newest.get(rel, store.url(rel))
    new = lance.LanceDataset.commit(table, transaction, storage_options=store.lance_options)
    if held is not None:
        held.newest[rel] = new
    return new


def shown_uri(table: lance.LanceDataset) -> str:
    """Return the URI of a table for messages, as users write it: Lance has URLs percent-encoded."""
    uri = str(table.uri)
    return unquote(uri) if "://" in uri else uri


def table_versions(table: lance.LanceDataset) -> list[int]:
    """Return the versions of a table that are there, oldest first, by one listing.

    Lance's `versions` reads every manifest for its date.

    Raises:
        BucketError: the bucket can't be read.
    """
    with bucket_errors_explained(shown_uri(table)):
        return sorted(int(entry["version"]) for entry in repeated_listing(table.version_refs))


def version_times(table: lance.LanceDataset) -> dict[int, datetime]:
    """Return the local time at which each version of a table was written; reads every manifest.

    Raises:
        BucketError: the bucket can't be read.
    """
    with bucket_errors_explained(shown_uri(table)):
        return {
            int(entry["version"]): entry["timestamp"] for entry in repeated_listing(table.versions)
        }


def properties_of(table: lance.LanceDataset, version: int) -> dict[str, str]:
    """Return the properties of a version's transaction; empty if the transaction is gone."""
    kept, key = kept_properties(), (str(table.uri), version)
    if key not in kept:
        kept[key] = _read_properties(table, version)
    return kept[key]


def _read_properties(table: lance.LanceDataset, version: int) -> dict[str, str]:
    try:
        with bucket_errors_explained(shown_uri(table)):
            transaction = table.read_transaction(version)
    except TypeError:
        # pylance 14 can't show a compaction that rewrote an index; it is Lance's own, without any.
        return {}
    return dict(transaction.transaction_properties or {}) if transaction else {}
