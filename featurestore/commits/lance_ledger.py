"""The catalog: the contents of a lake, their places, and the versions of the tables.

The lake's version is the catalog's. Each of its commits names, in its transaction, the versions of
all other tables. Each commit to a features table carries, in its own transaction, the change of the
catalog that follows from it, so a kill between the two loses nothing: the next committer makes it.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import lance
import polars as pl
import pyarrow as pa
from lance import LanceOperation

from featurestore.commits.cuts import Row
from featurestore.config import LakeConfig
from featurestore.errors import DamageError
from featurestore.roots.lance_roots import check_versions, lake_tables, record_roots
from featurestore.roots.roots_file import Roots, readable_roots
from featurestore.storage.store import Store
from featurestore.tables.checksums import with_row_crc32
from featurestore.tables.lance_tables import (
    add_missing_columns,
    commit,
    keep_indexed,
    open_table,
    properties_of,
    table_versions,
    without_rows,
    write_fragment,
)
from featurestore.tables.schema import CATALOG, CATALOG_SCHEMA, SLIDES, features_table

VERSIONS_KEY = "slidelake:versions"
CHANGE_KEY = "slidelake:change"
# A look-up by slide costs 1-2 ms at any size as long as few fragments wait for the index.
CATALOG_FRAGMENTS, CATALOG_ROWS = 64, 1 << 20
# Slides carry pictures (about 30 kB a row): fragments of 120 MB are left as they are.
SLIDES_FRAGMENTS, SLIDES_ROWS = 64, 1 << 12


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of the catalog that follows from a commit: rows to drop, then rows to add.

    Attributes:
        add: catalog rows to add; rows of a new fragment lack its id at first.
        drop: Lance filter of the catalog rows to delete.
        file: first data file of the new fragment that holds the rows `add`.
    """

    add: Sequence[Row] = ()
    drop: str | None = None
    file: str | None = None

    def properties(self) -> dict[str, str]:
        """Return the change as properties of a transaction."""
        fields = {"add": list(self.add), "drop": self.drop, "file": self.file}
        return {CHANGE_KEY: json.dumps(fields)}

    @classmethod
    def of(cls, table: lance.LanceDataset, version: int) -> Self | None:
        """Return the change that a version's commit carries, with fragment ids, or None."""
        text = properties_of(table, version).get(CHANGE_KEY)
        return None if text is None else cls(**json.loads(text)).placed(table)

    def placed(self, table: lance.LanceDataset) -> Self:
        """Return the change with the id of the new fragment, which a committed table has."""
        if self.file is None:
            return self
        fragment = fragment_of(table, self.file)
        rows = [] if fragment is None else [{**row, "fragment": fragment} for row in self.add]
        return type(self)(add=rows, drop=self.drop, file=self.file)


def fragment_of(table: lance.LanceDataset, file: str) -> int | None:
    """Return the id of the newest fragment with this first data file, or None."""
    for fragment_id in sorted(table.fragment_ids(), reverse=True):
        fragment = table.get_fragment(fragment_id)
        if fragment and str(fragment.metadata.files[0].path) == file:
            return int(fragment_id)
    return None


def root_versions(catalog: lance.LanceDataset, version: int | None = None) -> dict[str, int]:
    """Return the versions of the other tables that a catalog version names.

    Args:
        catalog: the catalog, open at any version.
        version: the version that names them; None for the open one.

    Raises:
        DamageError: no kept transaction of the catalog names them.
    """
    # Work on an index makes versions that name nothing: they are the same lake as the one before.
    for number in range(version or catalog.version, 0, -1):
        text = properties_of(catalog, number).get(VERSIONS_KEY)
        if text is not None:
            versions: dict[str, int] = json.loads(text)
            return versions
    msg = f"{catalog.uri} names no versions of the lake's other tables"
    raise DamageError(msg)


def lake_versions(catalog: lance.LanceDataset, *, newest: int | None = None) -> list[int]:
    """Return a lake's versions: catalog versions that name versions of the other tables.

    Args:
        catalog: the catalog.
        newest: so many of them, the newest ones; None for all. Each one costs a read.
    """
    versions: list[int] = []
    for version in reversed(table_versions(catalog)):
        if newest is not None and len(versions) >= newest:
            break
        if is_lake_version(catalog, version):
            versions.append(version)
    return versions[::-1]


