"""Export of a lake to the files of another tool, slide after slide; each file appears whole.

Complete files are left as they are, so a killed export can be continued, and an export of a lake
that has grown writes what is new.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from featurestore.annotations.annotation_export import AnnotationsOut
from featurestore.errors import BucketError, DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.interop.foreign_slide import FloatArray, Int64Array, InteropError, SlideTiles
from featurestore.interop.formats import FORMATS, Format, writer_of
from featurestore.interop.hub.places import PlaceError, open_place
from featurestore.interop.hub.remote_outbox import RemoteOutbox
from featurestore.interop.lake_tiles import (
    slide_rows,
    tile_places,
    tile_table,
    tissue_of,
    whole_rows,
)
from featurestore.interop.pseudonyms import Pseudonyms
from featurestore.interop.sharing import Sharing, write_licences
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import CohortOut, SlideOut, TeacherOut
from featurestore.lake import Lake
from featurestore.licences import Licence, check_licences, field_licence
from featurestore.messages import counted
from featurestore.notebook.shown import Shown
from featurestore.opening import open_lake
from featurestore.tables.schema import (
    READY,
    SLIDES,
    features_table,
    identity_of,
    is_quantised,
)

SLIDES_AT_ONCE = 256
SLIDE_COLUMNS = ("state", "patient_id", "reason", "mpp", "width_px", "height_px", "extra")
#: Facts of a slide that formats of our own hand on.
FACTS = (
    "patient_id", "uri", "fingerprint", "bytes", "width_px", "height_px", "mpp", "mpp_source",
    "mpp_x", "mpp_y", "objective", "vendor", "levels", "reader", "notes", "tissue", "pen",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(kw_only=True, repr=False)
class ExportResult(Shown):
    """Counts of what an export wrote, and slides that were not exported.

    Attributes:
        out: the folder.
        format: name of the written format.
        version: the lake's version that was read.
        written: slides of which files were written.
        complete: slides of which all was there already.
        files: files written.
        licences: licence of each exported column.
        failed: slides that could not be exported, with the reason.
        left_out: slides that were not ingested into the lake, with the reason.
    """

    out: str
    format: str
    version: int
    written: int = 0
    complete: int = 0
    files: int = 0
    licences: dict[str, Licence] = field(default_factory=dict)
    failed: list[dict[str, str]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


def export_folder(
    lake_uri: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str,
    teachers: Sequence[str] = (),
    mpp: float | None = None,
    version: int | str | None = None,
    tiles: bool = False,
    sharing: Sharing | None = None,
    on_slide: Callable[[str, int], None] = lambda slide_id, files: None,
) -> ExportResult:
    """Write the slides of a lake as files of another tool.

    Args:
        lake_uri: the lake.
        out: a local folder, which is created if it is missing; with `hub` also a URL of fsspec.
        format: name of the format, an entry of `WRITABLE`.
        teachers: names of the teachers to export; none for all that the lake has at this mpp.
        mpp: microns per pixel of the tiles; needed if the lake has several.
        version: version of the lake, a number or a snapshot's name; None for its newest.
        tiles: whether to write tiles where the format leaves them out (GeoJSON: as rectangles).
        sharing: licences, a permission and pseudonyms; names stay as they are if None.
        on_slide: called after each slide with the number of files written.

    Raises:
        LakeError: no such lake, version, format, teacher or mpp; or `out` is in use.
        LicenceError: the licence of a column forbids to share the encoder's outputs.
    """
    writer = writer_of(format)
    lake = open_lake(lake_uri, version=version)
    mpp = _export_mpp(lake, mpp, needed=FORMATS[format].writes_tiles or tiles)
    task = _ExportTask(lake, mpp, teachers, FORMATS[format])
    sharing = sharing or Sharing()
    terms = task.checked_licences(sharing)
    if sharing.deidentify is not None:
        task.deidentify(Pseudonyms(sharing.deidentify, out))
    summary = ExportResult(out=os.fspath(out), format=format, version=lake.version, licences=terms)
    with _outbox(out, format, shows_paths=task.pseudonyms is None) as box:
        if FORMATS[format].keeps_columns:
            writer.check_earlier(box, random_names=task.pseudonyms is not None)
        for slide_id, slide in task.slides(summary):
            try:
                files = writer.export_slide(box, slide())
            except (PlaceError, BucketError):
                raise
            except LakeError as error:
                summary.failed.append({"slide": slide_id, "reason": " ".join(str(error).split())})
                continue
            summary.files += files
            summary.written += files > 0
            summary.complete += not files
            on_slide(slide_id, files)
        summary.files += task.write_tables(box)
        write_licences(box, terms, sharing)
        if FORMATS[format].keeps_columns:
            summary.files += writer.export_cohort(box, task.cohort(terms))
    return summary


def _outbox(
    out: str | os.PathLike[str], format_name: str, *, shows_paths: bool
) -> Outbox | RemoteOutbox:
    """Return the folder that an export fills, here or, if the format allows it, at a URL."""
    text = os.fspath(out)
    if FORMATS[format_name].keeps_columns and "://" in text and not text.startswith("file://"):
        return RemoteOutbox(open_place(text))
    return Outbox(text.removeprefix("file://"), shows_paths=shows_paths)


def _write_annotations(box: Outbox | RemoteOutbox, annotations: AnnotationsOut) -> int:
    """Write each annotation as `annotations/<name>.csv`; return how many files were written."""
    written = 0
    for name, table in annotations.tables():
        written += box.write_text(f"annotations/{name}.csv", table.write_csv())
    return written


def _export_mpp(lake: Lake, mpp: float | None, *, needed: bool) -> float | None:
    if mpp is not None:
        return lake.known_mpp(mpp)
    if not needed or len(lake.config.mpps) == 1:
        return lake.config.mpps[0] if needed else None
    msg = f"{lake.uri} has tiles at several mpps, {list(lake.config.mpps)}; give --mpp"
    raise InteropError(msg)


class _ExportTask:
    """The slides to be exported of a lake; its catalog is read once per 256 slides."""

    def __init__(
        self, lake: Lake, mpp: float | None, teachers: Sequence[str], format_modules: Format
    ) -> None:
        self.lake, self.mpp = lake, mpp
        self.keeps_columns = format_modules.keeps_columns
        self.names: list[str] = []
        self.has_choice = bool(teachers)
        self.pseudonyms: Pseudonyms | None = None
        self.patients = pl.DataFrame()
        self.annotations = AnnotationsOut(lake, mpp)
        self.teachers: dict[str, TeacherOut] = {}
        if mpp is None or not format_modules.writes_features:
            return
        for name in teachers:
            lake.check_teacher(name, mpp=mpp)
        schema = lake.table(features_table(mpp)).schema
        codes = {name for name in schema.names if is_quantised(schema.field(name))}
        if self.keeps_columns and (chosen := sorted(codes & set(teachers))):
            msg = f"{', '.join(chosen)} holds codes; export its source, and quantise it there"
            raise InteropError(msg)
        self.teachers = {
            name: TeacherOut(
                dim=dim,
                crc32=0,
                identity=identity_of(schema.field(name)),
                licence=field_licence(schema.field(name)),
            )
            for name, dim in lake.teachers(mpp=mpp).items()
            if (name in teachers or not teachers) and not (self.keeps_columns and name in codes)
        }

    def checked_licences(self, sharing: Sharing) -> dict[str, Licence]:
        """Return the licence of each column.

        Raises:
            LicenceError: a licence forbids to share the encoder's outputs.
        """
        licences = {
            name: teacher.licence or sharing.licences.get(name) or Licence()
            for name, teacher in self.teachers.items()
        }
        check_licences(licences, "sharing outputs", permission=sharing.permission)
        return licences

    def write_tables(self, box: Outbox | RemoteOutbox) -> int:
        """Write annotations, or patients by their random names; return the number of files."""
        if self.pseudonyms is None:
            return _write_annotations(box, self.annotations)
        return box.write_text("patients.csv", self.pseudonyms.patients_table(self.patients))

    def deidentify(self, pseudonyms: Pseudonyms) -> None:
        """Name all slides and patients by a key, and leave annotations out, from now on."""
        self.patients = self.lake.slides().select("slide_id", "patient_id").collect()
        pseudonyms.add(self.patients["slide_id"], self.patients["patient_id"].drop_nulls())
        self.pseudonyms = pseudonyms

    def cohort(self, licences: Mapping[str, Licence]) -> CohortOut:
        """Return what the export is of, under the names that it uses; after all slides."""
        names, teachers = self.names, self.teachers
        if self.pseudonyms is not None:
            names = [self.pseudonyms.slide(name) for name in names]
            teachers = {
                name: self.pseudonyms.teacher_out(teacher) for name, teacher in teachers.items()
            }
        return CohortOut(
            config=self.lake.config,
            mpp=self.mpp or self.lake.config.mpps[0],
            teachers=teachers,
            licences=licences,
            slides=names,
            random_names=self.pseudonyms is not None,
        )

    def slides(self, summary: ExportResult) -> Iterator[tuple[str, Callable[[], SlideOut]]]:
        """Yield the name of every ready slide with a function that loads it for the export."""
        names = self.lake.slides().select("slide_id").collect()["slide_id"].sort().to_list()
        if self.pseudonyms is not None:
            # The files' times would tell the order of the names.
            secrets.SystemRandom().shuffle(names)
        for start in range(0, len(names), SLIDES_AT_ONCE):
            some = names[start : start + SLIDES_AT_ONCE]
            rows = slide_rows(self.lake, some, self._slide_columns())
            tiles, sums = self._catalog(some)
            for name in some:
                row = {**rows[name], "tiles": tiles.get(name)}
                if row["state"] != READY or (self.mpp is not None and row["tiles"] is None):
                    reason = row["reason"] or f"not in the lake at mpp {self.mpp}: {row['state']}"
                    summary.left_out.append({"slide": name, "reason": reason})
                    continue
                self.names.append(name)
                yield name, lambda row=row, sums=sums: self._slide(row, sums)  # type: ignore[misc]

    def _slide_columns(self) -> list[str]:
        columns = dict.fromkeys((*SLIDE_COLUMNS, *(FACTS if self.keeps_columns else ())))
        table_columns = set(
            self.lake.table(SLIDES).schema.names
        )  # an early lake may lack the newest
        return [column for column in columns if column in table_columns]

    def _catalog(self, names: Sequence[str]) -> tuple[dict[str, Row], dict[tuple[str, str], int]]:
        """Return the catalog rows of the slides' tiles, and the checksums of their features."""
        if self.mpp is None:
            return {}, {}
        tiles = self.lake.tiles_of(mpp=self.mpp, slide_ids=names)
        sums = {
            (slide_id, teacher): crc32
            for teacher in self.teachers
            for slide_id, crc32 in self._features_of(teacher, names).iter_rows()
        }
        return {row["slide_id"]: row for row in tiles.iter_rows(named=True)}, sums

    def _features_of(self, teacher: str, names: Sequence[str]) -> pl.DataFrame:
        rows = self.lake.features_of(teacher, mpp=self.mpp or 0.0, slide_ids=names)
        return rows.select("slide_id", "crc32")

    def _slide(self, row: Row, sums: dict[tuple[str, str], int]) -> SlideOut:
        name, catalog = row["slide_id"], row["tiles"]
        teachers = {
            teacher: replace(teacher_out, crc32=sums.get((name, teacher), 0))
            for teacher, teacher_out in self.teachers.items()
            # A slide without tiles has nothing to extract: it is complete as it is.
            if (name, teacher) in sums or not catalog["tiles"]
        }
        if self.has_choice and (missing := sorted(set(self.teachers) - set(teachers))):
            msg = f"slide '{name}' has no features of {', '.join(missing)} yet: run extract"
            raise InteropError(msg)
        keys, xy = _places(self.lake, catalog)
        slide = SlideOut(
            tiles=self._tiles(row, xy),
            crc32=catalog["crc32"] if catalog else 0,
            teachers=teachers,
            features=lambda teacher: self._features(catalog, keys, teacher),
            tissue=lambda: tissue_of(self.lake, name),
            annotations=self.annotations.of(name, row["patient_id"], catalog),
            facts={fact: row[fact] for fact in FACTS if row.get(fact) is not None},
            grid=catalog or {},
            rows=lambda: tile_table(self.lake, catalog),
        )
        return slide if self.pseudonyms is None else self.pseudonyms.slide_out(slide)

    def _tiles(self, row: Row, xy: Int64Array) -> SlideTiles:
        config, catalog = self.lake.config, row["tiles"]
        side = catalog["tile_px_level0"] if catalog else config.tile_px
        level0_mpp = row["mpp"]
        if level0_mpp is None and catalog and catalog["effective_mpp"]:
            level0_mpp = catalog["effective_mpp"] * config.tile_px / side
        return SlideTiles(
            slide_id=row["slide_id"],
            x=xy[:, 0],
            y=xy[:, 1],
            tile_px=config.tile_px,
            tile_px_level0=side,
            mpp=self.mpp or config.mpps[0],
            mpp_source="lake",
            level0_mpp=level0_mpp,
            level0_mpp_source="lake",
            width_px=row["width_px"],
            height_px=row["height_px"],
            source=self.lake.uri,
            attrs=self._attrs(row),
        )

    def _attrs(self, row: Row) -> dict[str, Any]:
        """Return what an import recorded of the tiles, and their overlap in pixels."""
        config, extra = self.lake.config, json.loads(row["extra"]) if row["extra"] else {}
        imported = extra.get("imported_tiles", {})
        recorded = imported.get(mpp_name(self.mpp), {}) if self.mpp is not None else {}
        return {"overlap": config.tile_px - config.step_px, **recorded}

    def _features(self, catalog: Row, keys: Int64Array, teacher: str) -> FloatArray:
        if not len(keys):
            return np.zeros((0, self.teachers[teacher].dim), np.float16)
        bag = self.lake.bag(catalog["slide_id"], teacher, mpp=catalog["mpp"])
        if self.keeps_columns:
            return whole_rows(bag, keys)
        if len(bag.tile_id) < len(keys):
            msg = (
                f"slide '{catalog['slide_id']}': '{teacher}' was run on {len(bag.tile_id)} of its "
                f"{counted(len(keys), 'tile')}; other tools' files hold features of all"
            )
            raise InteropError(msg)
        if not np.array_equal(bag.tile_id, keys):
            msg = f"slide {catalog['slide_id']}: its bag and its tiles differ; run slidelake verify"
            raise DamageError(msg)
        return bag.features


def _places(lake: Lake, catalog: Row | None) -> tuple[Int64Array, Int64Array]:
    if catalog is None:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    return tile_places(lake, catalog)
