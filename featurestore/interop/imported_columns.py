"""Import of one teacher's features at one mpp: one file for each fragment of the lake.

A fragment that has the teacher on some slides already gets a new file with these and the new
ones: Lance replaces a fragment's column as a whole.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from featurestore.errors import LakeError
from featurestore.interop.aligned_rows import order_of
from featurestore.interop.foreign_slide import (
    FloatArray,
    ImportFacts,
    Int64Array,
    InteropError,
    Problem,
    SlideFiles,
)
from featurestore.interop.formats import problem_of, read_features, read_tiles, reader_of
from featurestore.interop.lake_tiles import tile_places
from featurestore.lake import Lake
from featurestore.tables.lance_columns import ColumnFile, ColumnWriter, to_float16
from featurestore.tables.schema import features_table

if TYPE_CHECKING:
    import pyarrow as pa

COMMIT_FRAGMENTS = 16
COMMIT_S = 60.0

Row = dict[str, Any]


class TeacherImport:
    """Takes one teacher's features at one mpp.

    Args:
        lake: at a version that has the slides' tiles.
        mpp: the lake's own.
        teacher: its name.
        format_name: the tool that the files are of.
        facts: facts that the files lack.
        on_problem: called for each file that can't be taken.
    """

    def __init__(
        self,
        lake: Lake,
        *,
        mpp: float,
        teacher: str,
        format_name: str,
        facts: ImportFacts,
        on_problem: Callable[[Problem], None],
    ) -> None:
        self.lake, self.mpp, self.teacher = lake, mpp, teacher
        self.format, self.facts, self.on_problem = format_name, facts, on_problem
        self._field: pa.Field | None = None
        self._identity: dict[str, Any] | None = None
        self._bad: set[str] = set()

    def run(self, sources: Mapping[str, SlideFiles]) -> Iterator[list[str]]:
        """Take the features of these slides; gives those taken after each commit.

        Raises:
            IdentityError: the lake has another encoder of the same name.
        """
        have = self._have()
        if have:
            schema = self.lake.table(features_table(self.mpp)).schema
            self._field = schema.field(self.teacher)
        todo = {name: source for name, source in sources.items() if name not in have}
        tiles = self.lake.tiles_of(mpp=self.mpp)
        slides_with_tiles = tiles.filter(
            pl.col("slide_id").is_in(list(todo)) & (pl.col("tiles") > 0)
        )
        files: list[ColumnFile] = []
        taken: list[str] = []
        since = time.monotonic()
        for fragment in sorted(set(slides_with_tiles["fragment"])):
            rows = tiles.filter(pl.col("fragment") == fragment).sort("row_start").to_dicts()
            file, names = self._fragment(fragment, rows, todo, have)
            files += [file] if file else []
            taken += names
            if files and (len(files) >= COMMIT_FRAGMENTS or time.monotonic() - since > COMMIT_S):
                yield self._commit(files, taken)
                files, taken, since = [], [], time.monotonic()
        if files:
            yield self._commit(files, taken)
        self._check_all(set(slides_with_tiles["slide_id"]), todo)

    def _check_all(self, expected: set[str], todo: Mapping[str, SlideFiles]) -> None:
        """Report slides without features: they were replaced or compacted since the start."""
        self.lake = self.lake.refreshed()
        for name in sorted(expected - self._bad - self._have()):
            source = todo[name]
            msg = "the lake was changed at the same time; run the same import again"
            self.on_problem(problem_of(source, source.features[self.teacher], InteropError(msg)))

    def _have(self) -> set[str]:
        if self.teacher not in self.lake.teachers(mpp=self.mpp):
            return set()
        return set(self.lake.features_of(self.teacher, mpp=self.mpp)["slide_id"])

    def _commit(self, files: Sequence[ColumnFile], taken: list[str]) -> list[str]:
        self.lake.committer.commit_columns(self.mpp, files)
        return taken

    def _fragment(
        self, fragment: int, rows: Sequence[Row], todo: Mapping[str, SlideFiles], have: set[str]
    ) -> tuple[ColumnFile | None, list[str]]:
        """Return one fragment's file and the new slides in it; no file if there are none."""
        table_fragment = self.lake.table(features_table(self.mpp)).get_fragment(fragment)
        physical = table_fragment.physical_rows if table_fragment is not None else 0
        taken: list[str] = []
        with contextlib.ExitStack() as stack:
            writer: ColumnWriter | None = None
            for row in rows if table_fragment is not None else ():
                name = row["slide_id"]
                values = self._new(row, todo[name]) if name in todo and row["tiles"] else None
                if name in have and row["tiles"]:
                    bag = self.lake.bag(name, self.teacher, mpp=self.mpp)
                    values = bag.tile_id, bag.features
                if values is None:
                    continue
                taken += [name] if name in todo else []
                writer = writer or stack.enter_context(self._writer(fragment))
                if row["row_start"] > writer.rows:
                    writer.skip(row["row_start"] - writer.rows)
                writer.add(row["slide"], *values)
            if writer is None:
                return None, []
            if physical > writer.rows:
                writer.skip(physical - writer.rows)
            for row in rows:
                if not row["tiles"] and (row["slide_id"] in todo or row["slide_id"] in have):
                    # A slide without tiles has all its features, whatever its file looks like.
                    writer.add(row["slide"], *self._nothing())
            file = writer.finish()
        if not taken:
            # No version will ever name it: every new slide of the fragment had a problem.
            self.lake.store.remove([f"{features_table(self.mpp)}/data/{file.path}"])
            return None, []
        return file, taken

    def _writer(self, fragment: int) -> ColumnWriter:
        return ColumnWriter(self.lake.store, self.mpp, self._field, fragment)

    def _nothing(self) -> tuple[Int64Array, FloatArray]:
        dim = self._field.type.list_size if self._field is not None else 0
        return np.zeros(0, np.int64), np.zeros((0, dim), np.float16)

    def _new(self, row: Row, source: SlideFiles) -> tuple[Int64Array, FloatArray] | None:
        """Return the keys and features of a slide in the lake's order; None after a problem."""
        path = source.features[self.teacher]
        try:
            tiles = read_tiles(source, self.format, self.facts)
            values = read_features(source, self.format, self.teacher, tiles)
            keys, xy = tile_places(self.lake, row)
            order = order_of(tiles.xy, xy, str(path))
            values = to_float16(values if order is None else values[order], keys, self.teacher)
            identity = {
                "imported_from": self.format,
                **reader_of(self.format).identity(source, self.teacher),
            }
            self._check_same(identity, values.shape[1])
        except LakeError as error:
            self._bad.add(source.slide_id)
            self.on_problem(problem_of(source, path, error))
            return None
        self._make_column(identity, values.shape[1])
        return keys, values

    def _check_same(self, identity: dict[str, Any], dim: int) -> None:
        if self._field is None or self._identity is None:
            return
        if dim != self._field.type.list_size or identity != self._identity:
            msg = (
                f"features of {dim} dimensions by {identity}, but '{self.teacher}' has "
                f"{self._field.type.list_size} by {self._identity}; give this folder another name "
                "with --teacher NAME=FOLDER"
            )
            raise InteropError(msg)

    def _make_column(self, identity: dict[str, Any], dim: int) -> None:
        # IdentityError is not caught here: it is of the teacher, not of one file.
        if self._identity is None:
            committer = self.lake.committer
            self._field = committer.add_teacher(self.mpp, self.teacher, dim, identity)
            self._identity = identity
            self.lake = self.lake.refreshed()
