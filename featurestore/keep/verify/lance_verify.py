"""The comparison of a lake with what was committed: rows, counts, key order, checksums, files.

Reads every byte that a checksum covers, slide after slide, so memory does not grow with the lake's
pixels, pictures and features. First the files by which tables are read, without Lance, which may
end the process over a damaged one; then `slides` and `catalog`; then, if these can be believed,
what they name. A table that can't be read in full is named as a whole, all else by slide.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa

from featurestore.errors import DamageError, LakeError
from featurestore.keep.verify.checked_reads import NO_DAMAGE, UnreadableError, read
from featurestore.keep.verify.compact_rows import CatalogRows, groups_of
from featurestore.keep.verify.damage import (
    FEATURES,
    SHARD,
    SHARD_INDEX,
    STRAY,
    TABLE,
    TILES,
    Damage,
    Verdict,
)
from featurestore.keep.verify.file_checks import FILE_CHECKS
from featurestore.keep.verify.lance_checked_rows import checked_catalog, checked_slides
from featurestore.keep.verify.lance_versions import whole_versions
from featurestore.keep.verify.last_verified import record_verified
from featurestore.keep.verify.mismatched_rows import misfits
from featurestore.keep.verify.root_files import roots_damage
from featurestore.lake import Lake
from featurestore.roots.lance_roots import check_newest, lake_tables
from featurestore.roots.roots_file import GONE, Roots, readable_roots
from featurestore.shards.shard_index import ShardIndex, index_path, scan_shard
from featurestore.shards.tar_shards import ShardReader
from featurestore.storage.read_errors import reason_of
from featurestore.tables.checksums import tiles_crc32
from featurestore.tables.column_parts import part_files
from featurestore.tables.lance_rows import column_crc32
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import CATALOG, SLIDES, TILE_COLUMNS, features_table

Row = dict[str, Any]
#: Number of fragments of which catalog rows are read at once (some thousand rows).
FRAGMENTS_AT_ONCE = 16


def verify(
    lake: Lake,
    *,
    sample: float = 1.0,
    seed: int = 0,
    on_total: Callable[[int], None] = lambda _: None,
    on_slide: Callable[[int], None] = lambda _: None,
    on_table: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Compare a lake with its catalog, and the catalog with what the last commit wrote down.

    Args:
        lake: the lake at the version to check.
        sample: share of slides to check with tiles, features and shards; files and rows of
            `slides` and `catalog` and the presence of fragments are checked for all.
        seed: another seed samples other slides.
        on_total: called once with the number of slides to read, each mpp counted.
        on_slide: called with 1 after each slide at each mpp.
        on_table: called with the table that is read next.

    Raises:
        AccessError: something, or the bucket, could not be read now. That is no damage, and
            there is no verdict.

    Examples:
        >>> verdict = sl.verify(sl.open_lake("my-lake"))
        >>> verdict.ok, verdict.checked["slides"]
        (True, 13)
    """
    verdict = Verdict(version=lake.version)
    if not lake.is_pinned:
        verdict.damage += _damage_before_reading(lake)
        parts = part_files(lake.store)
        verdict.parts = {"files": len(parts), "bytes": sum(file.bytes for file in parts)}
    broken = {one.path for one in verdict.broken_tables}
    slides = catalog = None
    if SLIDES not in broken:
        on_table(SLIDES)
        slides = checked_slides(lake.store, lake.version_of(SLIDES), verdict.damage)
        verdict.checked["slides"] = 0 if slides is None else slides.count
    if CATALOG not in broken:
        on_table(CATALOG)
        catalog = checked_catalog(lake.store, lake.version, verdict.damage)
    if catalog is not None:
        verdict.damage += misfits(slides, catalog)
        del slides
        chosen = _sampled_slides(catalog, sample, seed)
        on_total(_count(catalog, chosen))
        _check_grids(lake, catalog, verdict, chosen, on_slide, on_table)
    if verdict.broken_tables:
        verdict.whole = whole_versions(lake.store, lake.config)
        return verdict
    for check in FILE_CHECKS:
        verdict.damage += check.damage(lake)
        if missing := check.missing(lake):
            verdict.unchecked[check.name] = missing
    if verdict.ok and sample >= 1:
        record_verified(lake.store, lake.version)
    return verdict


def _count(catalog: CatalogRows, chosen: set[int] | None) -> int:
    tiles = catalog.tiles_rows
    if chosen is None:
        return len(tiles)
    return int(np.count_nonzero(np.isin(catalog.slide[tiles], list(chosen))))


def _damage_before_reading(lake: Lake) -> Iterator[Damage]:
    """Yield damaged files of tables, and tables that open at less than was committed."""
    roots = readable_roots(lake.store)
    behind = roots is not None and roots.tables[CATALOG] < lake.version
    # After a kill the file is of the version before, whose own files may have been removed.
    damage = [
        one for one in roots_damage(lake.store) if not (behind and one.description.endswith(GONE))
    ]
    yield from damage
    broken = {one.path for one in damage if one.part == TABLE}
    for rel in lake_tables(lake.config):
        if rel in broken:
            continue
        named = Roots(tables={rel: lake.version_of(rel)})
        try:
            version = read(lake.store, functools.partial(open_table, lake.store, rel)).version
            for last in (roots, named):
                check_newest(lake.store, rel, version, last)
        except (UnreadableError, DamageError) as error:
            yield Damage(description=f"table {rel}: {error}", part=TABLE, path=rel)


