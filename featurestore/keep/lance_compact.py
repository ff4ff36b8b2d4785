"""Merges small fragments of the features tables, and drops the rows of replaced slides for good.

Only neighbours that have the same teachers are merged, so that no null is written out and the next
extract still adds missing features; a slide stays in one fragment.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance

from featurestore.commits.cuts import ROWS_PER_FRAGMENT, Row
from featurestore.commits.lance_commit import Committer
from featurestore.commits.lance_features import field_ids, replace_fragments
from featurestore.lake import Lake
from featurestore.notebook.shown import Shown
from featurestore.storage.lock import no_writers
from featurestore.tables.lance_tables import open_table, write_fragment
from featurestore.tables.schema import TILE_COLUMNS, features_table, is_teacher


@dataclass(kw_only=True, repr=False)
class Compacted(Shown):
    """Numbers of the merged fragments and of the resulting fragments."""

    before: int = 0
    after: int = 0


def compact(
    lake: Lake,
    *,
    rows: int = ROWS_PER_FRAGMENT,
    on_group: Callable[[int], None] = lambda _: None,
) -> Compacted:
    """Merge fragments up to `rows` rows, one commit per group; earlier versions stay readable.

    Args:
        lake: the lake; its newest version is compacted.
        rows: most rows in a merged fragment.
        on_group: called with the number of fragments after each merge.

    Raises:
        LakeError: a job is writing to the lake: it would lose its work on merged fragments.

    Examples:
        >>> merged = sl.compact(sl.open_lake("my-lake"))
        >>> merged.before >= merged.after
        True
    """
    done = Compacted()
    with no_writers(lake.store):
        for mpp in lake.config.mpps:
            table = open_table(lake.store, features_table(mpp))
            for group in list(_groups(table, rows)):
                _merge(lake.committer, mpp, group)
                done.before, done.after = done.before + len(group), done.after + 1
                on_group(len(group))
    return done


def mergeable(lake: Lake, *, rows: int = ROWS_PER_FRAGMENT) -> tuple[int, int]:
    """Return the number of features fragments, and of fragments that a compact would save."""
    count = saved = 0
    for mpp in lake.config.mpps:
        table = open_table(lake.store, features_table(mpp))
        count += len(table.fragment_ids())
        saved += sum(len(group) - 1 for group in _groups(table, rows))
    return count, saved


def _groups(table: lance.LanceDataset, rows: int) -> Iterator[list[int]]:
    """Yield the ids of neighbouring fragments to merge."""
    group: list[int] = []
    ids = field_ids(table)
    # A missing value of an annotation takes a few bytes, a missing embedding its whole width.
    wide = {ids[field.name] for field in table.schema if is_teacher(field)}
    size, kind = 0, None
    for fragment in table.get_fragments():
        live = fragment.metadata.num_rows
        columns = _fields(fragment) & wide
        if group and (columns != kind or size + live > rows):
            if _is_worth_merging(table, group):
                yield group
            group, size = [], 0
        kind = columns
        group.append(fragment.fragment_id)
        size += live
    if _is_worth_merging(table, group):
        yield group


def _is_worth_merging(table: lance.LanceDataset, group: Sequence[int]) -> bool:
    return len(group) > 1 or any(table.get_fragment(number).num_deletions for number in group)


def _fields(fragment: lance.LanceFragment) -> frozenset[int]:
    return frozenset(f for file in fragment.metadata.files for f in file.fields if f >= 0)


def _ids_below(field: Any) -> set[int]:  # noqa: ANN401 - Lance's field, untyped
    """Return the ids of a column and of the fields within it: files name the innermost only."""
    return {field.id()}.union(*(_ids_below(child) for child in field.children()))


def _merge(committer: Committer, mpp: float, group: Sequence[int]) -> None:
    store, rel = committer.store, features_table(mpp)
    with committer.exclusive():
        table = open_table(store, rel)
        fragments = [table.get_fragment(number) for number in group]
        written_fields = frozenset[int]().union(*(_fields(fragment) for fragment in fragments))
        fields = table.lance_schema.fields()
        names = [
            f.name() for f in fields if _ids_below(f) & written_fields or f.name() in TILE_COLUMNS
        ]
        reader = table.scanner(
            columns=names, fragments=fragments, scan_in_order=True, batch_size=1024
        ).to_reader()
        new = write_fragment(store, rel, reader)
        rows = _merged_catalog_rows(committer, mpp, group)
        committer.apply([replace_fragments(store, mpp, group, new[0], rows)])


def _merged_catalog_rows(committer: Committer, mpp: float, group: Sequence[int]) -> list[Row]:
    """Return the catalog rows of the merged fragment's tiles and features, at their new places."""
    # One look at the catalog: one for each of thousands of fragments takes minutes.
    numbers = ", ".join(str(number) for number in group)
    rows = committer.ledger.rows(f"mpp = {mpp} AND fragment IN ({numbers})")
    order = {number: place for place, number in enumerate(group)}
    tiles = sorted(
        (row for row in rows if row["teacher"] is None),
        key=lambda row: (order[row["fragment"]], row["row_start"]),
    )
    start: dict[int, int] = {}
    at = 0
    for row in tiles:
        start[row["slide"]] = at
        at += row["tiles"]
    return [{**row, "row_start": start[row["slide"]], "fragment": -1} for row in rows]
