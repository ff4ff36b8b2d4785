"""The places of annotations, and the few calls to Lance that write their tables.

Tables of slides and patients are never changed: each has a path of its own, and the configuration
of `slides.lance`, which belongs to its version, names the tables of the lake. Columns of
tiles carry what they are in their field metadata.
"""

import json
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lance
import polars as pl
import pyarrow as pa

from featurestore.storage.store import Store
from featurestore.tables.annotation import SLIDE, Annotation
from featurestore.tables.checksums import row_crc32
from featurestore.tables.lance_tables import STORAGE_VERSION, open_table
from featurestore.tables.schema import ANNOTATION, KIND_KEY, SLIDES, kind_of

FOLDER = "annotations"
CONFIG_KEY = "slidelake:annotations"
NAME_KEY, MARK_KEY, ABOUT_KEY = b"slidelake:annotation", b"slidelake:mark", b"slidelake:about"


def tables_of(slides: lance.LanceDataset) -> dict[str, Annotation]:
    """Return the annotations of slides and patients at a version of `slides`, by name."""
    records: dict[str, Any] = json.loads(slides.config().get(CONFIG_KEY, "{}"))
    return {name: Annotation.of({**fields, "name": name}) for name, fields in records.items()}


def put_tables(store: Store, annotations: Mapping[str, Annotation]) -> None:
    """Record all of the lake's annotations of slides and patients, in one commit."""
    records = {name: annotation.as_dict() for name, annotation in sorted(annotations.items())}
    open_table(store, SLIDES).update_config({CONFIG_KEY: json.dumps(records)})


def columns_of(schema: pa.Schema, mpp: float) -> dict[str, Annotation]:
    """Return the annotations of tiles that have columns in a features table, by name."""
    parts: dict[str, list[pa.Field]] = {}
    for field in schema:
        if kind_of(field) == ANNOTATION and NAME_KEY in (field.metadata or {}):
            parts.setdefault(field.metadata[NAME_KEY].decode(), []).append(field)
    return {name: _of_fields(name, fields, mpp) for name, fields in parts.items()}


def _of_fields(name: str, fields: list[pa.Field], mpp: float) -> Annotation:
    records = [json.loads(field.metadata[ABOUT_KEY]) for field in fields]
    columns = {part["column"]: field.name for part, field in zip(records, fields, strict=True)}
    types = {part["column"]: str(field.type) for part, field in zip(records, fields, strict=True)}
    return Annotation(
        name=name,
        level="tile",
        columns=columns,
        types=types,
        rows=records[0]["rows"],
        mark=mark_of(fields[0]),
        source=records[0]["source"],
        mpps=(mpp,),
    )


def mark_of(field: pa.Field) -> str:
    """Return the mark that differs from an earlier column's of the same name."""
    mark: bytes = (field.metadata or {}).get(MARK_KEY, b"")
    return mark.decode()


def field_of(
    name: str, kind: pa.DataType, *, annotation: str, mark: str, record: Mapping[str, Any]
) -> pa.Field:
    """Return the Arrow field of a tile annotation's column.

    Args:
        name: name of the column in the lake.
        kind: type of its values.
        annotation: name of the annotation.
        mark: mark of this annotation.
        record: `column` in the user's table, `rows` and `source`.
    """
    metadata = {
        KIND_KEY: ANNOTATION,
        NAME_KEY: annotation,
        MARK_KEY: mark,
        ABOUT_KEY: json.dumps(dict(record)),
    }
    return pa.field(name, kind, nullable=True, metadata=metadata)


def write_table(store: Store, annotation: Annotation, frame: pl.DataFrame) -> int:
    """Write an annotation's table, which nothing names yet; return the checksum of its rows."""
    table = frame.to_arrow().cast(_schema(annotation, frame))
    rows = [row_crc32(row) for row in table.to_pylist()]
    table = table.append_column(
        pa.field("row_crc32", pa.uint32(), nullable=False), pa.array(rows, pa.uint32())
    )
    lance.write_dataset(
        table,
        store.url(str(annotation.path)),
        data_storage_version=STORAGE_VERSION,
        enable_stable_row_ids=True,
        storage_options=store.lance_options,
    )
    return crc32_of(rows)


def _schema(annotation: Annotation, frame: pl.DataFrame) -> pa.Schema:
    kinds = {
        column: pa.type_for_alias(annotation.types[name])
        for name, column in annotation.columns.items()
    }
    return pa.schema(
        [
            pa.field(annotation.key, pa.string(), nullable=False)
            if name == annotation.key
            else pa.field(name, kinds[name])
            for name in frame.columns
        ]
    )


def crc32_of(rows: list[int], crc: int = 0) -> int:
    """Return the checksum of row checksums in their order, continued from an earlier part's."""
    return zlib.crc32(b"".join(row_sum.to_bytes(4, "little") for row_sum in rows), crc)


def rename_slide(store: Store, old: str, new: str, check: Callable[[], None]) -> None:
    """Rename a slide in all annotations of slides by writing their tables again."""
    annotations = tables_of(open_table(store, SLIDES))
    changed = {}
    for name, annotation in annotations.items():
        if annotation.level != SLIDE:
            continue
        table = open_table(store, str(annotation.path)).to_table()
        frame = pl.DataFrame(table).drop("row_crc32")
        if old in frame["slide_id"]:
            frame = frame.with_columns(pl.col("slide_id").replace({old: new}))
            changed[name] = write_new_table(store, annotation, frame)
    if changed:
        check()
        put_tables(store, {**annotations, **changed})


def write_new_table(store: Store, annotation: Annotation, frame: pl.DataFrame) -> Annotation:
    """Write an annotation's table at a new path; return the annotation with path and checksum."""
    path = f"{FOLDER}/{annotation.name}-{secrets.token_hex(4)}.lance"
    placed = replace(annotation, path=path, rows=frame.height)
    return replace(placed, crc32=write_table(store, placed, frame))
