"""Commits to a features table. Each commit is one Lance transaction with its `Change`.

Nothing here touches the catalog; the committer, which holds the lake's lock, makes the change
there. `Update` combines new fragments, deletions and edited fragments in one commit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lance
import pyarrow as pa
from lance import LanceOperation

from featurestore.commits.cuts import Row, SlideCut, check_cuts, tiles_row
from featurestore.commits.lance_groups import Group
from featurestore.commits.lance_ledger import Change, Ledger, among
from featurestore.errors import DamageError
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import Store
from featurestore.tables.lance_columns import ColumnFile
from featurestore.tables.lance_files import accept_nulls, replacement
from featurestore.tables.lance_tables import commit, open_table, write_fragment
from featurestore.tables.schema import features_table, tiles_schema

# What Lance writes in place of a field that a shared data file holds but the table does not use.
NO_FIELD = -2


def append_tiles(
    ledger: Ledger, mpp: float, cuts: Sequence[SlideCut], old: Sequence[int], group: Group
) -> None:
    """Commit the tiles of slides as one new fragment; it replaces tiles of the slides `old`."""
    store, rel = ledger.store, features_table(mpp)
    rows, start = [], 0
    check_cuts(store, mpp, cuts)
    for cut in cuts:
        grid = cut.grids[mpp]
        rows.append({**tiles_row(cut.row, mpp, grid, start), "fragment": -1})
        start += grid.tiles.num_rows
    schema = pa.schema(list(tiles_schema(mpp, ledger.config.tile_px)))
    table = pa.concat_tables([cut.grids[mpp].tiles.cast(schema) for cut in cuts])
    accept_nulls(store, rel)
    new = write_fragment(store, rel, table) if table.num_rows else []
    change = Change(
        add=rows,
        drop=f"mpp = {mpp} AND {among(old)}" if old else None,
        file=str(new[0].files[0].path) if new else None,
    )
    gone, edited = _fragments_without(ledger, mpp, old)
    if new or gone or edited:
        _commit_update(store, rel, change, new=new, edited=edited, gone=gone, group=group)
    else:
        group.without_commit(change)


def _fragments_without(
    ledger: Ledger, mpp: float, slides: Sequence[int]
) -> tuple[list[int], list[lance.FragmentMetadata]]:
    """Return the fragments that hold only these slides, and the others without them."""
    table = open_table(ledger.store, features_table(mpp))
    ours = {row["fragment"] for row in ledger.tiles_rows(mpp, slides)} - {-1}
    gone: list[int] = []
    edited: list[lance.FragmentMetadata] = []
    for number in sorted(ours & set(table.fragment_ids())):
        # A fragment that goes as a whole is not read: its files may be what is damaged.
        if ledger.slides_in(mpp, None, number) <= set(slides):
            gone.append(number)
        else:
            edited.append(table.get_fragment(number).delete(among(slides)))
    return gone, edited


def _commit_update(
    store: Store,
    rel: str,
    change: Change,
    *,
    new: Sequence[lance.FragmentMetadata] = (),
    edited: Sequence[lance.FragmentMetadata] = (),
    gone: Sequence[int] = (),
    fields: Sequence[int] = (),
    group: Group | None = None,
) -> Change:
    table = open_table(store, rel)
    operation: Any = LanceOperation.Append(list(new))
    if edited or gone:
        operation = LanceOperation.Update(
            removed_fragment_ids=list(gone),
            updated_fragments=list(edited),
            new_fragments=list(new),
            fields_modified=list(fields),
        )
    properties = group.part(change) if group else change.properties()
    done = commit(store, rel, operation, read_version=table.version, properties=properties)
    placed = change.placed(done)
    if group:
        group.changes.append(placed)
    return placed


def drop_fragment(store: Store, rel: str, fragment: int) -> None:
    """Remove a fragment from a table without a change of the catalog, which never listed it."""
    _commit_update(store, rel, Change(), gone=[fragment])


def drop_tiles(ledger: Ledger, mpp: float, slides: Sequence[int], group: Group) -> None:
    """Delete all rows of slides at an mpp, with their features."""
    change = Change(drop=f"mpp = {mpp} AND {among(slides)}")
    gone, edited = _fragments_without(ledger, mpp, slides)
    _commit_update(ledger.store, features_table(mpp), change, gone=gone, edited=edited, group=group)


def drop_rows(store: Store, mpp: float, fragment: int, slides: Sequence[int]) -> Change:
    """Delete rows of slides in one fragment; the catalog does not change."""
    rel = features_table(mpp)
    rest = open_table(store, rel).get_fragment(fragment).delete(among(slides))
    return _commit_update(
        store, rel, Change(), gone=[] if rest else [fragment], edited=[rest] if rest else []
    )


def drop_column(store: Store, mpp: float, teacher: str, fragments: Sequence[int]) -> Change:
    """Set a teacher's column to null in some fragments, as before the teacher was run."""
    rel = features_table(mpp)
    table = open_table(store, rel)
    field = field_ids(table).get(teacher)
    table_fragments = [table.get_fragment(fragment) for fragment in fragments]
    edited = [_without_field(f.metadata, field) for f in table_fragments if f is not None]
    numbers = ", ".join(str(fragment) for fragment in fragments)
    drop = f"mpp = {mpp} AND teacher = '{teacher}' AND fragment IN ({numbers})"
    # Named, so that an index over it forgets these fragments instead of proposing their nulls.
    fields = [] if field is None else [field]
    return _commit_update(store, rel, Change(drop=drop), edited=edited, fields=fields)


