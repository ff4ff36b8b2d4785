"""Columns of students of features: the vectors of a fusion or a region encoder for each tile.

They read columns that the lake has already, so no tile is decoded: one process writes a fragment
after the other. A kill loses the fragments since the last commit; the next call writes them again.

Shape letters: B tiles, D the student's width.
"""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load

from cluster import progress
from distill.errors import DistillError
from distill.students.saved_student import kept_hash
from distill.students.student_kind import FeatureStudent
from distill.students.student_table import student_kind
from distill.students.task import on_device
from featurestore import ColumnFile, ColumnWriter, Lake, mpp_name, open_lake
from featurestore.storage import writer_lease
from featurestore.tables import features_table
from ingest import FEATURE_CARD, licence_of, student_folder
from ingest.teachers import WEIGHTS, MadeColumn, student_file

COMMIT_FRAGMENTS = 16

LakeRow = dict[str, Any]


def make_columns(lake_uri: str, name: str, *, mpps: Sequence[float] | None = None) -> MadeColumn:
    """Write a student's column for all tiles that lack it and have the features that it reads.

    Args:
        lake_uri: the lake.
        name: name of the student.
        mpps: mpps of the tiles; all mpps of the student if None.

    Returns:
        The number of tiles that this call wrote, and its seconds.

    Raises:
        DistillError: there is no such student, it was not trained at an mpp, or a column that it
            reads was written again by another teacher since.
        LakeError: a slide lacks features that the student reads; the message names the slide.
    """
    start, lake = time.perf_counter(), open_lake(lake_uri)
    path = f"{student_folder(name)}/{FEATURE_CARD}"
    if not lake.exists(path):
        msg = f"no student of features '{name}' in {lake.uri}: distill one by shazam or pathme"
        raise DistillError(msg)
    card: LakeRow = json.loads(student_file(lake.store, name, FEATURE_CARD))
    _check_inputs(lake, card, mpps)
    tiles = 0
    with writer_lease(lake.store, f"columns of {name}"):
        lake.committer.recover()
        for mpp in mpps or card["mpps"]:
            tiles += _write_column(lake.refreshed(), card, lake.known_mpp(mpp))
    return MadeColumn(tiles=tiles, seconds=round(time.perf_counter() - start, 3))


def _check_inputs(lake: Lake, card: LakeRow, mpps: Sequence[float] | None) -> None:
    """Refuse mpps of no training, and columns that another teacher has written again since.

    Raises:
        DistillError: there is such an mpp or column.
    """
    wrong = sorted(set(mpps or ()) - set(card["mpps"]))
    if wrong:
        msg = f"'{card['name']}' was trained at mpps {card['mpps']}, not at {wrong}"
        raise DistillError(msg)
    for key, identity in card["identities"].items():
        teacher, _, mpp = key.rpartition("@")
        if lake.identity(teacher, mpp=float(mpp)) != identity:
            msg = (
                f"'{card['name']}' saw another '{teacher}' at mpp {mpp} than the lake has now; "
                "distill it again"
            )
            raise DistillError(msg)


def _write_column(lake: Lake, card: LakeRow, mpp: float) -> int:
    """Write the column at one mpp, and return the number of tiles written."""
    name = card["name"]
    identity = {
        "card": name,
        "student": card["kind"],
        "weights_sha256": kept_hash(lake, name),
        "sees": sorted(card["identities"]),
    }
    field = lake.committer.add_teacher(
        mpp, name, card["dim"], identity, licence_of(lake.store, name)
    )
    lake = lake.refreshed()
    rows, fragment_rows = _incomplete_fragments(lake, name, mpp), _fragment_rows(lake, mpp)
    student, files, tiles = _restored(lake, card), list[ColumnFile](), 0
    total = sum(row["tiles"] for group in rows.values() for row in group)
    with progress(f"{name} at {mpp_name(mpp)} mpp", total=total, unit="tiles") as bar:
        for fragment, group in rows.items():
            writer = ColumnWriter(lake.store, mpp, field, fragment)
            for row in group:
                writer.skip(row["row_start"] - writer.rows)
                for tile_id, vectors in _vectors(lake, student, row, mpp):
                    writer.add(row["slide"], tile_id, vectors)
                    bar.advance(len(tile_id))
                    tiles += len(tile_id)
            writer.skip(fragment_rows[fragment] - writer.rows)
            files.append(writer.finish())
            if len(files) >= COMMIT_FRAGMENTS:
                lake.committer.commit_columns(mpp, files)
                files = []
        if files:
            lake.committer.commit_columns(mpp, files)
    return tiles


def _incomplete_fragments(lake: Lake, name: str, mpp: float) -> Mapping[int, list[LakeRow]]:
    """Return the slides, in row order, of each fragment in which a slide lacks the column."""
    done = set(lake.features_of(name, mpp=mpp)["slide"])
    rows: dict[int, list[LakeRow]] = defaultdict(list)
    for row in lake.tiles_of(mpp=mpp).sort("row_start").iter_rows(named=True):
        rows[row["fragment"]].append(row)
    return {
        fragment: group
        for fragment, group in sorted(rows.items())
        if any(row["slide"] not in done and row["tiles"] for row in group)
    }


def _fragment_rows(lake: Lake, mpp: float) -> dict[int, int]:
    """Return the number of rows of each fragment, deleted ones included."""
    fragments = lake.table(features_table(mpp)).get_fragments()
    return {fragment.fragment_id: fragment.physical_rows for fragment in fragments}


def _vectors(
    lake: Lake, student: FeatureStudent, row: LakeRow, mpp: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield the keys and vectors [B, D] of all tiles of a slide, batch by batch."""
    if not row["tiles"]:
        return
    finer = [level for level in student.levels if level < mpp]
    stream = lake.stream(
        student.teachers,
        mpp=mpp,
        slide_ids=[row["slide_id"]],
        batch_tiles=student.batch_tiles,
        shuffle=False,
        under=dict.fromkeys(finer, student.teachers),
    )
    for batch in stream:
        yield batch.tile_id, student.embed(on_device(batch, "cpu")).numpy()


def _restored(lake: Lake, card: LakeRow) -> FeatureStudent:
    """Load a student of features with its weights.

    Raises:
        DistillError: the student reads pixels.
    """
    restore = student_kind(card["kind"]).restore
    if restore is None:
        msg = f"'{card['name']}' is a {card['kind']}, which sees pixels; it has no {FEATURE_CARD}"
        raise DistillError(msg)
    return restore(card, load(student_file(lake.store, card["name"], WEIGHTS)))
