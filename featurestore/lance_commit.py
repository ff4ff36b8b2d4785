"""The one committer: makes finished files visible, each slide and each teacher exactly once.

Order of a commit: features tables, then `slides`, then the catalog, whose newest version names the
versions of all others (the lake's version is the catalog's). Each features commit carries in its
own transaction the catalog rows that follow from it, so a kill between the two loses nothing:
the next committer appends what is missing (`recover`).
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import lance
import polars as pl
import pyarrow as pa
from lance import LanceOperation

from featurestore.config import LakeConfig
from featurestore.cuts import (
    Row,
    SlideCut,
    check_cut,
    fragment_groups,
    teacher_rows,
    tiles_row,
)
from featurestore.errors import DamageError, IdentityError
from featurestore.lance_columns import ColumnFile
from featurestore.lance_tables import (
    commit,
    open_table,
    properties_of,
    write_fragment,
)
from featurestore.lock import commit_lock
from featurestore.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    FAILED,
    PENDING,
    READY,
    SLIDES,
    SLIDES_SCHEMA,
    features_table,
    identity_of,
    teacher_field,
    tiles_schema,
)
from featurestore.storage import Store

VERSIONS_KEY = "slidelake:versions"
ROWS_KEY = "slidelake:catalog"


def root_versions(catalog: lance.LanceDataset) -> dict[str, int]:
    """The versions of the other tables that a catalog version names.

    Raises:
        DamageError: no kept transaction of the catalog names them.
    """
    for version in range(catalog.version, 0, -1):
        text = properties_of(catalog, version).get(VERSIONS_KEY)
        if text is not None:
            versions: dict[str, int] = json.loads(text)
            return versions
    msg = f"{catalog.uri} names no versions of the lake's other tables"
    raise DamageError(msg)


class Committer:
    """Changes the tables of one lake. Every public method takes the lake's lock by itself.

    Args:
        store: the lake's files.
        config: the lake's settings.
    """

    def __init__(self, store: Store, config: LakeConfig) -> None:
        self.store, self.config = store, config

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with commit_lock(self.store):
            self._recover()
            yield

    def recover(self) -> None:
        """Finish what a killed committer left between its tables."""
        with self._exclusive():
            pass

    # ------------------------------------------------------------------ slides

    def register(self, rows: Sequence[Row]) -> list[Row]:
        """Give every slide a number and a row; known slides keep theirs.

        Args:
            rows: one per slide, with slide_id, uri, fingerprint and what else is known.

        Returns:
            The rows in the order given, with `slide` and the `state` that the lake knows.
        """
        with self._exclusive():
            table = open_table(self.store, SLIDES).to_table(
                columns=["slide", "slide_id", "state", "fingerprint", "reason"]
            )
            known = {row["slide_id"]: row for row in table.to_pylist()}
            free = 1 + max((row["slide"] for row in known.values()), default=-1)
            new = []
            for row in rows:
                if row["slide_id"] not in known:
                    known[row["slide_id"]] = {**row, "slide": free, "state": PENDING}
                    new.append(known[row["slide_id"]])
                    free += 1
            if new:
                self._put_slides(new)
                self._append_catalog([])
            return [
                {
                    **row,
                    **{k: known[row["slide_id"]].get(k) for k in ("slide", "state", "reason")},
                    "known_fingerprint": known[row["slide_id"]].get("fingerprint"),
                }
                for row in rows
            ]

    def fail(self, rows: Sequence[Row]) -> None:
        """Write down slides that could not be cut, with their `reason`."""
        with self._exclusive():
            self._put_slides([{**row, "state": FAILED} for row in rows])
            self._append_catalog([])

    def commit_slides(self, cuts: Sequence[SlideCut]) -> None:
        """Make cut slides part of the lake; what is there already is left as it is.

        Raises:
            DamageError: a shard is not where the worker said, or rows are not as they must be.
        """
        with self._exclusive():
            new_rows: list[Row] = []
            for mpp in self.config.mpps:
                there = self._slides_at(mpp)
                todo = [c for c in cuts if mpp in c.grids and c.row["slide"] not in there]
                for group in fragment_groups(todo, mpp):
                    new_rows += self._append_tiles(mpp, group)
            self._put_slides([{**cut.row, "state": READY, "reason": None} for cut in cuts])
            self._append_catalog(new_rows)

    def _append_tiles(self, mpp: float, cuts: Sequence[SlideCut]) -> list[Row]:
        rows, start = [], 0
        for cut in cuts:
            grid = cut.grids[mpp]
            check_cut(self.store, cut.row, grid)
            rows.append(tiles_row(cut.row, mpp, grid, start))
            start += grid.tiles.num_rows
        rel = features_table(mpp)
        schema = tiles_schema(mpp, self.config.tile_px)
        table = pa.concat_tables(
            [cut.grids[mpp].tiles.cast(pa.schema(list(schema))) for cut in cuts]
        )
        if not table.num_rows:
            return [{**row, "fragment": -1} for row in rows]
        head = open_table(self.store, rel)
        fragments = write_fragment(self.store, rel, table.replace_schema_metadata(None))
        file = fragments[0].files[0].path
        properties = {ROWS_KEY: json.dumps([{**row, "file": str(file)} for row in rows])}
        done = commit(
            self.store,
            rel,
            LanceOperation.Append(fragments),
            read_version=head.version,
            properties=properties,
        )
        return _with_fragments(done, json.loads(properties[ROWS_KEY]))

    def _slides_at(self, mpp: float) -> set[int]:
        rows = open_table(self.store, CATALOG).to_table(
            columns=["slide"], filter=f"teacher IS NULL AND mpp = {mpp}"
        )
        return set(rows["slide"].to_pylist())

    def _put_slides(self, rows: Sequence[Row]) -> None:
        names = SLIDES_SCHEMA.names
        table = pa.Table.from_pylist(
            [{name: row.get(name) for name in names} for row in rows], schema=SLIDES_SCHEMA
        )
        slides = open_table(self.store, SLIDES)
        merge = slides.merge_insert("slide")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(table)

    # ------------------------------------------------------------------ teachers

    def add_teacher(self, mpp: float, name: str, dim: int, identity: dict[str, Any]) -> pa.Field:
        """Make sure that a teacher's column is there, empty at first, and is the same teacher.

        Raises:
            IdentityError: the name is taken by a teacher with another identity.
        """
        wanted = teacher_field(name, dim, identity)
        with self._exclusive():
            table = open_table(self.store, features_table(mpp))
            if name not in table.schema.names:
                table.add_columns([wanted])
                return wanted
            there = table.schema.field(name)
        if there.type != wanted.type or identity_of(there) != identity_of(wanted):
            changed = sorted(
                key
                for key in {*identity_of(there), *identity}
                if identity_of(there).get(key) != identity.get(key)
            )
            msg = (
                f"teacher '{name}' is in the lake at mpp {mpp} with another identity (differs in: "
                f"{', '.join(changed) or 'dimension'}); give the new one another name"
            )
            raise IdentityError(msg)
        return there

    def commit_columns(self, mpp: float, files: Sequence[ColumnFile]) -> None:
        """Make finished columns of fragments visible; those already there are left as they are.

        Raises:
            DamageError: a file is gone or its rows are not those of its fragment.
        """
        with self._exclusive():
            rows: list[Row] = []
            # Lance takes one field in a DataReplacement, so each teacher is a commit of its own.
            for teacher in dict.fromkeys(file.teacher for file in files):
                rows += self._replace(mpp, [file for file in files if file.teacher == teacher])
            self._append_catalog(rows)

    def _replace(self, mpp: float, files: Sequence[ColumnFile]) -> list[Row]:
        rel = features_table(mpp)
        table = open_table(self.store, rel)
        ids = field_ids(table)
        fragments = {f.fragment_id: f for f in table.get_fragments()}
        groups: list[object] = []
        rows: list[Row] = []
        for file in files:
            fragment = fragments.get(file.fragment)
            if fragment is not None and not has_field(fragment, ids[file.teacher]):
                groups.append(_replacement(table, fragment, file))
                rows += teacher_rows(self._tiles_rows(mpp, file.fragment), file)
        if groups:
            commit(
                self.store,
                rel,
                LanceOperation.DataReplacement(groups),
                read_version=table.version,
                properties={ROWS_KEY: json.dumps(rows)},
            )
        return rows

    def _tiles_rows(self, mpp: float, fragment: int) -> list[Row]:
        table = open_table(self.store, CATALOG).to_table(
            filter=f"teacher IS NULL AND mpp = {mpp} AND fragment = {fragment}"
        )
        rows: list[Row] = table.to_pylist()
        return rows

    # ------------------------------------------------------------------ the catalog

    def _recover(self) -> None:
        versions = root_versions(open_table(self.store, CATALOG))
        rows: list[Row] = []
        for mpp in self.config.mpps:
            rel = features_table(mpp)
            table = open_table(self.store, rel)
            for version in range(versions[rel] + 1, table.version + 1):
                text = properties_of(table, version).get(ROWS_KEY)
                rows += _with_fragments(table, json.loads(text)) if text else []
        if rows:
            self._append_catalog(rows)

    def _append_catalog(self, rows: Sequence[Row]) -> None:
        catalog = open_table(self.store, CATALOG)
        fresh = _not_there(catalog, rows)
        fragments = []
        if fresh:
            table = pa.Table.from_pylist(
                [{name: row.get(name) for name in CATALOG_SCHEMA.names} for row in fresh],
                schema=CATALOG_SCHEMA,
            )
            fragments = write_fragment(self.store, CATALOG, table)
        commit(
            self.store,
            CATALOG,
            LanceOperation.Append(fragments),
            read_version=catalog.version,
            properties=versions_property(self.store, self.config),
        )


def versions_property(store: Store, config: LakeConfig) -> dict[str, str]:
    """The property of a catalog commit that names the newest versions of all other tables."""
    tables = [SLIDES, *(features_table(mpp) for mpp in config.mpps)]
    return {VERSIONS_KEY: json.dumps({rel: open_table(store, rel).version for rel in tables})}


def field_ids(table: lance.LanceDataset) -> dict[str, int]:
    """Lance's field id of each top-level column."""
    return {found.name(): found.id() for found in table.lance_schema.fields()}


