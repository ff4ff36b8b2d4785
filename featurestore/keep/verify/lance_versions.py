"""The undamaged versions of a lake, to restore if a table of the newest version is damaged.

Whole means that the catalog, `slides` and all features tables open at the versions that belong
together, that every row of the first two is what was written, and that every data file has its
size. Checksums of features are `verify`'s business: `verify --at VERSION`.
"""

import functools
import json
import re
from collections.abc import Iterator

import lance

from featurestore.commits.lance_ledger import VERSIONS_KEY
from featurestore.config import LakeConfig
from featurestore.errors import LakeError
from featurestore.keep.verify.checked_reads import NO_DAMAGE, UnreadableError, read
from featurestore.keep.verify.damage import TABLE, TABLE_INDEX, Damage
from featurestore.keep.verify.lance_checked_rows import checked_catalog, checked_slides
from featurestore.keep.verify.mismatched_rows import misfits
from featurestore.keep.verify.root_files import file_damage
from featurestore.roots.lance_roots import LAST_VERSION, lake_tables, table_files
from featurestore.roots.roots_file import Roots, damaged_files, readable_roots
from featurestore.storage.store import Store
from featurestore.tables.lance_tables import open_table, properties_of
from featurestore.tables.schema import CATALOG, SLIDES

MANIFEST = re.compile(r"(\d+)\.manifest")
# So many whole versions are named; each one that is looked at reads `slides` and `catalog`.
NAMED = 3
LOOKED_AT = 30


def versions_of(store: Store, rel: str) -> list[int]:
    """Return the versions of a table that have a manifest, oldest first; none is opened."""
    numbers = [
        int(match[1])
        for name in store.names(f"{rel}/_versions")
        if (match := MANIFEST.fullmatch(name))
    ]
    half = LAST_VERSION // 2
    return sorted(LAST_VERSION - number if number > half else number for number in numbers)


def tables_at(store: Store, config: LakeConfig, version: int) -> dict[str, int] | None:
    """Return the version of each table at a version of the lake; None if the catalog names none.

    Raises:
        UnreadableError: the catalog can't be opened at this version.
        LakeError: the lake has no such version.
    """
    catalog = read(store, lambda: open_table(store, CATALOG, version))
    text = read(store, lambda: properties_of(catalog, version)).get(VERSIONS_KEY)
    return None if text is None else {**json.loads(text), CATALOG: version}


def whole_versions(store: Store, config: LakeConfig) -> list[int]:
    """Return the newest versions of a lake that are whole, newest first, three at most."""
    whole: list[int] = []
    for version in versions_of(store, CATALOG)[: -LOOKED_AT - 1 : -1]:
        try:
            if tables_at(store, config, version) is None:
                continue
        except (UnreadableError, LakeError) as error:
            if isinstance(error, NO_DAMAGE):
                raise
            continue
        if not any(True for _ in version_damage(store, config, version)):
            whole.append(version)
        if len(whole) == NAMED:
            break
    return whole


def version_damage(store: Store, config: LakeConfig, version: int) -> Iterator[Damage]:
    """Yield what is wrong with the tables of a version of a lake; nothing if it is whole."""
    roots = readable_roots(store) or Roots(tables={})
    try:
        tables = tables_at(store, config, version) or {}
        for rel in lake_tables(config):
            if tables[rel] in roots.lost.get(rel, []):
                why = f"version {tables[rel]} of {rel} was lost"
                raise UnreadableError(why)
            table = read(store, functools.partial(open_table, store, rel, tables[rel]))
            yield from _file_damage(store, rel, table, roots)
    except (UnreadableError, LakeError) as error:
        if isinstance(error, NO_DAMAGE):
            raise
        yield Damage(
            description=f"version {version} can't be opened: {error}", part=TABLE, path=CATALOG
        )
        return
    damage: list[Damage] = []
    slides = checked_slides(store, tables[SLIDES], damage)
    catalog = checked_catalog(store, version, damage)
    yield from damage
    if slides is not None and catalog is not None:
        yield from misfits(slides, catalog)


def _file_damage(
    store: Store, rel: str, table: lance.LanceDataset, roots: Roots
) -> Iterator[Damage]:
    """Yield the files that are not what was written, or not of the size that the manifest names."""
    for path, text in damaged_files(store, roots, read_paths(store, rel, table)).items():
        if (damage := file_damage(path, text)).part != TABLE_INDEX:
            yield damage
    for fragment in read(store, table.get_fragments):
        for file in fragment.metadata.files:
            path = f"{rel}/data/{file.path}"
            try:
                size = store.size(path)
            except FileNotFoundError:
                size = -1
            if size != (file.file_size_bytes or size) or size < 0:
                fault = f"table {rel}: {path} is gone" if size < 0 else f"{path} has {size} bytes"
                yield Damage(description=fault, part=TABLE, path=rel)


def read_paths(store: Store, rel: str, table: lance.LanceDataset) -> list[str]:
    """Return the paths of the files by which a version of a table is read."""
    return read(store, lambda: list(table_files(store, rel, table)))
