"""A lake for its readers: one consistent version of all tables, and the files beside them."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurestore.codecs.codec_files import read_codec
from featurestore.commits.lance_commit import FEW_SLIDES, Committer
from featurestore.commits.lance_ledger import among_names, root_versions
from featurestore.config import LakeConfig
from featurestore.errors import LakeError
from featurestore.ids import mpp_code, mpp_name
from featurestore.licences import Licence, field_licence
from featurestore.messages import did_you_mean
from featurestore.notebook.lake_card import lake_line, lake_page
from featurestore.notebook.thumbnail import decoded_thumbnail
from featurestore.query.lance_nearest import SearchedColumn, nearest, queries_of, slide_filter
from featurestore.query.lance_nearest_codes import nearest_by_codes
from featurestore.query.lance_scan import Decoder, as_type, scan
from featurestore.read.bags import Bag, names_of, read_slides
from featurestore.read.first_reads import FIRST_READ, Check, FirstReads
from featurestore.read.lake_view import similar_slide
from featurestore.read.pairs import Pairs, read_pairs
from featurestore.read.select_slides import BagPlaces
from featurestore.read.stream_order import Order, chosen_order
from featurestore.roots.lance_roots import newest_catalog, open_checked, record_roots
from featurestore.roots.roots_file import Roots, readable_roots
from featurestore.roots.snapshots import read_snapshots
from featurestore.storage.full_disk import naming_full_disk
from featurestore.storage.read_errors import reading
from featurestore.storage.store import Store
from featurestore.tables import lance_annotations as registry
from featurestore.tables import lance_slide_encodings
from featurestore.tables.annotation import TILE, Annotation
from featurestore.tables.lance_counts import count_states, count_tiles
from featurestore.tables.lance_held import new_session
from featurestore.tables.lance_rows import RowReader, Rows
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import (
    CATALOG,
    CATALOG_SCHEMA,
    DROPPED,
    OTHER,
    SLIDES,
    SLIDES_SCHEMA,
    TILE_COLUMNS,
    dim_of,
    features_table,
    identity_of,
    is_quantised,
    is_teacher,
    kind_of,
)
from featurestore.tables.slide_encoding import SlideEncoding, is_slide_encoding

if TYPE_CHECKING:
    from anndata import AnnData
    from PIL import Image

    from featurestore.encodings.encoded import EncodedRows
    from featurestore.pixels.tile_pixels import Decode
    from featurestore.read.slide_means import MeanType
    from featurestore.read.stream import Stream
    from featurestore.read.stream_tiles import Pixels
    from featurestore.read.torch_bags import Bags, By
    from featurestore.read.webdataset_tiles import TilePipeline, TilePixels


SNAPSHOT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
PICTURES = ("thumbnail", "tissue_mask")
BULKY = (*PICTURES, "icc_profile")
#: Names that the packages of slidelake use; `dir(lake)`, which notebooks complete by, hides them.
PLUMBING = {
    *("catalog_rows", "check_teacher", "committer", "content_key", "encoded"),
    *("exists", "features_of"),
    *("first_reads", "is_pinned", "known_mpp", "places_of", "read_bytes", "read_json"),
    *("row_reader", "slide_rows", "store", "table", "tiles_of", "version_of"),
    *("write_bytes", "write_json"),
}


class Lake:
    """A lake at one version. Open one with `open_lake` or `create_lake`.

    Args:
        store: the lake's files.
        config: settings of the lake.
        version: the version to read, or None for the newest.
        check: whether slides are compared with their checksums at their first read: see
            `open_lake`.
        believed: whether tables are opened as they are, without a look at `roots.json`: for a
            search for damage.
        session: Lance's cache of an earlier version of the same lake; a new one is made without.
        roots: contents of `roots.json`, if they were read already.

    >>> lake = sl.open_lake("my-lake")
    >>> lake.config.mpps, lake.teachers(mpp=0.5)
    ((0.5, 2.0), {'uni2_h': 1536, 'virchow2': 2560, 'student': 64})
    """

    def __init__(
        self,
        store: Store,
        config: LakeConfig,
        version: int | None = None,
        check: Check | None = FIRST_READ,
        *,
        believed: bool = False,
        session: lance.Session | None = None,
        roots: Roots | None = None,
    ) -> None:
        self.store, self.config = store, config
        self._session = session or new_session(store)
        self.first_reads = FirstReads(check)
        #: Whether the version was chosen; if not, the newest was opened.
        self.is_pinned = version is not None
        self._roots = None if believed else roots or readable_roots(store)
        if believed and version is None:
            version = open_table(store, CATALOG).version
        catalog = (
            newest_catalog(store, self._roots, self._session)
            if version is None
            else self._catalog_at(version)
        )
        self.version: int = catalog.version
        self._versions: dict[str, int] = {CATALOG: self.version, **root_versions(catalog)}
        self._tables = {CATALOG: catalog}
        self._readers: dict[str, RowReader] = {}
        self._dims: dict[float, dict[str, int]] = {}
        self._encoded: dict[str, EncodedRows] = {}
        self._places = BagPlaces(self)

    def _catalog_at(self, version: int) -> lance.LanceDataset:
        return open_checked(self.store, CATALOG, version, self._roots, self._session)

    def __reduce__(self) -> tuple[type["Lake"], tuple[Store, LakeConfig, int, Check | None]]:
        return Lake, (self.store, self.config, self.version, self.first_reads.check)

    def __repr__(self) -> str:
        return lake_line(self)

    def _repr_html_(self) -> str:
        return lake_page(self)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in PLUMBING]

    @property
    def uri(self) -> str:
        """Return the folder or URL of the lake.

        >>> sl.open_lake("my-lake").uri.endswith("/my-lake")
        True
        """
        return self.store.uri

    def refreshed(self) -> "Lake":
        """Return the same lake at its newest version.

        >>> lake.refreshed().version >= lake.version
        True
        """
        return Lake(self.store, self.config, check=self.first_reads.check, session=self._session)

    def snapshots(self) -> dict[str, int]:
        """Return the versions named by `snapshot`, by name; vacuum keeps them.

        Raises:
            DamageError: the file of a snapshot is gone or damaged.

        >>> "no-such-name" in lake.snapshots()
        False
        """
        return read_snapshots(self.store)

    def snapshot(self, name: str) -> None:
        """Name this version, so that it can be opened by name and is never vacuumed.

        Raises:
            LakeError: the name is taken by another version, or has other characters than letters,
                digits and `_ . -`.

        >>> lake.snapshot("paper-v1")
        >>> lake.snapshots()["paper-v1"] == lake.version
        True
        """
        taken = self.snapshots().get(name)
        if taken == self.version:
            return
        if taken is not None or not SNAPSHOT_NAME.fullmatch(name):
            why = f"is taken by version {taken}" if taken else "can't be one: use letters _ . -"
            msg = f"snapshot '{name}' {why}"
            raise LakeError(msg)
        with naming_full_disk(self.uri), self.committer.exclusive():
            self.table(CATALOG).tags.create(name, self.version)
            record_roots(self.store, self.config)

    def version_of(self, rel: str) -> int:
        """Return the version of a table that belongs to this version of the lake."""
        version: int = self._versions[rel]
        return version

    @property
    def committer(self) -> Committer:
        """Return the committer, which changes this lake."""
        return Committer(self.store, self.config, self._session)

    # ------------------------------------------------------------------ tables

    def table(self, rel: str) -> lance.LanceDataset:
        """Return a table of this version; Lance opens it once, since it never changes."""
        if rel not in self._tables:
            if rel not in self._versions:  # a table of an annotation, which is never changed
                self._tables[rel] = open_table(self.store, rel, session=self._session)
                return self._tables[rel]
            table = open_checked(self.store, rel, self._versions[rel], self._roots, self._session)
            self._tables[rel] = table
        return self._tables[rel]

    def slides(self) -> pl.LazyFrame:
        """Return one row per slide: identity, geometry, state, reason of failure; no pictures.

        >>> lake.slides().select("slide_id", "patient_id").collect().rows()
        [('P000-1', 'P000'), ('P000-2', 'P000'), ('P001-1', 'P001')]
        """
        names = [name for name in self._names(SLIDES, SLIDES_SCHEMA) if name not in BULKY]
        rows = scan(functools.partial(self.table, SLIDES), names)
        return rows.filter(pl.col("state") != DROPPED)

    def catalog(self) -> pl.LazyFrame:
        """Return the rows of the catalog: the places of tiles and features, and their checksums.

        >>> lake.catalog().filter(pl.col("teacher").is_null()).collect().columns[:3]
        ['slide', 'slide_id', 'mpp']
        """
        names = self._names(CATALOG, CATALOG_SCHEMA)
        return scan(functools.partial(self.table, CATALOG), names)

    def _names(self, rel: str, schema: pa.Schema) -> list[str]:
        """Return the columns of a schema that a table has: an early lake may lack the newest."""
        table_columns = set(self.table(rel).schema.names)
        return [name for name in schema.names if name in table_columns]

    def tiles(self, *, mpp: float, dtype: str | None = None) -> pl.LazyFrame:
        """Return one row per tile, with the columns of all teachers and all annotations of tiles.

        Args:
            mpp: microns per pixel of the tiles.
            dtype: type of the features: None for float16, the stored type, or "float32", which
                tools without float16 (DuckDB) need.

        Raises:
            LakeError: another dtype.

        >>> lake.tiles(mpp=0.5).filter(pl.col("x") > 0).select("slide_id", "x").collect().shape
        (31, 2)
        """
        rel = features_table(self.known_mpp(mpp))
        frame = scan(
            functools.partial(self.table, rel), self.table(rel).schema.names, self._decoders(rel)
        )
        return as_type(frame, self.teachers(mpp=mpp), dtype)

    def features(self, teacher: str, *, mpp: float, dtype: str | None = None) -> pl.LazyFrame:
        """Return one row per tile: its place and one teacher's embedding, or null without it.

        Args:
            teacher: name of the column.
            mpp: microns per pixel of the tiles.
            dtype: type of the features: None for float16, the stored type, or "float32".

        Raises:
            LakeError: the teacher has no column at this mpp, or another dtype.

        >>> frame = lake.features("efficientnet_lite0", mpp=0.5).head(5).collect()
        >>> frame["efficientnet_lite0"].to_numpy().shape
        (5, 8)
        """
        rel = features_table(self.known_mpp(mpp))
        self.check_teacher(teacher, mpp=mpp)
        names = [*TILE_COLUMNS, teacher]
        frame = scan(functools.partial(self.table, rel), names, self._decoders(rel))
        return as_type(frame, self.teachers(mpp=mpp), dtype)

    def _decoders(self, rel: str) -> dict[str, Decoder]:
        """Return the decoders of a features table's quantised columns; codecs are read on use."""

        def decoder(field: pa.Field) -> Decoder:
            codec = functools.cache(lambda: read_codec(self.store, field))
            return Decoder(dim=dim_of(field), decode=lambda codes: codec().decode(codes))

        schema = self.table(rel).schema
        return {field.name: decoder(field) for field in schema if is_quantised(field)}

    def annotations(self) -> dict[str, Annotation]:
        """Return users' own columns of tiles, slides and patients, by name.

        >>> list(lake.annotations())
        ['clinical']
        """
        annotations = registry.tables_of(self.table(SLIDES))
        for mpp in self.config.mpps:
            schema = self.table(features_table(mpp)).schema
            for name, annotation in registry.columns_of(schema, mpp).items():
                annotations[name] = annotations[name].at(mpp) if name in annotations else annotation
        return dict(sorted(annotations.items()))

    def annotation(self, name: str) -> pl.LazyFrame:
        """Return a user's table as the lake holds it: its keys, and its columns by their own names.

        A table of tiles has `tile_id`, `slide_id`, `x`, `y` and `mpp`, and the tiles that have a
        value.

        Raises:
            LakeError: there is no annotation of this name.

        >>> lake.annotation("clinical").collect().rows()
        [('P000', 3), ('P001', 1)]
        """
        annotations = self.annotations()
        if name not in annotations:
            hint = did_you_mean(name, annotations)
            names = ", ".join(annotations) or "none; slidelake annotate makes them"
            msg = f"{self.uri} has no annotation '{name}'; there are: {names}{hint}"
            raise LakeError(msg)
        one = annotations[name]
        user_names = {column: user_name for user_name, column in one.columns.items()}
        if one.level != TILE:
            frame = scan(functools.partial(self.table, str(one.path)), [one.key, *user_names])
            return frame.rename(user_names)
        return pl.concat([self._annotated(one, mpp) for mpp in one.mpps])

    def _annotated(self, annotation: Annotation, mpp: float) -> pl.LazyFrame:
        tiles = self.tiles(mpp=mpp)
        names = [
            pl.col(column).alias(user_name) for user_name, column in annotation.columns.items()
        ]
        some = pl.any_horizontal(pl.col(list(annotation.columns.values())).is_not_null())
        keys = [pl.col("tile_id", "slide_id", "x", "y"), pl.lit(mpp).alias("mpp")]
        return tiles.filter(some).select(*keys, *names)

    def slide_encodings(self) -> list[SlideEncoding]:
        """Return the vectors of slides and patients that the lake has, by slide encoder.

        >>> lake.slide_encodings()
        []
        """
        encodings = lance_slide_encodings.encodings_of(self.table(SLIDES))
        return list(encodings.values())

    def slide_features(self, name: str | None = None, *, mpp: float | None = None) -> pl.LazyFrame:
        """Return the vectors that `slidelake encode` made of slides or patients.

        Vectors of slides that have been dropped, scanned or extracted again since then are left
        out: the same command makes them anew.

        Args:
            name: name of the vectors, as mean.uni2_h; None for all in one frame.
            mpp: microns per pixel of their tiles; None for the only one that they have.

        Returns:
            `slide_id` or `patient_id` (and `section`), `tiles` (their number) and `vector`, an
            array of float32 [D]. For all names: `name`, `unit` (slide, patient or section) and
            `mpp` before them, and `vector` as a list, for names differ in length.

        Raises:
            LakeError: there are no vectors of this name, or of several mpps.
            DamageError: the stored vectors differ from the written ones.

        >>> lake.slide_features().collect().columns[:4]
        ['name', 'unit', 'mpp', 'slide_id']
        """
        from featurestore.encodings.encoded import current_rows, encodings_frame, named_encoding

        encodings = self.slide_encodings()
        if name is None:
            return encodings_frame(self, encodings)
        return current_rows(self, named_encoding(self, encodings, name, mpp)).lazy()

    def encoded(self, name: str, *, mpp: float) -> "EncodedRows":
        """Return the vectors of a name in memory; they are read once for this lake object.

        Raises:
            LakeError: there are no vectors of this name at this mpp.
            DamageError: the stored vectors differ from the written ones.
        """
        from featurestore.encodings.encoded import EncodedRows, named_encoding

        encoding = named_encoding(self, self.slide_encodings(), name, mpp)
        if encoding.place not in self._encoded:
            self._encoded[encoding.place] = EncodedRows(self, encoding)
        return self._encoded[encoding.place]

    # ------------------------------------------------------------------ contents

    def known_mpp(self, mpp: float) -> float:
        """Return the lake's own value of an mpp.

        Raises:
            LakeError: the lake has no tiles at it.
        """
        for lake_mpp in self.config.mpps:
            if mpp_code(lake_mpp) == mpp_code(mpp):
                return lake_mpp
        msg = f"{self.uri} has no tiles at mpp {mpp}; it has {list(self.config.mpps)}"
        raise LakeError(msg)

    def teachers(self, *, mpp: float) -> dict[str, int]:
        """Return the teachers with a column at an mpp, and their dimensions.

        >>> lake.teachers(mpp=0.5)
        {'efficientnet_lite0': 8, 'efficientnet_lite1': 6}
        """
        lake_mpp = self.known_mpp(mpp)
        if lake_mpp not in self._dims:  # Lance makes a schema anew each time
            schema = self.table(features_table(lake_mpp)).schema
            dims = {field.name: dim_of(field) for field in schema if is_teacher(field)}
            self._dims[lake_mpp] = dims
        return dict(self._dims[lake_mpp])

    def identity(self, teacher: str, *, mpp: float) -> dict[str, Any]:
        """Return all settings that decide the numbers of a teacher's column, as kept with it.

        >>> lake.identity("efficientnet_lite0", mpp=0.5)
        {'weights': 'efficientnet_lite0'}
        """
        return identity_of(self.table(features_table(self.known_mpp(mpp))).schema.field(teacher))

    def licence(self, teacher: str, *, mpp: float) -> Licence | None:
        """Return the licence that is kept with a teacher's column; None in columns of old lakes.

        >>> lake.licence("efficientnet_lite0", mpp=0.5) is None
        True
        """
        return field_licence(self.table(features_table(self.known_mpp(mpp))).schema.field(teacher))

    def check_teacher(self, teacher: str, *, mpp: float) -> None:
        """Raise LakeError, naming the lake's teachers, if a teacher has no column at an mpp."""
        teachers = self.teachers(mpp=mpp)
        if teacher not in teachers and is_slide_encoding(teacher):
            msg = (
                f"'{teacher}' names vectors of slides (they have a dot in their name), and this "
                f"takes features of tiles; there are: {', '.join(teachers) or 'none'}. Vectors of "
                "slides are read by mil (--model linear is a probe of them), survival, predict, "
                "search, robustness and query"
            )
            raise LakeError(msg)
        if teacher not in teachers:
            msg = (
                f"no features of '{teacher}' at mpp {mpp_name(mpp)} in {self.uri}"
                f"{did_you_mean(teacher, teachers)}; there are: {', '.join(teachers) or 'none'}; "
                "slidelake extract makes more"
            )
            raise LakeError(msg)

    def tiles_of(self, *, mpp: float, slide_ids: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the catalog rows of slides' tiles at one mpp, by slide number.

        Args:
            mpp: microns per pixel of the tiles.
            slide_ids: names of the slides; None for all. Unknown slides have no row.
        """
        return self._catalog_of("teacher IS NULL", mpp, slide_ids)

    def features_of(
        self, teacher: str, *, mpp: float, slide_ids: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Return the catalog rows of slides that have a teacher's features, by slide number.

        Raises:
            LakeError: the teacher has no column at this mpp.
        """
        self.check_teacher(teacher, mpp=mpp)
        return self._catalog_of(f"teacher = '{teacher}'", mpp, slide_ids)

    def places_of(
        self, teachers: Sequence[str], *, mpp: float, slide_ids: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Return the catalog rows of slides' tiles and of some teachers on them, by slide number.

        It is one scan for all of them; rows of tiles have no `teacher`.

        Raises:
            LakeError: a teacher has no column at this mpp.
        """
        for teacher in teachers:
            self.check_teacher(teacher, mpp=mpp)
        named = ", ".join(f"'{name}'" for name in teachers)
        kind = f"(teacher IS NULL OR teacher IN ({named}))" if teachers else "teacher IS NULL"
        return self._catalog_of(kind, mpp, slide_ids)

    def catalog_rows(self) -> int:
        """Return the number of rows of the catalog, from its manifest."""
        return int(self.table(CATALOG).count_rows())

    def content_key(self) -> tuple[str, int, tuple[str, ...]]:
        """Return what only this version of this lake has: place, version, the catalog's files."""
        fragments = self.table(CATALOG).get_fragments()
        files = [file.path for fragment in fragments for file in fragment.metadata.files]
        return self.uri, self.version, tuple(files)

    def _catalog_of(self, kind: str, mpp: float, slide_ids: Sequence[str] | None) -> pl.DataFrame:
        row_filter = f"{kind} AND mpp = {self.known_mpp(mpp)}"
        few = slide_ids is not None and len(slide_ids) <= FEW_SLIDES
        if few:
            numbers = ", ".join(str(number) for number in self._numbers(slide_ids or []))
            row_filter += f" AND slide IN ({numbers or -1})"
        with reading(self.store, f"table {CATALOG} can't be read"):
            rows = pl.DataFrame(self.table(CATALOG).to_table(filter=row_filter))
        if slide_ids is not None and not few:
            rows = rows.filter(pl.col("slide_id").is_in(list(slide_ids)))
        return rows.sort("slide")

    def _numbers(self, slide_ids: Sequence[str]) -> list[int]:
        """Return the numbers of slides, by the index on `slide_id`, without unknown slides."""
        if not slide_ids:
            return []
        with reading(self.store, f"table {SLIDES} can't be read"):
            where = among_names(slide_ids)
            table = self.table(SLIDES).to_table(columns=["slide"], filter=where)
        numbers: list[int] = table["slide"].to_pylist()
        return numbers

    def info(self) -> dict[str, Any]:
        """Return a summary of the lake: format, version, slides, tiles, features.

        >>> lake.info()["tiles"]
        {'0.5': 37, '1.0': 18}
        """
        with reading(self.store, f"table {self.store.shown(SLIDES)}"):
            states = count_states(self.table(SLIDES))
        with reading(self.store, f"table {self.store.shown(CATALOG)}"):
            tile_counts = count_tiles(self.table(CATALOG)).tiles
        features = [
            {
                "teacher": teacher,
                "mpp": mpp,
                "dim": dim,
                "tiles": tile_counts.get((mpp, teacher), 0),
                "complete": tile_counts.get((mpp, teacher), 0) == tile_counts.get((mpp, None), 0),
                **self._tile_choice(teacher, mpp),
            }
            for mpp in self.config.mpps
            for teacher, dim in self.teachers(mpp=mpp).items()
        ]
        return {
            "lake": self.uri,
            "format": self.config.format,
            "version": self.version,
            "tile_px": self.config.tile_px,
            "stride_px": self.config.step_px,
            "slides": {"ready": 0, "failed": 0, **states},
            "tiles": {mpp_name(mpp): tile_counts[mpp, None] for mpp in self.config.mpps},
            "features": features,
            "annotations": [
                self._annotation_info(annotation) for annotation in self.annotations().values()
            ],
            "slide_features": [self._encoding_info(one) for one in self.slide_encodings()],
            "other_columns": self._other_columns(),
            "snapshots": self.snapshots(),
        }

    def _annotation_info(self, annotation: Annotation) -> dict[str, Any]:
        """Return an annotation as `info` shows it: columns by their query names, with types."""
        names = annotation.columns.items()
        columns = {
            column if annotation.level == TILE else user_name: annotation.types[user_name]
            for user_name, column in names
        }
        info = {
            "name": annotation.name,
            "level": annotation.level,
            "rows": annotation.rows,
            "columns": columns,
        }
        return {**info, "mpps": list(annotation.mpps), "source": annotation.source}

    def _encoding_info(self, encoding: SlideEncoding) -> dict[str, Any]:
        """Return an encoding as `info` shows it."""
        names = ("name", "unit", "mpp", "dim", "rows")
        facts = {name: getattr(encoding, name) for name in names}
        return {**facts, "columns": list(encoding.columns)}

    def _other_columns(self) -> list[dict[str, Any]]:
        """Return the columns of the features tables that belong to no teacher and no annotation."""
        return [
            {"column": field.name, "mpp": mpp, "type": str(field.type)}
            for mpp in self.config.mpps
            for field in self.table(features_table(mpp)).schema
            if kind_of(field) == OTHER
        ]

    def _tile_choice(self, teacher: str, mpp: float) -> dict[str, Any]:
        """Return the tiles a teacher was run on, if not all, and its field, if not the tile."""
        identity = self.identity(teacher, mpp=mpp)
        return {name: identity[name] for name in ("where", "share", "fov") if name in identity}

    # ------------------------------------------------------------------ bags and pictures

    def bag(self, slide_id: str, teachers: str | Sequence[str], *, mpp: float | None = None) -> Bag:
        """Return all tiles of a slide with features of some teachers, each read in one piece.

        Args:
            slide_id: the slide.
            teachers: a teacher, or several, whose features are joined in this order.
            mpp: microns per pixel of the tiles; None if the lake has one mpp only.

        Raises:
            LakeError: the slide or a teacher's features of it are not in the lake.
            DamageError: the stored rows differ from the catalog's.

        >>> bag = lake.bag("P000-1", ["efficientnet_lite0", "efficientnet_lite1"], mpp=0.5)
        >>> bag.features.shape, bag.features.dtype, bag.x.shape
        ((12, 14), dtype('float16'), (12,))
        """
        rows, _ = self.slide_rows([slide_id], names_of(teachers), mpp=self._only_mpp(mpp))
        return Bag(slide_id=slide_id, **vars(rows))

    def slide_rows(
        self, slide_ids: Sequence[str], teachers: Sequence[str], *, mpp: float
    ) -> tuple[Rows, npt.NDArray[np.int32]]:
        """Return the tiles of some slides with features of some teachers, slide after slide.

        Places are looked up slide by slide for a few bags, and once for all slides beyond.

        Returns:
            The rows, in one array a column, and the number of each row's slide [N].

        Raises:
            LakeError: a slide or a teacher's features of it are not in the lake.
            DamageError: the stored rows differ from the catalog's.
        """
        for name in teachers:
            self.check_teacher(name, mpp=mpp)
        mpp = self.known_mpp(mpp)
        places = [self._places.find(slide_id, teachers, mpp) for slide_id in slide_ids]
        return read_slides(self.row_reader(mpp=mpp), places, teachers, self.first_reads)

    def row_reader(self, *, mpp: float) -> RowReader:
        """Return the reader of ranges of rows at an mpp; it keeps files open."""
        rel = features_table(self.known_mpp(mpp))
        if rel not in self._readers:
            self._readers[rel] = RowReader(self.store, rel, self.table(rel))
        return self._readers[rel]

    def nearest(
        self,
        query: npt.ArrayLike,
        teacher: str,
        *,
        mpp: float,
        k: int = 10,
        slide_ids: Sequence[str] | None = None,
        without: Sequence[str] = (),
        exact: bool = False,
    ) -> pl.DataFrame:
        """Return the tiles with the features nearest to a vector, by cosine distance.

        An index (`build_index`) is used for the tiles that it covers; all others are compared one
        by one. Distances are exact either way. Tiles without features are never among them.

        Args:
            query: vector [D], or several [Q, D].
            teacher: name of the column.
            mpp: microns per pixel of the tiles.
            k: number of tiles for each query.
            slide_ids: look in these slides only; None looks in all.
            without: slides to leave out.
            exact: compare all tiles, even if there is an index.

        Returns:
            Columns query (its number), slide_id, tile_id, x, y, distance (1 - cosine: 0 to 2), by
            query and nearest first.

        Raises:
            LakeError: the teacher has no column at this mpp, a slide is unknown, or the query has
                another width.
            DamageError: the index or the table can't be read.

        >>> vector = lake.bag("P000-1", "efficientnet_lite0", mpp=0.5).features[3]
        >>> lake.nearest(vector, "efficientnet_lite0", mpp=0.5, k=1)["slide_id"].to_list()
        ['P000-1']
        """
        self.check_teacher(teacher, mpp=mpp)
        if k < 1:
            msg = f"k is {k}; ask for at least 1 tile"
            raise LakeError(msg)
        table = self.table(features_table(self.known_mpp(mpp)))
        within = None if slide_ids is None else self._known_numbers(slide_ids)
        where = slide_filter(within, self._known_numbers(without))
        column = SearchedColumn(
            store=self.store, table=table, teacher=teacher, where=where, exact=exact
        )
        queries = queries_of(query, teacher, self.teachers(mpp=mpp)[teacher])
        decoder = self._decoders(features_table(self.known_mpp(mpp))).get(teacher)
        if decoder is not None:
            return nearest_by_codes(column, decoder, queries, k)
        return nearest(column, queries, k)

    def _known_numbers(self, slide_ids: Sequence[str]) -> list[int]:
        """Return the numbers of slides.

        Raises:
            LakeError: a slide is unknown; the message has a similar name, if there is one.
        """
        numbers = self._numbers(slide_ids)
        if len(numbers) < len(set(slide_ids)):
            lake_slides = self.slides().select("slide_id").collect()["slide_id"].to_list()
            wrong = next(name for name in slide_ids if name not in set(lake_slides))
            msg = f"slide '{wrong}' is not in {self.uri}{did_you_mean(wrong, lake_slides)}"
            raise LakeError(msg)
        return numbers

    # ------------------------------------------------------------------ for training

    def bags(
        self,
        teachers: str | Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None = None,
        by: "By" = "slide",
    ) -> "Bags":
        """Return a torch data set of all bags of some slides or patients: see `Bags`.

        >>> bags = lake.bags("efficientnet_lite0", mpp=0.5, by="patient")
        >>> [(bag.bag_id, tuple(bag.features.shape)) for bag in (bags[0], bags[1])]
        [('P000', (17, 8)), ('P001', (20, 8))]
        """
        # torch takes seconds to import, and few who open a lake train on it.
        from featurestore.read.torch_bags import Bags

        return Bags(self, names_of(teachers), mpp=mpp, slide_ids=slide_ids, by=by)

    def slide_means(
        self,
        column: str,
        *,
        mpp: float | None = None,
        slide_ids: Sequence[str] | None = None,
        dtype: "MeanType" = "float32",
    ) -> pl.DataFrame:
        """Return one vector per slide: the mean of a teacher's features over the slide's tiles.

        Slides are read in parts, with little memory, and compared with their checksums at their
        first read, as bags are. Sums are in float64. Tiles that the teacher was not run on
        (`extract --where`, `--share`) don't count.

        Args:
            column: name of a teacher's column.
            mpp: microns per pixel of the tiles; None for the only mpp of the lake.
            slide_ids: names of the slides; None for all slides that have tiles.
            dtype: type of the means: "float32" or "float64".

        Returns:
            Columns slide_id, tiles (number of tiles in the mean), and the mean [D] under the
            column's name, as a Polars array; null for a slide without a tile in it.

        Raises:
            LakeError: no such column or slide, a slide without its features, or several mpps.
            DamageError: the stored features differ from the written features.

        >>> means = lake.slide_means("efficientnet_lite0", mpp=0.5)
        >>> means["efficientnet_lite0"].to_numpy().shape
        (3, 8)
        """
        from featurestore.read.slide_means import slide_means

        return slide_means(self, column, mpp=self._only_mpp(mpp), slide_ids=slide_ids, dtype=dtype)

    # Ten keywords, and a line for each: the public call for those who train with webdataset.
    def webdataset(
        self,
        teachers: str | Sequence[str],
        *,
        mpp: float | None = None,
        slide_ids: Sequence[str] | None = None,
        where: pl.Expr | None = None,
        pixels: "TilePixels" = "jpeg",
        shuffle: bool = True,
        buffer_tiles: int = 4096,
        seed: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> "TilePipeline":
        """Return tiles with cached features by key, as a pipeline of the `webdataset` package.

        Each tile is a dict: `__key__` (tile_id in 19 digits, as in the shard), `__url__` of the
        shard, `jpg` (see `pixels`), a float16 array [D] per teacher under its name, and tile_id,
        slide_id, x, y (level-0 pixels). All tiles that have features of all teachers come once an
        epoch, split by slide over ranks and the workers of a DataLoader, which must be spawned;
        slides without features or pixels are left out with a warning. Ranks have different numbers
        of tiles: webdataset's `.batched(b).with_epoch(n)` gives each of them n batches.

        Args:
            teachers: teachers of the tiles' features; may be empty.
            mpp: microns per pixel of the tiles; None for the only mpp of the lake.
            slide_ids: names of the tiles' slides; None for all.
            where: only tiles for which this holds, of the columns of `lake.tiles`.
            pixels: "jpeg" for the stored bytes (`.decode("rgb8")` decodes them), "uint8" for RGB
                [H, W, 3], "none" for features alone.
            shuffle: false for tiles slide by slide, sorted by (y, x); true mixes tiles of eight
                slides at a time.
            buffer_tiles: tiles in memory that are mixed, in each worker.
            seed: seed of the order. With workers of a DataLoader call `set_epoch(n)` before each
                epoch, or every epoch has the same order: workers start anew. Those that persist,
                and a process that reads by itself, count epochs by themselves.
            rank: rank of this process; None for that of torch.distributed, or `RANK`.
            world: number of processes; None likewise, or `WORLD_SIZE`.

        Raises:
            LakeError: a slide is unknown, no tile is left, there are fewer slides than ranks, or a
                setting is not allowed.
            DamageError: while it is read: a table or a shard is not as it was written.

        >>> tiles = lake.webdataset("efficientnet_lite0", mpp=0.5, shuffle=False)
        >>> first = next(iter(tiles))
        >>> first["slide_id"], type(first["jpg"]), first["efficientnet_lite0"].shape
        ('P000-1', <class 'bytes'>, (8,))
        """
        from featurestore.read.webdataset_tiles import ShardPlan, TilePipeline

        plan = ShardPlan(
            self,
            names_of(teachers) if teachers else [],
            mpp=self._only_mpp(mpp),
            slide_ids=slide_ids,
            where=where,
            pixels=pixels,
        )
        return TilePipeline(
            plan, shuffle=shuffle, buffer_tiles=buffer_tiles, seed=seed, rank=rank, world=world
        )

    # Nineteen keywords, and a line for each: the one public call for streams, flat as DataLoader's.
    def stream(
        self,
        teachers: str | Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None = None,
        pixels: "Pixels" = "none",
        under: Mapping[float, str | Sequence[str]] | None = None,
        batch_tiles: int = 256,
        block_tiles: int = 32,
        buffer_tiles: int = 4096,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        rows: npt.NDArray[np.int64] | None = None,
        input_px: int | None = None,
        decode: "Decode" = "full",
        cache_pixels_gb: float = 0.0,
        cache_folder: str | None = None,
    ) -> "Stream":
        """Return tiles in a shuffled order, with features and pixels, in batches: see `Stream`.

        Args:
            teachers: teachers of the tiles' features; may be empty with `under`.
            mpp: microns per pixel of the tiles.
            slide_ids: names of the tiles' slides; None for all.
            pixels: "none", "jpeg" (as stored) or "uint8" (decoded).
            under: teachers by finer mpp; each tile has the features of the finer tiles under it.
            batch_tiles: tiles in a batch of one rank.
            block_tiles: neighbouring tiles that are read together.
            buffer_tiles: tiles in memory that are mixed; up to three such buffers are held, with
                all tiles under them.
            seed: seed of the order.
            rank: rank of this process.
            world: number of processes; each has other tiles and equally many batches.
            threads: number of threads that read ahead and decode; None for as many as torch uses
                in this process: the cores that it has. The batches do not depend on it.
            shuffle: false for tiles slide by slide, sorted by (y, x).
            drop_last: whether tiles that fill no batch are left out.
            rows: numbers of the tiles to read among those of the slides, which are numbered slide
                by slide as in `tiles_of`, sorted by (y, x): ascending, and a number may come
                several times; None for all.
            input_px: side of decoded tiles in pixels, at most the stored one; None for that.
            decode: how tiles get smaller: "full" decodes all pixels and resizes them as `extract`
                does; "scaled" is libjpeg's decode to 1/2, 1/4 or 1/8, resized from there, which
                takes less time and gives slightly other pixels (docs/reading.md).
            cache_pixels_gb: greatest size in GB of a file of decoded tiles that later epochs and
                runs read; 0 for none. The pixels do not depend on it.
            cache_folder: folder of such files, on a disk of this machine; $SLIDELAKE_PIXEL_CACHE
                or ~/.cache/slidelake/pixels if None.

        Raises:
            LakeError: a slide is unknown or lacks features or pixels, its grids do not nest, or a
                setting is not allowed.

        >>> stream = lake.stream("efficientnet_lite0", mpp=0.5, batch_tiles=16, pixels="uint8")
        >>> [batch.pixels.shape for batch in stream]
        [(16, 32, 32, 3), (16, 32, 32, 3), (5, 32, 32, 3)]
        """
        from featurestore.pixels.tile_pixels import PixelDecoder
        from featurestore.read.stream import Stream, StreamPixels

        make_order = Order if rows is None else functools.partial(chosen_order, rows)
        order = functools.partial(
            make_order,
            batch_tiles=batch_tiles,
            block_tiles=block_tiles,
            buffer_tiles=buffer_tiles,
            seed=seed,
            rank=rank,
            world=world,
            shuffle=shuffle,
            drop_last=drop_last,
        )
        return Stream(
            self,
            [] if under and not teachers else names_of(teachers),
            mpp=mpp,
            slide_ids=slide_ids,
            pixels=StreamPixels(
                kind=pixels,
                decoder=PixelDecoder(tile_px=self.config.tile_px, input_px=input_px, decode=decode),
                cache_bytes=round(cache_pixels_gb * 1e9),
                cache_folder=cache_folder,
            ),
            under={finer: names_of(names) for finer, names in (under or {}).items()},
            order=order,
            threads=threads,
        )

    def pairs(
        self, slide_id: str, *, coarse: float, fine: float, teachers: str | Sequence[str]
    ) -> Pairs:
        """Return a slide's bags at two mpps, and the fine tiles under each coarse tile.

        Raises:
            LakeError: the mpps or the slide's grids do not nest, or there are no such bags.

        >>> pairs = lake.pairs("P001-1", coarse=1.0, fine=0.5, teachers="efficientnet_lite0")
        >>> pairs.children.shape
        (10, 2, 2)
        """
        return read_pairs(self, slide_id, coarse=coarse, fine=fine, teachers=names_of(teachers))

    def pictures(self, slide_id: str) -> dict[str, bytes | None]:
        """Return a slide's `thumbnail` (JPEG) and `tissue_mask` (PNG of the same size).

        >>> pictures = lake.pictures("P000-1")
        >>> pictures["thumbnail"][:2] == bytes([255, 216]), pictures["tissue_mask"]
        (True, None)
        """
        with reading(self.store, f"pictures of slide {slide_id} can't be read"):
            where = among_names([slide_id])
            table = self.table(SLIDES).to_table(columns=list(PICTURES), filter=where)
        if table.num_rows != 1:
            msg = f"slide '{slide_id}' is not in {self.uri}{similar_slide(self, slide_id)}"
            raise LakeError(msg)
        pictures: dict[str, bytes | None] = table.to_pylist()[0]
        return pictures

    def thumbnail(self, slide_id: str) -> "Image.Image":
        """Return the small picture of a whole slide that ingest kept, as a Pillow image in RGB.

        A tile at level-0 pixel `x` lies at `x * thumbnail.width / width_px` of it; `width_px` is a
        column of `slides`.

        Raises:
            LakeError: the slide is unknown, or has no thumbnail: it failed, is pending, or was
                imported from another tool's features.
            DamageError: the stored picture can't be decoded.

        >>> lake.thumbnail("P000-1").mode
        'RGB'
        """
        jpeg = self.pictures(slide_id)["thumbnail"]
        if jpeg is None:
            msg = (
                f"slide '{slide_id}' has no thumbnail in {self.uri}: ingest keeps one of each "
                "slide that it cuts; failed, pending and imported slides have none"
            )
            raise LakeError(msg)
        return decoded_thumbnail(jpeg, slide_id)

    def to_anndata(
        self,
        slide_id: str,
        columns: str | Sequence[str] | None = None,
        *,
        mpp: float | None = None,
    ) -> "AnnData":
        """Return the tiles of a slide as an AnnData: a row per tile with features of all columns.

        Args:
            slide_id: name of the slide.
            columns: names of teachers' columns; None for all of which the slide has features.
            mpp: microns per pixel of the tiles; None for the only mpp of the lake.

        Returns:
            `X` float32 [N, D] of the first column, `obsm["X_<name>"]` of each further one;
            `obs` with tile_id (also the index), slide_id, x, y, scores and annotations of tiles;
            `obsm["spatial"]` float64 [N, 2], the tiles' centres in level-0 pixels; in `uns` what
            squidpy (`spatial`: thumbnail and scale), wsidata and lazyslide (`tile_spec`,
            `slide_properties`) and SpatialData (`spatialdata_attrs`) look for, and `slidelake`.

        Raises:
            InteropError: anndata is not installed (extra `[anndata]`), or the slide has no tiles.
            LakeError: there is no such column, the slide lacks it, or the lake has several mpps.
            DamageError: the stored rows differ from the written rows.

        >>> lake.to_anndata("P000-1", "efficientnet_lite0", mpp=0.5).shape
        (12, 8)
        """
        from featurestore.interop.slide_anndata import slide_anndata

        return slide_anndata(self, slide_id, columns, self._only_mpp(mpp))

    def _only_mpp(self, mpp: float | None) -> float:
        """Return an mpp of the lake: the given one, or the only one.

        Raises:
            LakeError: there are several, or no tiles at the given one.
        """
        if mpp is not None:
            return self.known_mpp(mpp)
        if len(self.config.mpps) > 1:
            msg = f"{self.uri} has tiles at several mpps, {list(self.config.mpps)}; give mpp="
            raise LakeError(msg)
        return self.config.mpps[0]

    # ------------------------------------------------------------------ files beside the tables

    def exists(self, rel: str) -> bool:
        """Whether a file of the lake is there."""
        return self.store.exists(rel)

    def read_bytes(self, rel: str) -> bytes:
        """Return the bytes of a file of the lake."""
        return self.store.read_bytes(rel)

    def write_bytes(self, rel: str, content: bytes) -> None:
        """Write a file of the lake; readers see the old or the new file, never a part."""
        self.store.write_bytes(rel, content)

    def read_json(self, rel: str) -> Any:  # noqa: ANN401 - JSON is what it is
        """Return the contents of a JSON file of the lake."""
        return json.loads(self.read_bytes(rel))

    def write_json(self, rel: str, content: Any) -> None:  # noqa: ANN401
        """Write a JSON file of the lake."""
        self.write_bytes(rel, (json.dumps(content, indent=2) + "\n").encode())