def has_field(fragment: lance.LanceFragment, field_id: int) -> bool:
    """Whether any file of a fragment holds the field; a null column has no file."""
    return any(field_id in file.fields for file in fragment.metadata.files)


def _with_fragments(table: lance.LanceDataset, rows: Sequence[Row]) -> list[Row]:
    """Rows of an append name their data file; the fragment's id is known once it is committed."""
    ids = {str(f.metadata.files[0].path): f.fragment_id for f in table.get_fragments()}
    return [
        {**row, "fragment": ids[row["file"]]} if "file" in row else row
        for row in rows
        if row.get("file") is None or row["file"] in ids
    ]


def _replacement(
    table: lance.LanceDataset, fragment: lance.LanceFragment, file: ColumnFile
) -> object:
    if file.rows != fragment.physical_rows:
        msg = (
            f"{file.teacher}: {file.rows} rows were made for fragment {file.fragment}, which has "
            f"{fragment.physical_rows}"
        )
        raise DamageError(msg)
    try:
        data_file = lance.fragment.DataFile.create(table, file.path)
    except (OSError, ValueError) as error:
        msg = f"{file.teacher}: {file.path} of fragment {file.fragment} can't be read: {error}"
        raise DamageError(msg) from error
    return LanceOperation.DataReplacementGroup(file.fragment, data_file)


def _not_there(catalog: lance.LanceDataset, rows: Sequence[Row]) -> list[Row]:
    if not rows:
        return []
    slides = ", ".join(str(number) for number in sorted({row["slide"] for row in rows}))
    table = catalog.to_table(columns=["slide", "mpp", "teacher"], filter=f"slide IN ({slides})")
    there = set(pl.DataFrame(table).iter_rows())
    return [row for row in rows if (row["slide"], row["mpp"], row["teacher"]) not in there]
