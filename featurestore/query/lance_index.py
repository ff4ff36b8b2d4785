"""An index over a teacher's column, so that the nearest tiles are found without reading them all.

It is built beside other jobs, under a writer's lease, and committed under the lake's lock:
only for fragments with the same column as when it was built. What it does not
cover (slides or features added later) is searched exactly, so an index speeds up a search
and never blind.
"""

from dataclasses import dataclass, replace
from typing import Any

import lance

from featurestore.commits.lance_features import field_ids
from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.query.lance_nearest import SearchedColumn, covered, index_name, is_readable
from featurestore.storage.lock import writer_lease
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import features_table, is_quantised

# Cells of near vectors (IVF), and in each a few bits a value (RaBitQ), which need whole bytes;
# docs/decisions.md has what others cost.
KIND, ANY_WIDTH_KIND = "IVF_RQ", "IVF_SQ"
# Below this an exact search takes tens of milliseconds.
INDEX_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """The part of a teacher's features that an index covers.

    Attributes:
        teacher: name of the column.
        mpp: microns per pixel of the tiles.
        tiles: number of tiles with features of this teacher.
        indexed: number of these tiles in the index; 0 without an index.
        kind: lance's name of the index's kind; None without an index.
        bytes: size of the index's files.
    """

    teacher: str
    mpp: float
    tiles: int
    indexed: int = 0
    kind: str | None = None
    bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether an index is there and covers all tiles with features."""
        return self.kind is not None and self.indexed == self.tiles


def index_state(lake: Lake, teacher: str, *, mpp: float) -> IndexState:
    """Return what the index of a teacher's features covers at this version of a lake.

    Raises:
        LakeError: the teacher has no column at this mpp.
    """
    rows = lake.features_of(teacher, mpp=mpp)
    lake_mpp = lake.known_mpp(mpp)
    tiles = int(rows["tiles"].sum())
    table = lake.table(features_table(lake_mpp))
    indexes = [i for i in table.describe_indices() if i.name == index_name(teacher)]
    if not indexes:
        return IndexState(teacher=teacher, mpp=lake_mpp, tiles=tiles)
    inside = rows.filter(rows["fragment"].is_in(sorted(covered(table, teacher))))
    return IndexState(
        teacher=teacher,
        mpp=lake_mpp,
        tiles=tiles,
        indexed=int(inside["tiles"].sum()),
        kind=str(indexes[0].index_type),
        bytes=int(indexes[0].total_size_bytes or 0),
    )


def build_index(
    lake: Lake, teacher: str, *, mpp: float, least_rows: int = INDEX_ROWS
) -> IndexState:
    """Build the index of a teacher's features, unless a complete, readable index exists.

    The index is built from all rows, in time that grows with them: a new build is worth it once
    many slides were added. Searches at earlier versions of the lake go on as they were.

    Args:
        lake: the lake; its newest version is indexed.
        teacher: name of the column.
        mpp: microns per pixel of the tiles.
        least_rows: fewer tiles with features are not indexed.

    Returns:
        What the index covers in the newest version.

    Raises:
        LakeError: the teacher has no column at this mpp, or too few tiles have its features.
    """
    lake.check_teacher(teacher, mpp=mpp)
    if is_quantised(lake.table(features_table(lake.known_mpp(mpp))).schema.field(teacher)):
        msg = f"'{teacher}' is quantised and searched without an index, exactly; index its source"
        raise LakeError(msg)
    with writer_lease(lake.store, f"index of {teacher}"):
        lake.committer.recover()
        lake = lake.refreshed()
        state = index_state(lake, teacher, mpp=mpp)
        if state.tiles < least_rows:
            msg = (
                f"{state.tiles:,} tiles have features of '{teacher}' at mpp {mpp_name(mpp)}; an "
                f"index is worth it from {least_rows:,} on: search without one, which is exact"
            )
            raise LakeError(msg)
        if not (state.complete and _is_readable(lake, state)):
            _build(lake, teacher, state.mpp)
    return index_state(lake.refreshed(), teacher, mpp=mpp)


def _is_readable(lake: Lake, state: IndexState) -> bool:
    table = lake.table(features_table(state.mpp))
    return is_readable(SearchedColumn(store=lake.store, table=table, teacher=state.teacher))


def _build(lake: Lake, teacher: str, mpp: float) -> None:
    rel, name = features_table(mpp), index_name(teacher)
    table = lake.table(rel)
    then = _column_files(table, teacher)
    width = table.schema.field(teacher).type.list_size
    built = table.create_index_uncommitted(
        teacher,
        ANY_WIDTH_KIND if width % 8 else KIND,
        name=name,
        metric="cosine",
        replace=True,
        fragment_ids=sorted(then),
        storage_options=lake.store.lance_options,
    )
    with lake.committer.exclusive():
        table = open_table(lake.store, rel)
        now = _column_files(table, teacher)
        same = {number for number, path in then.items() if now.get(number) == path}
        # A narrower index may not take the place of a wider one; a kill between the two leaves the
        # table without an index, in a version that no version of the lake names yet.
        if any(index.name == name for index in table.describe_indices()):
            table.drop_index(name)
        if same:
            segment: Any = replace(built, fragment_ids=same)
            open_table(lake.store, rel).commit_existing_index_segments(name, teacher, [segment])
        lake.committer.apply([])


def _column_files(table: lance.LanceDataset, teacher: str) -> dict[int, str]:
    """Return the data file that holds a teacher's features, by fragment."""
    field = field_ids(table)[teacher]
    return {
        fragment.fragment_id: str(file.path)
        for fragment in table.get_fragments()
        for file in fragment.metadata.files
        if field in file.fields
    }
