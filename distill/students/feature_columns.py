"""Columns of students of features: what a fusion or a region encoder says of each tile.

They read what the lake has already, so no tile is decoded: one process writes a fragment after the
other. A kill loses the fragments since the last commit; the next call makes those.

Letters in names: B tiles, D the student's width.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load
from torch import Tensor

from cluster import progress
from distill.errors import DistillError
from distill.recipes.recipe import FusionStudent, RegionStudent
from distill.students.fusion import Fuser
from distill.students.region_encoder import RegionEncoder
from distill.students.saved_student import kept_hash
from distill.students.task import Batch, on_device
from featurestore import ColumnFile, ColumnWriter, Lake, mpp_name, open_lake
from featurestore.read.stream import Stream
from featurestore.storage.lock import writer_lease
from featurestore.tables.schema import features_table
from ingest import FEATURE_CARD, student_folder
from ingest.teachers.column_maker import MadeColumn
from ingest.teachers.student_files import WEIGHTS, student_file

COMMIT_FRAGMENTS = 16
BATCH_TILES = 256

Row = dict[str, Any]
Embed = Callable[[Batch], Tensor]


def make_columns(lake_uri: str, name: str, *, mpps: Sequence[float] | None = None) -> MadeColumn:
    """Write a student's column for all tiles that lack it and have what it sees.

    Args:
        lake_uri: the lake.
        name: of the student.
        mpps: at which; all of its own if None.

    Returns:
        The number of tiles written by this call, and its seconds.

    Raises:
        DistillError: there is no such student, it was not trained at an mpp, or a column that it
            sees was made anew by another teacher since.
        LakeError: a slide lacks features that the student sees; it is named.
    """
    start, lake = time.perf_counter(), open_lake(lake_uri)
    path = f"{student_folder(name)}/{FEATURE_CARD}"
    if not lake.exists(path):
        msg = f"no student of features '{name}' in {lake.uri}: distill one by shazam or pathme"
        raise DistillError(msg)
    about: Row = json.loads(student_file(lake.store, name, FEATURE_CARD))
    _check(lake, about, mpps)
    tiles = 0
    with writer_lease(lake.store, f"columns of {name}"):
        lake.committer.recover()
        for mpp in mpps or about["mpps"]:
            tiles += _make(lake.refreshed(), about, lake.known_mpp(mpp))
    return MadeColumn(tiles=tiles, seconds=round(time.perf_counter() - start, 3))


def _check(lake: Lake, about: Row, mpps: Sequence[float] | None) -> None:
    wrong = sorted(set(mpps or ()) - set(about["mpps"]))
    if wrong:
        msg = f"'{about['name']}' was trained at mpps {about['mpps']}, not at {wrong}"
        raise DistillError(msg)
    for key, identity in about["identities"].items():
        teacher, _, mpp = key.rpartition("@")
        if lake.identity(teacher, mpp=float(mpp)) != identity:
            msg = (
                f"'{about['name']}' saw another '{teacher}' at mpp {mpp} than the lake has now; "
                "distill it again"
            )
            raise DistillError(msg)


def _make(lake: Lake, about: Row, mpp: float) -> int:
    name = about["name"]
    identity = {
        "card": name,
        "student": about["kind"],
        "weights_sha256": kept_hash(lake, name),
        "sees": sorted(about["identities"]),
    }
    field = lake.committer.add_teacher(mpp, name, about["dim"], identity)
    lake = lake.refreshed()
    rows, whole = _missing(lake, name, mpp), _rows(lake, mpp)
    embed, files, tiles = _student(lake, about), list[ColumnFile](), 0
    total = sum(row["tiles"] for group in rows.values() for row in group)
    with progress(f"{name} at {mpp_name(mpp)} mpp", total=total, unit="tiles") as bar:
        for fragment, group in rows.items():
            writer = ColumnWriter(lake.store, mpp, field, fragment)
            for row in group:
                writer.skip(row["row_start"] - writer.rows)
                for tile_id, vectors in _vectors(lake, about, row, embed, mpp):
                    writer.add(row["slide"], tile_id, vectors)
                    bar.advance(len(tile_id))
                    tiles += len(tile_id)
            writer.skip(whole[fragment] - writer.rows)
            files.append(writer.finish())
            if len(files) >= COMMIT_FRAGMENTS:
                lake.committer.commit_columns(mpp, files)
                files = []
        if files:
            lake.committer.commit_columns(mpp, files)
    return tiles


def _missing(lake: Lake, name: str, mpp: float) -> Mapping[int, list[Row]]:
    """Slides of the fragments that lack a slide's column, in the order of their rows."""
    done = set(lake.features_of(name, mpp=mpp)["slide"])
    rows: dict[int, list[Row]] = defaultdict(list)
    for row in lake.tiles_of(mpp=mpp).sort("row_start").iter_rows(named=True):
        rows[row["fragment"]].append(row)
    return {
        fragment: group
        for fragment, group in sorted(rows.items())
        if any(row["slide"] not in done and row["tiles"] for row in group)
    }


def _rows(lake: Lake, mpp: float) -> dict[int, int]:
    """Rows of each fragment, deleted ones included."""
    fragments = lake.table(features_table(mpp)).get_fragments()
    return {fragment.fragment_id: fragment.physical_rows for fragment in fragments}


def _vectors(
    lake: Lake, about: Row, row: Row, embed: Embed, mpp: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    if not row["tiles"]:
        return
    for batch in _stream(lake, about, row["slide_id"], mpp):
        yield batch.tile_id, embed(on_device(batch, "cpu")).numpy()


def _stream(lake: Lake, about: Row, slide_id: str, mpp: float) -> Stream:
    """All tiles of a slide with what the student sees."""
    region = about["kind"] == RegionStudent.__name__
    seen = about["teachers"][:1] if region else about["teachers"]
    finer = [level for level in about["levels"] if level < mpp] if region else []
    return lake.stream(
        seen,
        mpp=mpp,
        slide_ids=[slide_id],
        batch_tiles=16 if region else BATCH_TILES,
        shuffle=False,
        under=dict.fromkeys(finer, seen),
    )


def _student(lake: Lake, about: Row) -> Embed:
    """The student with its weights."""
    weights = load(student_file(lake.store, about["name"], WEIGHTS))
    teachers, targets = about["teachers"], about["recipe"]["targets"]
    levels = about["levels"]
    if about["kind"] == RegionStudent.__name__:
        how = RegionStudent(**about["recipe"]["student"])
        return RegionEncoder.restored(how, teachers[0], levels, targets, weights).embed
    known = FusionStudent(**about["recipe"]["student"])
    fuser = Fuser.restored(known, teachers, levels, targets, weights)
    return lambda batch: fuser.embed(batch.features, mpp=batch.mpp)
