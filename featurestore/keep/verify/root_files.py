"""The files by which tables are read: their damage, and checksums that are missing."""

from collections.abc import Iterator
from dataclasses import replace

from featurestore.config import LakeConfig
from featurestore.errors import DamageError
from featurestore.keep.verify.damage import ROOT, TABLE, TABLE_INDEX, Damage
from featurestore.roots.lance_roots import INDEXES, lake_tables, record_roots, table_files
from featurestore.roots.roots_file import (
    GONE,
    LAKE_FILE,
    ROOTS_FILE,
    damaged_files,
    file_crc32,
    read_roots,
    readable_roots,
    write_roots,
)
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import open_table


def roots_damage(store: Store) -> Iterator[Damage]:
    """Yield the damage of the files by which the newest version of a lake is read.

    Lance opens no file here: it may end the process on a damaged file.
    """
    try:
        roots = read_roots(store)
    except DamageError as error:
        yield Damage(description=str(error), part=ROOT, path=ROOTS_FILE)
        return
    if roots is None:
        return
    for path, text in roots.texts.items():
        if not store.exists(path):
            yield Damage(description=f"{path} {GONE}", part=ROOT, path=path)
        elif store.read_bytes(path) != text.encode():
            yield Damage(description=f"{path} is not what was written", part=ROOT, path=path)
    for path, text in damaged_files(store, roots, roots.files).items():
        yield file_damage(path, text)


def file_damage(path: str, text: str) -> Damage:
    """Name a file by which a table is read as damaged; an index is a part of its own."""
    rel = f"{path.partition('.lance/')[0]}.lance"
    if f"/{INDEXES}" in path:
        return Damage(description=f"index file {path} of {rel} {text}", part=TABLE_INDEX, path=rel)
    return Damage(description=f"table {rel}: {path} {text}", part=TABLE, path=rel)


def unchecked_files(store: Store, config: LakeConfig) -> int:
    """Count files by which tables are read that have no checksum."""
    roots = readable_roots(store)
    if roots is not None:
        return len(roots.unchecked) + (LAKE_FILE not in roots.texts)
    tables = ((rel, open_table(store, rel)) for rel in lake_tables(config))
    return 1 + sum(1 for rel, table in tables for _ in table_files(store, rel, table))


def add_checksums(store: Store, config: LakeConfig) -> int:
    """Record checksums of the tables' files as they are now; the caller verified them under lock.

    Returns:
        How many files got a checksum.
    """
    count = unchecked_files(store, config)
    if count:
        roots = record_roots(store, config)
        more = {path: list(file_crc32(store, path)) for path in roots.unchecked}
        texts = {**roots.texts, LAKE_FILE: store.read_bytes(LAKE_FILE).decode()}
        full = replace(roots, files={**roots.files, **more}, unchecked=[], texts=texts)
        write_roots(store, full)
    return count