def is_lake_version(catalog: lance.LanceDataset, version: int) -> bool:
    """Whether an existing version of the catalog names versions of the other tables."""
    return VERSIONS_KEY in properties_of(catalog, version)


def versions_property(store: Store, config: LakeConfig) -> dict[str, str]:
    """Return the property of a catalog commit that names the newest versions of other tables."""
    tables = [SLIDES, *(features_table(mpp) for mpp in config.mpps)]
    return {VERSIONS_KEY: json.dumps({rel: open_table(store, rel).version for rel in tables})}


class Ledger:
    """The newest catalog of a lake, to read and change; the caller holds the lake's lock.

    Args:
        store: the lake's files.
        config: the lake's settings.
    """

    def __init__(self, store: Store, config: LakeConfig) -> None:
        self.store, self.config = store, config
        self._roots: Roots | None = None
        self._read: dict[int, list[Row]] = {}

    def forget(self) -> None:
        """Forget what was read under an earlier lock."""
        self._roots, self._read = None, {}

    def read_ahead(self, slides: Iterable[int]) -> None:
        """Read all rows of some slides by one look-up; they answer until the next commit.

        Each look-up reads pages of the index and all fragments that are not in it yet.
        """
        numbers = set(slides) - self._read.keys()
        if numbers:
            read: dict[int, list[Row]] = {number: [] for number in numbers}
            for row in self.rows(among(sorted(numbers))):
                read[row["slide"]].append(row)
            self._read |= read

    def tiles_rows(self, mpp: float, slides: Sequence[int]) -> list[Row]:
        """Return the rows of the tiles of these slide numbers at one mpp, by row number."""
        return self._rows_of(mpp, None, slides)

    def teacher_rows(self, mpp: float, teacher: str, slides: Sequence[int]) -> list[Row]:
        """Return the catalog rows of a teacher on these slide numbers at one mpp."""
        return self._rows_of(mpp, teacher, slides)

    def _rows_of(self, mpp: float, teacher: str | None, slides: Sequence[int]) -> list[Row]:
        if not slides:
            return []
        if self._read.keys() >= set(slides):
            rows = [row for slide in set(slides) for row in self._read[slide]]
            return _in_order(r for r in rows if r["mpp"] == mpp and r["teacher"] == teacher)
        kind = f"teacher = '{teacher}'" if teacher else "teacher IS NULL"
        return self.rows(f"{kind} AND mpp = {mpp} AND {among(slides)}")

    def slides_in(self, mpp: float, teacher: str | None, fragment: int) -> set[int]:
        """Return the slides with a teacher's features, or with tiles (None), in a fragment."""
        return self.slides_by_fragment(mpp, teacher, [fragment])[fragment]

    def slides_by_fragment(
        self, mpp: float, teacher: str | None, fragments: Collection[int]
    ) -> dict[int, set[int]]:
        """Return the slides with a teacher's features, or with tiles (None), by fragment.

        The whole column of fragments is read, however many are given.
        """
        kind = f"teacher = '{teacher}'" if teacher else "teacher IS NULL"
        numbers = ", ".join(str(fragment) for fragment in sorted(set(fragments)))
        slides: dict[int, set[int]] = {fragment: set() for fragment in fragments}
        where = f"mpp = {mpp} AND {kind} AND fragment IN ({numbers})"
        for row in self.rows(where) if slides else ():
            slides[row["fragment"]].add(row["slide"])
        return slides

    def rows_in(self, mpp: float, fragment: int) -> list[Row]:
        """Return the rows of the tiles and all teachers in a fragment."""
        return self.rows(f"mpp = {mpp} AND fragment = {fragment}")

    def rows(self, where: str) -> list[Row]:
        """Return the catalog rows that pass a Lance filter, in the order of their fragments."""
        table = open_table(self.store, CATALOG).to_table(filter=where)
        return _in_order(table.to_pylist())

    def check_newest(self) -> None:
        """Refuse to build on less than was committed, or on damaged indexes.

        Raises:
            DamageError: a table opens at an older version than the last commit, or the catalog,
                names (its newest manifest is lost), or an index of `slides` or `catalog` is
                damaged: a slide that is present would look like a new slide.
        """
        roots = self._roots = readable_roots(self.store)
        catalog = open_table(self.store, CATALOG)
        newest = {rel: open_table(self.store, rel) for rel in lake_tables(self.config)}
        check_versions(self.store, newest, root_versions(catalog), roots)
        if roots is not None and roots.tables[CATALOG] < catalog.version:
            self._record_roots()  # a kill came between the catalog and this file

    def strays(self, change: Change) -> bool:
        """Whether rows to add are there already, in another fragment: a committer came too late."""
        if change.file is None or change.drop or not change.add:
            return False
        catalog_keys = _keys(open_table(self.store, CATALOG), change.add)
        return any(_key(row) in catalog_keys for row in change.add)

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, in one commit that names the newest versions of all other tables."""
        self._merge_fragments()
        catalog = open_table(self.store, CATALOG)
        drops = [f"({change.drop})" for change in changes if change.drop]
        removed, updated = without_rows(catalog, " OR ".join(drops)) if drops else ([], [])
        fresh = self._missing_rows(catalog, changes)
        new = write_fragment(self.store, CATALOG, fresh) if fresh.num_rows else []
        operation: Any = LanceOperation.Append(new)
        if removed or updated:
            operation = LanceOperation.Update(
                removed_fragment_ids=removed,
                updated_fragments=updated,
                new_fragments=new,
                fields_modified=[],
            )
        properties = versions_property(self.store, self.config)
        self._read = {}
        commit(self.store, CATALOG, operation, read_version=catalog.version, properties=properties)
        self._record_roots()

    def _record_roots(self) -> None:
        self._roots = record_roots(self.store, self.config, last=self._roots)

    def _missing_rows(self, catalog: lance.LanceDataset, changes: Sequence[Change]) -> pa.Table:
        fresh: list[Row] = []
        for change in changes:
            catalog_keys = set() if change.drop else self._keys_of(catalog, change.add)
            fresh += [row for row in change.add if _key(row) not in catalog_keys]
        table = pa.Table.from_pylist(
            [{name: row.get(name) for name in CATALOG_SCHEMA.names} for row in fresh],
            schema=CATALOG_SCHEMA,
        )
        return with_row_crc32(table)

    def _keys_of(
        self, catalog: lance.LanceDataset, rows: Sequence[Row]
    ) -> set[tuple[int, float, str | None]]:
        """Return the keys in the catalog of the slides of some rows."""
        slides = {row["slide"] for row in rows}
        if self._read.keys() >= slides:
            return {_key(row) for slide in slides for row in self._read[slide]}
        return _keys(catalog, rows)

    def _merge_fragments(self) -> None:
        """Add missing columns, merge small fragments and index them once many have gathered.

        No row changes.
        """
        add_missing_columns(self.store, CATALOG, CATALOG_SCHEMA)
        keep_indexed(self.store, CATALOG, fragments=CATALOG_FRAGMENTS, rows=CATALOG_ROWS)
        keep_indexed(self.store, SLIDES, fragments=SLIDES_FRAGMENTS, rows=SLIDES_ROWS)


def among(slides: Sequence[int]) -> str:
    """Return a Lance filter of rows of these slide numbers; answered by the index on `slide`."""
    return f"slide IN ({', '.join(str(slide) for slide in sorted(set(slides)))})"


def among_names(slide_ids: Iterable[str]) -> str:
    """Return a Lance filter of rows of slides by name; answered by the index on `slide_id`.

    >>> among_names(["a", "it's"])
    "slide_id IN ('a', 'it''s')"
    """
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in slide_ids)
    return f"slide_id IN ({quoted})"


def _in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order of their fragments and of their tiles in them."""
    return sorted(rows, key=lambda row: (row["fragment"], row["row_start"]))


def _key(row: Row) -> tuple[int, float, str | None]:
    return row["slide"], row["mpp"], row["teacher"]


def _keys(catalog: lance.LanceDataset, rows: Sequence[Row]) -> set[tuple[int, float, str | None]]:
    if not rows:
        return set()
    lance_filter = among([row["slide"] for row in rows])
    table = catalog.to_table(columns=["slide", "mpp", "teacher"], filter=lance_filter)
    return set(pl.DataFrame(table).iter_rows())
