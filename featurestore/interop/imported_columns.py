"""Import of one teacher's features at one mpp: one file for each fragment of the lake.

A fragment that has the teacher on some slides already gets a new file with these and the new
ones: Lance replaces a fragment's column as a whole.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
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
from featurestore.interop.formats import (
    FORMATS,
    problem_of,
    read_features,
    read_tiles,
    reader_of,
)
from featurestore.interop.lake_tiles import tile_places, whole_rows
from featurestore.lake import Lake
from featurestore.messages import counted
from featurestore.tables.column_rows import to_float16
from featurestore.tables.lance_columns import ColumnFile, ColumnWriter
from featurestore.tables.schema import features_table

if TYPE_CHECKING:
    import pyarrow as pa

COMMIT_FRAGMENTS = 16
COMMIT_S = 60.0

Row = dict[str, Any]


class TeacherImport:
    """Import of one teacher's features at one mpp.

    Args:
        lake: the lake at a version that has the slides' tiles.
        mpp: microns per pixel of the tiles, an mpp of the lake.
        teacher: name of the teacher.
        format_name: name of the files' format.
        facts: facts that the files lack.
        on_problem: called for each file that can't be imported.
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
        self.keeps_columns = FORMATS[format_name].keeps_columns
        self._field: pa.Field | None = None
        self._identity: dict[str, Any] | None = None
        self._failed_slides: set[str] = set()

    def run(self, sources: Mapping[str, SlideFiles]) -> Iterator[list[str]]:
        """Import the features of these slides; yield the imported slides after each commit.

        Raises:
            IdentityError: the lake has another encoder of the same name.
        """
        done_slides = self._slides_with_features()
        if done_slides:
            schema = self.lake.table(features_table(self.mpp)).schema
            self._field = schema.field(self.teacher)
        todo = {name: source for name, source in sources.items() if name not in done_slides}
        tiles = self.lake.tiles_of(mpp=self.mpp)
        slides_with_tiles = tiles.filter(
            pl.col("slide_id").is_in(list(todo)) & (pl.col("tiles") > 0)
        )
        files: list[ColumnFile] = []
        imported: list[str] = []
        since = time.monotonic()
        for fragment in sorted(set(slides_with_tiles["fragment"])):
            rows = tiles.filter(pl.col("fragment") == fragment).sort("row_start").to_dicts()
            file, names = self._fragment(fragment, rows, todo, done_slides)
            files += [file] if file else []
            imported += names
            if files and (len(files) >= COMMIT_FRAGMENTS or time.monotonic() - since > COMMIT_S):
                yield self._commit(files, imported)
                files, imported, since = [], [], time.monotonic()
        if files:
            yield self._commit(files, imported)
        self._report_lost_slides(set(slides_with_tiles["slide_id"]), todo)

    def _report_lost_slides(self, expected: set[str], todo: Mapping[str, SlideFiles]) -> None:
        """Call `on_problem` for each expected slide that has no features at the end.

        Another process changed the lake during the import.
        """
        self.lake = self.lake.refreshed()
        for name in sorted(expected - self._failed_slides - self._slides_with_features()):
            source = todo[name]
            msg = "the lake was changed at the same time; run the same import again"
            self.on_problem(problem_of(source, source.features[self.teacher], InteropError(msg)))

    def _slides_with_features(self) -> set[str]:
        if self.teacher not in self.lake.teachers(mpp=self.mpp):
            return set()
        return set(self.lake.features_of(self.teacher, mpp=self.mpp)["slide_id"])

    def _commit(self, files: Sequence[ColumnFile], imported: list[str]) -> list[str]:
        self.lake.committer.commit_columns(self.mpp, files)
        return imported

    def _fragment(
        self,
        fragment: int,
        rows: Sequence[Row],
        todo: Mapping[str, SlideFiles],
        done_slides: set[str],
    ) -> tuple[ColumnFile | None, list[str]]:
        """Return one fragment's column file and its new slides; (None, []) without new slides."""
        table_fragment = self.lake.table(features_table(self.mpp)).get_fragment(fragment)
        physical = table_fragment.physical_rows if table_fragment is not None else 0
        imported: list[str] = []
        with contextlib.ExitStack() as stack:
            writer: ColumnWriter | None = None
            for row in rows if table_fragment is not None else ():
                name = row["slide_id"]
                rows_of_slide = (
                    self._features_of(row, todo[name]) if name in todo and row["tiles"] else None
                )
                if name in done_slides and row["tiles"]:
                    keys = tile_places(self.lake, row)[0]
                    bag = self.lake.bag(name, self.teacher, mpp=self.mpp)
                    rows_of_slide = keys, whole_rows(bag, keys)
                if rows_of_slide is None:
                    continue
                imported += [name] if name in todo else []
                writer = writer or stack.enter_context(self._writer(fragment))
                if row["row_start"] > writer.rows:
                    writer.skip(row["row_start"] - writer.rows)
                _add_rows(writer, row["slide"], *rows_of_slide)
            if writer is None:
                return None, []
            if physical > writer.rows:
                writer.skip(physical - writer.rows)
            for row in rows:
                if not row["tiles"] and (row["slide_id"] in todo or row["slide_id"] in done_slides):
                    # A slide without tiles has all its features, whatever its file looks like.
                    writer.add(row["slide"], *self._no_features())
            file = writer.finish()
        if not imported:
            # No version will ever name it: every new slide of the fragment had a problem.
            self.lake.store.remove([f"{features_table(self.mpp)}/data/{file.path}"])
            return None, []
        return file, imported

    def _writer(self, fragment: int) -> ColumnWriter:
        return ColumnWriter(self.lake.store, self.mpp, self._field, fragment)

    def _no_features(self) -> tuple[Int64Array, FloatArray]:
        dim = self._field.type.list_size if self._field is not None else 0
        return np.zeros(0, np.int64), np.zeros((0, dim), np.float16)

    def _features_of(self, row: Row, source: SlideFiles) -> tuple[Int64Array, FloatArray] | None:
        """Return the keys and features of a slide in the lake's order; None after a problem."""
        path = source.features[self.teacher]
        try:
            tiles = read_tiles(source, self.format, self.facts)
            features = read_features(source, self.format, self.teacher, tiles)
            keys, xy = tile_places(self.lake, row)
            order = order_of(tiles.xy, xy, source.shown(path))
            features = features if order is None else features[order]
            with_features = rows_with_features(features) if self.keeps_columns else slice(None)
            to_float16(features[with_features], keys[with_features], self.teacher)
            features = features.astype(np.float16)
            identity = reader_of(self.format).identity(source, self.teacher)
            if not self.keeps_columns:
                identity = {"imported_from": self.format, **identity}
            self._check_same(identity, features.shape[1])
        except LakeError as error:
            self._failed_slides.add(source.slide_id)
            self.on_problem(problem_of(source, path, error))
            return None
        self._make_column(source, identity, features.shape[1])
        return keys, features

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

    def _make_column(self, source: SlideFiles, identity: dict[str, Any], dim: int) -> None:
        # IdentityError is not caught here: it is of the teacher, not of one file.
        if self._identity is None:
            committer = self.lake.committer
            licence = (
                reader_of(self.format).licence(source, self.teacher) if self.keeps_columns else None
            )
            self._field = committer.add_teacher(self.mpp, self.teacher, dim, identity, licence)
            self._identity = identity
            self.lake = self.lake.refreshed()


def rows_with_features(features: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which tiles have features [N]: those that a teacher left out are NaN throughout."""
    return np.asarray(~np.isnan(features).all(axis=1))


def _add_rows(writer: ColumnWriter, slide: int, keys: Int64Array, features: FloatArray) -> None:
    """Append a slide's features [N, D] to a column, with NaN for tiles that were left out.

    Raises:
        LakeError: the width is not the column's, or a value can't be stored.
    """
    has_features = rows_with_features(features)
    if has_features.all():
        writer.add(slide, keys, features)
        return
    dim = writer.field.type.list_size
    if features.shape != (len(keys), dim):
        tiles, width = counted(len(keys), "tile"), counted(dim, "value")
        msg = f"features {features.shape} for {tiles}; the column holds {width} a tile"
        raise InteropError(msg)
    to_float16(features[has_features], keys[has_features], writer.field.name)
    writer.append(slide, features.astype(np.float16))
