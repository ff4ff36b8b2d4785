"""Parts of columns: joined they are the column that one writer makes, and damage never gets in."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from featurestore import ColumnFile, ColumnWriter, Lake, copy_lake, open_lake, vacuum, verify
from featurestore.tables import PartDamageError, PartName, PartWriter, join_parts, parts_in
from featurestore.tables.lance_files import physical_column
from featurestore.tables.schema import features_table

DIM, MPP = 6, 0.5
#: Slides of `small`: 5 and 3 tiles in the only fragment.
SLIDES = {0: range(5), 1: range(5, 8)}


def field_of(lake: Lake) -> pa.Field:
    return lake.committer.add_teacher(MPP, "t", DIM, {"weights": "1"})


def values() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(8, DIM)).astype(np.float32)


def write_part(lake: Lake, field: pa.Field, first: int, stop: int) -> str:
    """Write the part of some rows, of which row 6 is left out by the teacher."""
    name = PartName(fragment=0, key="0" * 20, first=first, stop=stop)
    writer = PartWriter(lake.store, name, field)
    for slide, rows in SLIDES.items():
        for row in rows:
            if first <= row < stop and row == 6:
                writer.absent(slide, 1)
            elif first <= row < stop:
                writer.add(slide, np.array([row]), values()[row : row + 1])
    return writer.finish()


def written_whole(lake: Lake, field: pa.Field) -> ColumnFile:
    with ColumnWriter(lake.store, MPP, field, 0) as writer:
        writer.add(0, np.arange(5), values()[:5])
        writer.add(1, np.array([5]), values()[5:6])
        writer.absent(1, 1)
        writer.add(1, np.array([7]), values()[7:])
        return writer.finish()


def column_bytes(lake: Lake, file: ColumnFile) -> bytes:
    """Commit a file and return the column as it lies in it."""
    lake.committer.commit_columns(MPP, [file])
    rel = features_table(MPP)
    table = lake.refreshed().table(rel)
    column = physical_column(lake.store, rel, table, 0, "t").combine_chunks()
    return bytes(column.values.to_numpy(zero_copy_only=False).tobytes())


@pytest.mark.parametrize("cuts", [[0, 8], [0, 5, 8], [0, 2, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_joined_parts_are_the_column_of_one_writer(
    small: Lake, cuts: Sequence[int], tmp_path: Path
) -> None:
    field = field_of(small)
    copy_lake(small.uri, str(tmp_path / "other"))
    other = open_lake(tmp_path / "other")
    paths = [write_part(small, field, *rows) for rows in pairwise(cuts)]
    assert [name.path for name in parts_in(small.store)[0, "0" * 20]] == paths
    joined, whole = join_parts(small.store, MPP, field, 0, 8, paths), written_whole(other, field)
    assert (joined.crc32, joined.rows, joined.teacher) == (whole.crc32, whole.rows, whole.teacher)
    assert column_bytes(small, joined) == column_bytes(other, whole)
    assert verify(small.refreshed()).ok


def test_a_part_that_is_cut_short_or_changed_is_refused(small: Lake) -> None:
    """Each length but its own, and one changed byte at each place."""
    field = field_of(small)
    path = write_part(small, field, 0, 8)
    file = Path(small.store.path(path))
    content = file.read_bytes()
    broken = [content[:size] for size in range(len(content))]
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1
        broken.append(bytes(changed))
    for text in broken:
        file.write_bytes(text)
        with pytest.raises(PartDamageError, match=r"computed again") as caught:
            join_parts(small.store, MPP, field, 0, 8, [path])
        assert caught.value.path == path
    file.unlink()
    with pytest.raises(PartDamageError, match="is gone"):
        join_parts(small.store, MPP, field, 0, 8, [path])


def test_unfinished_parts_are_none_and_vacuum_removes_all(small: Lake) -> None:
    field = field_of(small)
    name = PartName(fragment=0, key="1" * 20, first=0, stop=5)
    writer = PartWriter(small.store, name, field)
    writer.append(0, np.ones((5, DIM), np.float16))
    assert not parts_in(small.store)
    whole = write_part(small, field, 5, 8)
    assert [part.path for parts in parts_in(small.store).values() for part in parts] == [whole]
    verdict = verify(small.refreshed())
    assert verdict.ok
    assert verdict.parts["files"] == 2
    copied = copy_lake(small.uri, str(Path(small.uri).parent / "copy"))
    assert verify(open_lake(copied.uri)).parts["files"] == 0
    assert vacuum(small.refreshed()).files >= 2
    assert not list(Path(small.uri).glob("parts/*"))
    assert verify(small.refreshed()).parts == {"files": 0, "bytes": 0}
    writer.discard()