def _without_field(metadata: lance.FragmentMetadata, field: int | None) -> lance.FragmentMetadata:
    fields = metadata.to_json()
    for file in fields["files"]:
        file["fields"] = [NO_FIELD if each == field else each for each in file["fields"]]
    fields["files"] = [
        file for file in fields["files"] if any(each >= 0 for each in file["fields"])
    ]
    return lance.FragmentMetadata.from_json(json.dumps(fields))


def replace_fragments(
    store: Store, mpp: float, old: Sequence[int], new: lance.FragmentMetadata, rows: Sequence[Row]
) -> Change:
    """Replace several fragments by one with the same rows; `rows` are their catalog rows."""
    drop = f"mpp = {mpp} AND {among([row['slide'] for row in rows])}"
    change = Change(add=rows, drop=drop, file=str(new.files[0].path))
    return _commit_update(store, features_table(mpp), change, new=[new], gone=old)


@dataclass(frozen=True, kw_only=True)
class PreparedColumns:
    """One teacher's columns of fragments at one mpp, checked and ready to be committed.

    Attributes:
        rel: the features table.
        groups: lance's replacement groups, one per fragment; empty if nothing is missing.
        change: the change of the catalog that follows.
    """

    rel: str
    groups: Sequence[object]
    change: Change


def prepare_columns(ledger: Ledger, mpp: float, files: Sequence[ColumnFile]) -> PreparedColumns:
    """Check and return one teacher's finished columns; complete fragments are left out.

    Raises:
        DamageError: a file is gone or its rows are not its fragment's rows.
    """
    rel, teacher = features_table(mpp), files[0].teacher
    table = open_table(ledger.store, rel)
    rows: list[Row] = []
    again: list[int] = []
    ledger.read_ahead(slide for file in files for slide in file.crc32)
    new: list[tuple[ColumnFile, lance.LanceFragment, list[Row]]] = []
    for file in files:
        tiles = _tiles_of(ledger, mpp, file)
        slides = [row["slide"] for row in tiles]
        teacher_rows = ledger.teacher_rows(mpp, teacher, slides)
        fragment = table.get_fragment(file.fragment)
        # A fragment may have gone, or lost a slide, since the worker read it: a re-scan.
        if fragment is None or len(teacher_rows) == len(slides):
            continue
        new.append((file, fragment, tiles))
        again += [row["slide"] for row in teacher_rows]
    filled = ledger.slides_by_fragment(mpp, teacher, [file.fragment for file, _, _ in new])
    for file, fragment, tiles in new:
        _check_rows(fragment, file, filled[file.fragment])
        rows += [_teacher_row(row, file) for row in tiles]
    groups: list[object] = side_by_side(
        ledger.store,
        lambda one: replacement(ledger.store, table, one[0].fragment, one[0].path),
        new,
    )
    drop = f"mpp = {mpp} AND teacher = '{teacher}' AND {among(again)}" if again else None
    return PreparedColumns(rel=rel, groups=groups, change=Change(add=rows, drop=drop))


def put_columns(store: Store, columns: PreparedColumns, group: Group, *, last: bool) -> None:
    """Commit prepared columns, as a part of a group or its last one."""
    commit(
        store,
        columns.rel,
        LanceOperation.DataReplacement(list(columns.groups)),
        read_version=open_table(store, columns.rel).version,
        properties=group.part(columns.change, last=last),
    )
    group.changes.append(columns.change)


def _tiles_of(ledger: Ledger, mpp: float, file: ColumnFile) -> list[Row]:
    tiles = ledger.tiles_rows(mpp, list(file.crc32))
    return [row for row in tiles if row["fragment"] == file.fragment]


def _teacher_row(row: Row, file: ColumnFile) -> Row:
    """Return the catalog row of a teacher on a slide, at the place of its tiles."""
    names = ("slide", "slide_id", "mpp", "tiles", "fragment", "row_start")
    return {
        **{name: row[name] for name in names},
        "teacher": file.teacher,
        "crc32": file.crc32[row["slide"]],
    }


def _check_rows(fragment: lance.LanceFragment, file: ColumnFile, filled: set[int]) -> None:
    """Raise DamageError if a file lacks rows, or slides whose features are there (`filled`)."""
    if file.rows != fragment.physical_rows:
        msg = (
            f"{file.teacher}: {file.rows} rows were made for fragment {file.fragment}, which has "
            f"{fragment.physical_rows}"
        )
        raise DamageError(msg)
    if lost := filled - set(file.crc32):
        msg = (
            f"{file.teacher}: {file.path} lacks slides {sorted(lost)}, whose features are in "
            f"fragment {file.fragment} already"
        )
        raise DamageError(msg)


def field_ids(table: lance.LanceDataset) -> dict[str, int]:
    """Return Lance's field id of each top-level column."""
    return {field.name(): field.id() for field in table.lance_schema.fields()}