def _check_grids(
    lake: Lake,
    catalog: CatalogRows,
    verdict: Verdict,
    chosen: set[int] | None,
    on_slide: Callable[[int], None],
    on_table: Callable[[str], None],
) -> None:
    broken = {one.path for one in verdict.broken_tables}
    for mpp in lake.config.mpps:
        rel = features_table(mpp)
        if rel in broken:
            continue
        on_table(rel)
        try:
            judge_strays = not broken & {SLIDES, CATALOG}
            grid = _GridCheck(lake, mpp, catalog, verdict, judge_strays=judge_strays)
            grid.check(chosen, on_slide)
        except NO_DAMAGE:
            raise
        except (LakeError, UnreadableError) as error:
            text = f"table {rel} can't be read: {error}"
            verdict.damage.append(Damage(mpp=mpp, description=text, part=TABLE, path=rel))


def _damage_of(row: Row, part: str, text: str) -> Damage:
    return Damage(
        slide=row["slide_id"],
        mpp=row["mpp"],
        teacher=row.get("teacher"),
        description=text,
        part=part,
        fragment=row["fragment"],
        number=row["slide"],
    )


def _sampled_slides(catalog: CatalogRows, share: float, seed: int) -> set[int] | None:
    """Return the numbers of the slides to read in full; None for all."""
    if share >= 1:
        return None

    def rank(slide: int) -> float:
        digest = hashlib.sha256(f"{seed}:{slide}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64

    return {slide for slide in np.unique(catalog.slide).tolist() if rank(slide) < share}


def _tiles_fault(table: pa.Table, row: Row) -> tuple[np.typing.NDArray[np.int64], str]:
    """Return the tile keys of a slide's rows, and the fault as text; empty without a fault."""
    ids: np.typing.NDArray[np.int64] = table["tile_id"].to_numpy()
    slides = set(zip(table["slide"].to_pylist(), table["slide_id"].to_pylist(), strict=True))
    if len(ids) != row["tiles"] or slides != {(row["slide"], row["slide_id"])}:
        return ids, f"rows are not the {row['tiles']} of this slide"
    if np.any(np.diff(ids) <= 0):
        return ids, "rows are not in the order of their keys"
    return ids, "" if tiles_crc32(table) == row["crc32"] else "checksum of its tiles' rows differs"


class _GridCheck:
    """The check of all slides at one mpp.

    Args:
        lake: the lake.
        mpp: microns per pixel of the features table.
        catalog: the catalog's rows.
        verdict: counts and damage are added to it.
        judge_strays: whether rows that the catalog does not name are damage: they are not if the
            catalog itself is in doubt.
    """

    def __init__(
        self,
        lake: Lake,
        mpp: float,
        catalog: CatalogRows,
        verdict: Verdict,
        *,
        judge_strays: bool,
    ) -> None:
        self.lake, self.mpp, self.verdict = lake, mpp, verdict
        self.judge_strays = judge_strays
        rel = features_table(mpp)
        self.table = read(lake.store, lambda: open_table(lake.store, rel, lake.version_of(rel)))
        self.catalog = catalog

    def check(self, chosen: set[int] | None, on_slide: Callable[[int], None]) -> None:
        """Check every fragment, and the chosen slides (all if None) in full."""
        fragments = {f.fragment_id: f for f in read(self.lake.store, self.table.get_fragments)}
        unnamed = set(fragments)
        for number, part in self._parts():
            unnamed.discard(number)
            self._fragment(number, fragments.get(number), part, chosen, on_slide)
        for number in unnamed:
            self._strays(fragments[number], set())

    def _parts(self) -> Iterator[tuple[int, list[Row]]]:
        """Yield each fragment's number and catalog rows; a few fragments are read at once."""
        positions = self.catalog.at_mpp(self.mpp)
        numbers = self.catalog.fragment[positions]
        starts = groups_of(numbers)[0]
        bounds = [*starts.tolist(), len(numbers)]
        for at in range(0, len(starts), FRAGMENTS_AT_ONCE):
            some = bounds[at : at + FRAGMENTS_AT_ONCE + 1]
            rows = self.catalog.rows(positions[some[0] : some[-1]])
            for start, stop in itertools.pairwise(some):
                yield int(numbers[start]), rows[start - some[0] : stop - some[0]]

    def _fragment(
        self,
        number: int,
        fragment: lance.LanceFragment | None,
        part: Sequence[Row],
        chosen: set[int] | None,
        on_slide: Callable[[int], None],
    ) -> None:
        rows = [row for row in part if row["teacher"] is None]
        if fragment is None and any(row["tiles"] for row in rows):
            self._add(rows, TILES, f"fragment {number} is not in its table")
            return
        teachers: dict[int, list[Row]] = {}
        for row in part:
            if row["teacher"] is not None:
                teachers.setdefault(row["slide"], []).append(row)
        at = 0
        for row in rows:
            if chosen is None or row["slide"] in chosen:
                self._slide(row, fragment, at, teachers.get(row["slide"], []))
                on_slide(1)
            at += row["tiles"]
        if fragment is not None:
            self._count(fragment, rows, at)

    def _add(self, rows: Sequence[Row], part: str, text: str, path: str | None = None) -> None:
        self.verdict.damage += [replace(_damage_of(row, part, text), path=path) for row in rows]

    def _count(self, fragment: lance.LanceFragment, rows: Sequence[Row], tiles: int) -> None:
        try:
            if read(self.lake.store, fragment.count_rows) > tiles:
                self._strays(fragment, {row["slide"] for row in rows})
        except UnreadableError as error:
            self._add(rows, TILES, f"fragment {fragment.fragment_id} can't be counted: {error}")

    def _strays(self, fragment: lance.LanceFragment, named: set[int]) -> None:
        if not self.judge_strays:
            return
        try:
            slides = read(self.lake.store, fragment.scanner(columns=["slide", "slide_id"]).to_table)
        except UnreadableError:
            return  # its slides are named already
        for slide, slide_id in pl.DataFrame(slides).unique().iter_rows():
            if slide not in named:
                row = {"slide": slide, "slide_id": slide_id, "mpp": self.mpp}
                row["fragment"] = fragment.fragment_id
                self._add([row], STRAY, "rows that the catalog does not name")

    def _slide(
        self, row: Row, fragment: lance.LanceFragment | None, at: int, teachers: Sequence[Row]
    ) -> None:
        self.verdict.checked["tiles"] += row["tiles"]
        tile_id = None
        if fragment is not None and row["tiles"]:
            tile_id = self._tiles(row, fragment, at)
        for teacher_row in teachers:
            if fragment is not None and row["tiles"]:
                self._features(teacher_row, fragment, at)
        if row["shard"]:
            self._shard(row, tile_id)

    def _range(
        self, fragment: lance.LanceFragment, row: Row, at: int, names: list[str]
    ) -> pa.Table:
        scanner = fragment.scanner(columns=names, offset=at, limit=row["tiles"])
        table: pa.Table = read(self.lake.store, scanner.to_table)
        self.verdict.checked["bytes"] += table.nbytes
        return table

    def _tiles(
        self, row: Row, fragment: lance.LanceFragment, at: int
    ) -> np.typing.NDArray[np.int64] | None:
        try:
            table = self._range(fragment, row, at, list(TILE_COLUMNS))
            ids, fault = read(self.lake.store, lambda: _tiles_fault(table, row))
        except UnreadableError as error:
            self._add([row], TILES, f"rows can't be read: {error}")
            return None
        if fault:
            self._add([row], TILES, fault)
        return ids

    def _features(self, row: Row, fragment: lance.LanceFragment, at: int) -> None:
        self.verdict.checked["features"] += 1
        try:
            table = self._range(fragment, row, at, [row["teacher"]])
            crc32 = read(self.lake.store, lambda: column_crc32(table, row["teacher"]))
        except UnreadableError as error:
            self._add([row], FEATURES, f"features can't be read: {error}")
            return
        if crc32 != row["crc32"]:
            self._add([row], FEATURES, "checksum of its features differs")

    def _shard(self, row: Row, tile_id: np.typing.NDArray[np.int64] | None) -> None:
        self.verdict.checked["shards"] += 1
        path = row["shard"]
        try:
            unchecked = row.get("index_crc32") is None
            scanned = scan_shard(self.lake.store, path, with_index=unchecked)
        except NO_DAMAGE:
            raise
        except (LakeError, OSError) as error:
            explanation = self.lake.store.explained(error)
            if explanation:
                raise explanation from error
            self._add([row], SHARD, f"shard {path} can't be read: {reason_of(error)}")
            return
        self.verdict.checked["bytes"] += scanned.bytes
        if (scanned.bytes, scanned.crc32) != (row["shard_bytes"], row["shard_crc32"]):
            self._add([row], SHARD, f"checksum of shard {path} differs")
        else:
            self._shard_index(row, scanned.index, tile_id)

    def _shard_index(
        self,
        row: Row,
        from_tar: ShardIndex | None,
        tile_id: np.typing.NDArray[np.int64] | None,
    ) -> None:
        """Compare an index with its checksum, with the tar itself and with the table's keys."""
        path = index_path(row["shard"])
        try:
            with ShardReader.of(self.lake.store, row) as reader:
                same = tile_id is None or np.array_equal(reader.tile_id, tile_id)
                same = same and (from_tar is None or reader.index == from_tar)
        except NO_DAMAGE:
            raise
        except LakeError as error:
            self._add([row], SHARD_INDEX, str(error), path)
            return
        if not same:
            self._add([row], SHARD_INDEX, f"{path} is not the index of its tiles", path)
