"""Tile scores as columns of kind `score`: the missing scores, and one commit for new scores.

Such a column is written like an annotation's: a file per fragment, a checksum per slide in
the catalog. New slides have null until it is filled again. Values come from above: this package
has no pixels.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurestore.annotations.annotating import check_unchanged
from featurestore.edits.lance_edits import NewColumn, drop_columns, fill_columns
from featurestore.errors import LakeError
from featurestore.lake import Lake
from featurestore.storage.lock import no_writers
from featurestore.tables.checksums import values_crc32
from featurestore.tables.lance_files import physical_column, write_column
from featurestore.tables.schema import KIND_KEY, SCORE, TILE_COLUMNS, features_table, kind_of

RECORD_KEY = b"slidelake:score"

Row = dict[str, Any]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ScoreColumn:
    """A column of scores that is to be in a lake.

    Attributes:
        name: name of the column.
        type: Arrow type of its values.
        version: version of the function that computes it; an older column is computed anew.
    """

    name: str
    type: pa.DataType
    version: int

    @property
    def field(self) -> pa.Field:
        """Return the Arrow field, with kind and version in its metadata."""
        record = json.dumps({"version": self.version})
        metadata = {KIND_KEY: SCORE, RECORD_KEY: record}
        return pa.field(self.name, self.type, nullable=True, metadata=metadata)


def score_versions(lake: Lake) -> dict[str, int]:
    """Return the columns of kind `score` of a lake, and the least version of each."""
    versions: dict[str, int] = {}
    for mpp in lake.config.mpps:
        for field in lake.table(features_table(mpp)).schema:
            if kind_of(field) == SCORE:
                version = _version_of(field)
                versions[field.name] = min(version, versions.get(field.name, version))
    return versions


def _version_of(field: pa.Field) -> int:
    record = json.loads((field.metadata or {}).get(RECORD_KEY, b"{}"))
    return int(record.get("version", 0))


def rows_without_score(lake: Lake, column: ScoreColumn, mpp: float) -> dict[int, list[Row]]:
    """Return the catalog rows of the slides in each fragment that lacks a score of some slide.

    Slides without pixels in the lake (imported features) are left out: no score can be computed.

    Raises:
        LakeError: something else of that name is in the lake.
    """
    schema = lake.table(features_table(mpp)).schema
    done: set[int] = set()
    if column.name in schema.names:
        field = schema.field(column.name)
        if kind_of(field) != SCORE or column.name in TILE_COLUMNS:
            msg = (
                f"'{column.name}' is a column of {kind_of(field)} kind at mpp {mpp} in {lake.uri}, "
                "so the score of that name can't be added; give the other one another name "
                "(slidelake rename)"
            )
            raise LakeError(msg)
        if _version_of(field) == column.version:
            named = (pl.col("teacher") == column.name) & (pl.col("mpp") == mpp)
            done = set(lake.catalog().filter(named).select("slide").collect()["slide"])
    by_fragment: dict[int, list[Row]] = defaultdict(list)
    tiles = lake.tiles_of(mpp=mpp).filter(pl.col("tiles") > 0).drop_nulls("shard")
    for row in tiles.sort("fragment", "row_start").iter_rows(named=True):
        by_fragment[row["fragment"]].append(row)
    return {
        fragment: rows
        for fragment, rows in by_fragment.items()
        if any(row["slide"] not in done for row in rows)
    }


def tile_keys(lake: Lake, mpp: float, fragment: int) -> Int64Array:
    """Return the tile keys of all rows of a fragment, deleted rows included."""
    rel = features_table(mpp)
    column = physical_column(lake.store, rel, lake.table(rel), fragment, "tile_id")
    keys: Int64Array = column.to_numpy()
    return keys


def write_scores(
    lake: Lake,
    part: NewColumn,
    fragment: int,
    rows: Sequence[Row],
    values: npt.NDArray[np.floating],
) -> None:
    """Write one score of one fragment as a file that no table version names yet.

    Args:
        lake: the lake at the version in which the rows were looked up.
        part: column at one mpp; the file and the checksums are added to it.
        fragment: the fragment's id.
        rows: catalog rows of the slides whose tiles have the score.
        values: scores of all rows of the fragment; NaN is null.
    """
    array = pa.array(values, part.field.type, from_pandas=True)
    part.files[fragment] = write_column(lake.store, features_table(part.mpp), part.field, [array])
    part.rows[fragment] = len(array)
    for row in rows:
        scores = array.slice(row["row_start"], row["tiles"])
        part.crc32[row["slide"]] = values_crc32(scores.to_pylist())


def commit_scores(lake: Lake, parts: Mapping[str, Sequence[NewColumn]]) -> None:
    """Publish the written scores of a lake, all of them in one commit.

    Args:
        lake: lake that holds the files.
        parts: columns of each score, one per mpp.

    Raises:
        AnnotationError: the lake was compacted meanwhile; nothing is changed.
    """
    columns = [part for of_score in parts.values() for part in of_score]
    committer = lake.committer
    with committer.exclusive():
        check_unchanged(lake, columns)
        committer.make(fill_columns(columns))


def drop_scores(lake: Lake, names: Sequence[str]) -> int:
    """Remove scores from a lake in one commit; earlier versions keep them until vacuum.

    Returns:
        The version of the lake without them.

    Raises:
        LakeError: the lake has no such score, or a job is writing to it.
    """
    committer = lake.committer
    with no_writers(lake.store), committer.exclusive():
        kept = score_versions(lake.refreshed())
        if missing := [name for name in names if name not in kept]:
            msg = (
                f"{lake.uri} keeps no score '{missing[0]}' that could be dropped; it keeps "
                f"{', '.join(kept) or 'none'}"
            )
            raise LakeError(msg)
        committer.make(drop_columns(names))
    return lake.refreshed().version
