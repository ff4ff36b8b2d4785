"""Comparison of a slide's rows and features with the catalog's checksums at their first read.

Lance keeps no checksums, so a flipped bit would be a wrong number in silence. Each slide's tiles,
and each teacher's features of them, are compared once by each process that reads a lake: zlib's
CRC-32 costs a fifth to a third of the time of a warm read, and nothing after that.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.read.selection import Selection
from featurestore.shards.tar_shards import check_shard
from featurestore.storage.read_errors import ADVICE, reading
from featurestore.storage.side_by_side import side_by_side
from featurestore.storage.store import Store
from featurestore.tables.checksums import features_crc32, tiles_crc32
from featurestore.tables.lance_flat import Float16Array
from featurestore.tables.lance_rows import RowReader

PART_ROWS = 8192  # of features that are compared at once: 20 MB of 1,280 channels

PARTS_AT_ONCE = 4  # from a bucket, several slides at once

Check = Literal["first-read"]
FIRST_READ: Check = "first-read"
STORED_TILES = "stored tiles/"  # no teacher's name, which has no slash


def known_check(check: str | None) -> Check | None:
    """Return the name of a way of checking if it is valid.

    Raises:
        LakeError: there is none of this name.
    """
    if check is None:
        return None
    if check != FIRST_READ:
        msg = f"check='{check}' given; allowed: '{FIRST_READ}', or None for no comparison"
        raise LakeError(msg)
    return FIRST_READ


class FirstReads:
    """Comparison of each part of one lake version at its first read. Safe for several threads.

    A thread waits for a slide that another thread is comparing.

    Args:
        check: "first-read", or None to compare nothing.
    """

    def __init__(self, check: Check | None) -> None:
        self.check = check
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(PARTS_AT_ONCE)
        self._compared: dict[tuple[float, str | None], set[int]] = {}
        self._gates: dict[tuple[float, str | None, int], threading.Lock] = {}

    def compare(
        self,
        reader: RowReader,
        selection: Selection,
        slides: Iterable[int],
        teachers: Sequence[str],
    ) -> None:
        """Read and compare the tiles and features of slides that were not compared before.

        Args:
            reader: reader of the features table.
            selection: places of the slides' rows, and their checksums.
            slides: places in the selection.
            teachers: names of the teachers to read.

        Raises:
            DamageError: a part differs from the commit; slide, teacher and mpp are named.
        """
        if self.check is None:
            return
        parts = [(slide, teacher) for slide in slides for teacher in (None, *teachers)]
        new = [part for part in parts if not self._is_done(selection, *part)]

        def compare_part(part: tuple[int, str | None]) -> None:
            slide, teacher = part
            if teacher is None:
                read = partial(tiles_sum, reader, selection, slide)
            else:
                read = partial(features_sum, reader, selection, slide, teacher)
            with contextlib.nullcontext() if reader.store.is_local else self._places:
                self._compare_sum(selection, slide, teacher, read)

        side_by_side(reader.store, compare_part, new)

    def _is_done(self, selection: Selection, slide: int, part: str | None) -> bool:
        return selection.number(slide) in self._compared.get((selection.mpp, part), ())

    def compare_read(
        self,
        reader: RowReader,
        selection: Selection,
        slide: int,
        features: Mapping[str, Float16Array],
    ) -> None:
        """Compare a slide with all of its features in memory already.

        Args:
            reader: reader of the features table.
            selection: places of the slide's rows, and their checksums.
            slide: place in the selection.
            features: float16 [N, D] by teacher, as they were read.

        Raises:
            DamageError: they are not what was committed; slide, teacher and mpp are named.
        """
        self.compare(reader, selection, [slide], [])
        if self.check is None:
            return
        for teacher, array in features.items():
            if reader.codec(teacher) is not None:  # the checksum is of the codes
                self.compare(reader, selection, [slide], [teacher])
                continue
            self._compare_sum(selection, slide, teacher, partial(features_crc32, array))

    def is_compared(self, selection: Selection, slide: int, teacher: str) -> bool:
        """Whether a teacher's features of a slide need no comparison (any more)."""
        return self.check is None or self._is_done(selection, slide, teacher)

    def compare_crc32(self, selection: Selection, slide: int, teacher: str, crc32: int) -> None:
        """Compare the checksum of a slide's features, taken by a reader of all of them.

        Raises:
            DamageError: it is not the committed one; slide, teacher and mpp are named.
        """
        if self.check is not None:
            self._compare_sum(selection, slide, teacher, lambda: crc32)

    def compare_shard(self, store: Store, selection: Selection, slide: int) -> None:
        """Compare the stored tiles of a slide of a local lake, all of them, with their checksum.

        Args:
            store: the lake's files.
            selection: the slides, with their rows of the catalog.
            slide: place in the selection.

        Raises:
            DamageError: they are not what was written; slide and mpp are named.
        """
        if self.check is not None:
            row = selection.slides.row(slide, named=True)
            self._run_once(selection, slide, STORED_TILES, partial(check_shard, store, row))

    def _compare_sum(
        self, selection: Selection, slide: int, teacher: str | None, sum_of: Callable[[], int]
    ) -> None:
        def work() -> None:
            if sum_of() != selection.crc32(slide, teacher):
                raise _damage_error(selection, slide, teacher)

        self._run_once(selection, slide, teacher, work)

    def _run_once(
        self, selection: Selection, slide: int, part: str | None, work: Callable[[], None]
    ) -> None:
        """Do some work on a slide, unless it was done before without an error."""
        number = selection.number(slide)
        key = (selection.mpp, part)
        if self._is_done(selection, slide, part):
            return
        with self._lock:
            gate = self._gates.setdefault((*key, number), threading.Lock())
        with gate:
            if not self._is_done(selection, slide, part):
                work()
                with self._lock:
                    self._compared.setdefault(key, set()).add(number)
        with self._lock:
            self._gates.pop((*key, number), None)


def place_of(selection: Selection, slide: int) -> str:
    """Return a slide's name and mpp, for messages."""
    return f"slide {selection.slide_ids[slide]} at mpp {mpp_name(selection.mpp)}"


def tiles_sum(reader: RowReader, selection: Selection, slide: int) -> int:
    """Return the checksum of a slide's rows as they are in the table."""
    place = selection.place(slide)
    with reading(reader.store, f"{place_of(selection, slide)}: its tiles can't be read"):
        table = reader.tiles(*place)
        names = set(table["slide_id"].unique().to_pylist())
        if names != {selection.slide_ids[slide]}:
            msg = f"rows are of {sorted(map(str, names))[:2]}"
            raise DamageError(msg)
        return tiles_crc32(table)


def features_sum(reader: RowReader, selection: Selection, slide: int, teacher: str) -> int:
    """Return the checksum of a teacher's features of a slide in the table, read in parts."""
    fragment, start, rows = selection.place(slide)
    crc = 0
    subject = f"{place_of(selection, slide)}: features of '{teacher}' can't be read"
    with reading(reader.store, subject):
        for at in range(0, rows, PART_ROWS):
            count = min(PART_ROWS, rows - at)
            crc = features_crc32(reader.stored(fragment, start + at, count, teacher), crc)
    return crc


def _damage_error(selection: Selection, slide: int, teacher: str | None) -> DamageError:
    subject = "its tiles' rows" if teacher is None else f"features of '{teacher}'"
    return DamageError(
        f"{place_of(selection, slide)}: {subject} are not what was written (checksum); {ADVICE}"
    )
