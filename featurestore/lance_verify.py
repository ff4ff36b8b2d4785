"""Whether a lake still holds what was committed: rows, counts, key order, checksums, files.

Reads every byte that a checksum covers, slide after slide, so memory does not grow with the lake.
A table that can't be read at all is named as a whole; everything else by slide, mpp and teacher.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.checksums import features_crc32, row_crc32, tiles_crc32, values_crc32
from featurestore.damage import FEATURES, SHARD, STRAY, TABLE, TILES, Damage, Verdict
from featurestore.errors import BucketError, LakeError, LakeMissingError
from featurestore.lake import Lake
from featurestore.lance_rows import matrix
from featurestore.schema import (
    ANNOTATION,
    CATALOG,
    SLIDES,
    TILE_COLUMNS,
    features_table,
    kind_of,
)
from featurestore.shards import ShardReader
from featurestore.storage import Store

Row = dict[str, Any]
CHUNK_BYTES = 1 << 24
NO_DAMAGE = (BucketError, LakeMissingError)  # nothing is known of what is stored


class _UnreadableError(Exception):
    """Something that can't be read; the text says why."""


def verify(
    lake: Lake,
    *,
    sample: float = 1.0,
    seed: int = 0,
    on_slide: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Compare a lake with its catalog.

    Args:
        lake: at the version to check.
        sample: share of slides whose tiles, features and shards are read; rows of `slides` and
            `catalog` and the presence of fragments are checked for all.
        seed: another seed samples other slides.
        on_slide: called with 1 after each slide at each mpp.

    Raises:
        BucketError: the bucket could not be asked. That is no damage, and nothing is said.
    """
    verdict = Verdict(version=lake.version)
    slides = _rows(lake, SLIDES, verdict)
    catalog = _rows(lake, CATALOG, verdict)
    verdict.checked["slides"] = len(slides)
    verdict.damage += [*_row_damage(slides), *_row_damage(catalog), *_misfits(slides, catalog)]
    for mpp in lake.config.mpps:
        here = [row for row in catalog if row["mpp"] == mpp]
        try:
            _Grid(lake, mpp, here, verdict).check(_sampled(here, sample, seed), on_slide)
        except NO_DAMAGE:
            raise
        except (LakeError, _UnreadableError) as error:
            verdict.damage.append(_of_table(features_table(mpp), mpp, str(error)))
    return verdict


def _rows(lake: Lake, rel: str, verdict: Verdict) -> list[Row]:
    try:
        return list(_read(lake.store, lambda: lake.table(rel).to_table().to_pylist()))
    except NO_DAMAGE:
        raise
    except (LakeError, _UnreadableError) as error:
        verdict.damage.append(_of_table(rel, None, str(error)))
        return []


def _read(store: Store, work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `work` returns
    """Run a read; whatever a damaged file makes Lance raise becomes one kind of error."""
    try:
        return work()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if told := store.explained(error):
            raise told from error
        raise _UnreadableError(" ".join(str(error).split())[:200]) from error


def _of_table(rel: str, mpp: float | None, why: str) -> Damage:
    what = f"table {rel} can't be read: {why}"
    return Damage(slide=None, mpp=mpp, teacher=None, what=what, part=TABLE)


def _of(row: Row, part: str, what: str) -> Damage:
    return Damage(
        slide=row["slide_id"],
        mpp=row.get("mpp") if "tiles" in row else None,
        teacher=row.get("teacher"),
        what=what,
        part=part,
        fragment=row.get("fragment", -1),
        number=row["slide"],
    )


def _row_damage(rows: Sequence[Row]) -> Iterator[Damage]:
    for row in rows:
        if row["row_crc32"] != row_crc32(row):
            yield _of(row, TABLE, "its row is not the one that was written (checksum)")


def _misfits(slides: Sequence[Row], catalog: Sequence[Row]) -> Iterator[Damage]:
    """Rows that are there twice, or name what is not there."""
    known = {row["slide"]: row for row in slides}
    keys = Counter((row["slide"], row["mpp"], row["teacher"]) for row in catalog)
    ids = Counter(row["slide_id"] for row in slides)
    yield from (_of(row, TABLE, "it is there twice") for row in slides if ids[row["slide_id"]] > 1)
    for row in catalog:
        key = (row["slide"], row["mpp"], row["teacher"])
        if keys[key] > 1:
            yield _of(row, TILES, "it is in the catalog twice")
        if keys[row["slide"], row["mpp"], None] == 0:
            yield _of(row, FEATURES, "features without tiles")
        if slides and known.get(row["slide"], {}).get("slide_id") != row["slide_id"]:
            yield _of(row, TILES, "its slide has no row")
    with_tiles = {row["slide"] for row in catalog if row["teacher"] is None}
    for row in slides:
        if row["state"] == "ready" and catalog and row["slide"] not in with_tiles:
            yield _of(row, TABLE, "it is ready, but the catalog has no tiles of it")


def _sampled(rows: Sequence[Row], share: float, seed: int) -> set[int]:
    def rank(slide: int) -> float:
        digest = hashlib.sha256(f"{seed}:{slide}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64

    return {row["slide"] for row in rows if share >= 1 or rank(row["slide"]) < share}


def _column_crc32(table: pa.Table, column: str) -> int:
    """Checksum of a slide's features, or of its tiles' values of an annotation."""
    if kind_of(table.schema.field(column)) == ANNOTATION:
        return values_crc32(table[column].to_pylist())
    return features_crc32(matrix(table[column]))


class _Grid:
    """Checks all slides at one mpp."""

    def __init__(self, lake: Lake, mpp: float, rows: Sequence[Row], verdict: Verdict) -> None:
        self.lake, self.mpp, self.verdict = lake, mpp, verdict
        self.table = lake.table(features_table(mpp))
        self.tiles = sorted(
            (row for row in rows if row["teacher"] is None),
            key=lambda row: (row["fragment"], row["row_start"]),
        )
        self.teachers: dict[int, list[Row]] = {}
        for row in rows:
            if row["teacher"] is not None:
                self.teachers.setdefault(row["slide"], []).append(row)

    def check(self, chosen: set[int], on_slide: Callable[[int], None]) -> None:
        """Check every fragment, and the chosen slides in full."""
        groups: dict[int, list[Row]] = {}
        for row in self.tiles:
            groups.setdefault(row["fragment"], []).append(row)
        fragments = {f.fragment_id: f for f in _read(self.lake.store, self.table.get_fragments)}
        for number, rows in groups.items():
            fragment = fragments.get(number)
            if fragment is None and any(row["tiles"] for row in rows):
                self._add(rows, TILES, f"fragment {number} is not in its table")
                continue
            at = 0
            for row in rows:
                if row["slide"] in chosen:
                    self._slide(row, fragment, at)
                    on_slide(1)
                at += row["tiles"]
            if fragment is not None:
                self._count(fragment, rows, at)
        for number in set(fragments) - set(groups):
            self._strays(fragments[number], set())

    def _add(self, rows: Sequence[Row], part: str, what: str) -> None:
        self.verdict.damage += [_of(row, part, what) for row in rows]

    def _count(self, fragment: lance.LanceFragment, rows: Sequence[Row], tiles: int) -> None:
        try:
            if _read(self.lake.store, fragment.count_rows) > tiles:
                self._strays(fragment, {row["slide"] for row in rows})
        except _UnreadableError as error:
            self._add(rows, TILES, f"fragment {fragment.fragment_id} can't be counted: {error}")

    def _strays(self, fragment: lance.LanceFragment, named: set[int]) -> None:
        read = fragment.scanner(columns=["slide", "slide_id"]).to_table
        try:
            there = pl.DataFrame(_read(self.lake.store, read)).unique()
        except _UnreadableError:
            return  # its slides are named already
        for slide, slide_id in there.iter_rows():
            if slide not in named:
                row = {"slide": slide, "slide_id": slide_id, "mpp": self.mpp, "tiles": 0}
                row["fragment"] = fragment.fragment_id
                self._add([row], STRAY, "rows that the catalog does not name")

    def _slide(self, row: Row, fragment: lance.LanceFragment | None, at: int) -> None:
        self.verdict.checked["tiles"] += row["tiles"]
        tile_id = None
        if fragment is not None and row["tiles"]:
            tile_id = self._tiles(row, fragment, at)
        for found in self.teachers.get(row["slide"], []):
            if fragment is not None and row["tiles"]:
                self._features(found, fragment, at)
        if row["shard"]:
            self._shard(row, tile_id)

    def _range(
        self, fragment: lance.LanceFragment, row: Row, at: int, names: list[str]
    ) -> pa.Table:
        scanner = fragment.scanner(columns=names, offset=at, limit=row["tiles"])
        table: pa.Table = _read(self.lake.store, scanner.to_table)
        self.verdict.checked["bytes"] += table.nbytes
        return table

    def _tiles(
        self, row: Row, fragment: lance.LanceFragment, at: int
    ) -> np.typing.NDArray[np.int64] | None:
        try:
            table = self._range(fragment, row, at, list(TILE_COLUMNS))
        except _UnreadableError as error:
            self._add([row], TILES, f"rows can't be read: {error}")
            return None
        ids: np.typing.NDArray[np.int64] = table["tile_id"].to_numpy()
        names = {(row["slide"], row["slide_id"])}
        found = set(zip(table["slide"].to_pylist(), table["slide_id"].to_pylist(), strict=True))
        if len(ids) != row["tiles"] or found != names:
            self._add([row], TILES, f"rows are not the {row['tiles']} of this slide")
        elif np.any(np.diff(ids) <= 0):
            self._add([row], TILES, "rows are not in the order of their keys")
        elif tiles_crc32(table) != row["crc32"]:
            self._add([row], TILES, "checksum of its tiles' rows differs")
        return ids

    def _features(self, row: Row, fragment: lance.LanceFragment, at: int) -> None:
        self.verdict.checked["features"] += 1
        try:
            table = self._range(fragment, row, at, [row["teacher"]])
            same = _column_crc32(table, row["teacher"]) == row["crc32"]
        except NO_DAMAGE:
            raise
        except (_UnreadableError, LakeError, KeyError) as error:
            self._add([row], FEATURES, f"features can't be read: {error}")
            return
        if not same:
            self._add([row], FEATURES, "checksum of its features differs")

    def _shard(self, row: Row, tile_id: np.typing.NDArray[np.int64] | None) -> None:
        self.verdict.checked["shards"] += 1
        path = row["shard"]
        try:
            with ShardReader(self.lake.store, path) as reader:
                same = tile_id is None or np.array_equal(reader.tile_id, tile_id)
            size, crc = self._file_crc(path)
        except NO_DAMAGE:
            raise
        except (LakeError, OSError) as error:
            self._add([row], SHARD, f"shard can't be read: {error}")
            return
        if size != row["shard_bytes"] or crc != row["shard_crc32"]:
            self._add([row], SHARD, f"checksum of shard {path} differs")
        elif not same:
            self._add([row], SHARD, f"the index of shard {path} is not of its tiles")

    def _file_crc(self, path: str) -> tuple[int, int]:
        size, crc = self.lake.store.size(path), 0
        for start in range(0, size, CHUNK_BYTES):
            crc = zlib.crc32(self.lake.store.read_range(path, start, CHUNK_BYTES), crc)
        self.verdict.checked["bytes"] += size
        return size, crc
