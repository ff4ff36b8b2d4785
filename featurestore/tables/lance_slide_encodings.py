"""The tables of slide encodings, and the few calls to Lance that write them.

As the tables of annotations they are never changed: each has a path of its own, and the
configuration of `slides.lance`, which belongs to its version, names those of the lake. A slide's
vector takes a few kilobytes, so that a table is written again as a whole when slides are added.
"""

import json
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import lance
import polars as pl
import pyarrow as pa

from featurestore.storage.store import Store
from featurestore.tables.checksums import row_crc32
from featurestore.tables.lance_annotations import crc32_of
from featurestore.tables.lance_tables import STORAGE_VERSION, open_table
from featurestore.tables.schema import SLIDES
from featurestore.tables.slide_encoding import (
    PATIENT,
    SlideEncoding,
    encoding_from_json,
)

FOLDER = "slide_features"
CONFIG_KEY = "slidelake:slide_features"
KEY_TYPES = {"slide_id": pa.string(), "patient_id": pa.string(), "section": pa.int32()}
#: Beside the keys: number of tiles, checksums of the tiles and features that the vector is of.
SOURCE_FIELDS = (
    pa.field("tiles", pa.int32(), nullable=False),
    pa.field("tiles_crc32", pa.uint32(), nullable=False),
    pa.field("features_crc32", pa.uint32(), nullable=False),
)
VECTOR = "vector"


def encodings_of(slides: lance.LanceDataset) -> dict[str, SlideEncoding]:
    """Return the encodings at a version of `slides`, by place (`NAME@mpp0.5`)."""
    records: dict[str, Any] = json.loads(slides.config().get(CONFIG_KEY, "{}"))
    return {place: encoding_from_json(record) for place, record in records.items()}


def put_encodings(store: Store, encodings: Mapping[str, SlideEncoding]) -> None:
    """Record all encodings of the lake, in one commit."""
    records = {place: encoding.as_dict() for place, encoding in sorted(encodings.items())}
    open_table(store, SLIDES).update_config({CONFIG_KEY: json.dumps(records)})


def table_schema(encoding: SlideEncoding) -> pa.Schema:
    """Return the columns of an encoding's table."""
    element = pa.field("item", pa.float32(), nullable=False)
    return pa.schema(
        [
            *(pa.field(key, KEY_TYPES[key], nullable=False) for key in encoding.keys),
            *SOURCE_FIELDS,
            pa.field(VECTOR, pa.list_(element, encoding.dim), nullable=False),
            pa.field("row_crc32", pa.uint32(), nullable=False),
        ]
    )


def write_encoding(store: Store, encoding: SlideEncoding, frame: pl.DataFrame) -> SlideEncoding:
    """Write an encoding's table at a new path; return the encoding with path and checksum.

    Args:
        store: the lake's files.
        encoding: the encoding.
        frame: the keys, the columns of `SOURCE_FIELDS`, and `vector`, an array of float32 [D].
    """
    schema = table_schema(encoding)
    names = [name for name in schema.names if name != "row_crc32"]
    plain = pa.schema([schema.field(name) for name in names])
    table = pa.table(
        [frame[name].to_arrow().cast(plain.field(name).type) for name in names], schema=plain
    )
    rows = [row_crc32(row) for row in table.to_pylist()]
    table = table.append_column(schema.field("row_crc32"), pa.array(rows, pa.uint32()))
    path = f"{FOLDER}/{encoding.place}-{secrets.token_hex(4)}.lance"
    lance.write_dataset(
        table,
        store.url(path),
        schema=schema,
        data_storage_version=STORAGE_VERSION,
        enable_stable_row_ids=True,
        storage_options=store.lance_options,
    )
    return replace(encoding, path=path, rows=frame.height, crc32=crc32_of(rows))


def read_encoding(store: Store, encoding: SlideEncoding) -> pl.DataFrame:
    """Return an encoding's table as it is stored, without `row_crc32`."""
    return pl.DataFrame(open_table(store, encoding.path).to_table()).drop("row_crc32")


def change_rows(
    store: Store,
    change: Callable[[SlideEncoding, pl.DataFrame], pl.DataFrame],
    check: Callable[[], None],
) -> None:
    """Write the tables anew of which a function changes the rows, and record them.

    Args:
        store: the lake's files.
        change: function that returns the new rows of an encoding.
        check: raises LakeError if the lake's lock is held no more.
    """
    encodings = encodings_of(open_table(store, SLIDES))
    changed = {}
    for place, encoding in encodings.items():
        frame = read_encoding(store, encoding)
        new = change(encoding, frame)
        if not new.equals(frame):
            changed[place] = write_encoding(store, encoding, new)
    if changed:
        check()
        put_encodings(store, {**encodings, **changed})


def rename_slide(store: Store, old: str, new: str, check: Callable[[], None]) -> None:
    """Rename a slide in all encodings; one that has no patient is a patient of its name."""

    def renamed(encoding: SlideEncoding, frame: pl.DataFrame) -> pl.DataFrame:
        key = encoding.keys[0]
        is_other_patient = encoding.unit == PATIENT and _has_patient(store, old, new)
        if is_other_patient:
            return frame
        return frame.with_columns(pl.col(key).replace({old: new}))

    change_rows(store, renamed, check)


def _has_patient(store: Store, *names: str) -> bool:
    """Whether a slide of one of these names has a patient."""
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    table = open_table(store, SLIDES).to_table(
        columns=["patient_id"], filter=f"slide_id IN ({quoted})"
    )
    return any(patient is not None for patient in table["patient_id"].to_pylist())


def drop_slides(
    store: Store, slides: Collection[str], patients: Collection[str], check: Callable[[], None]
) -> None:
    """Take the vectors of slides out of all encodings, and those of their patients.

    Args:
        store: the lake's files.
        slides: names of the slides.
        patients: names of their patients.
        check: raises LakeError if the lake's lock is held no more.
    """

    def without(encoding: SlideEncoding, frame: pl.DataFrame) -> pl.DataFrame:
        key = encoding.keys[0]
        gone = patients if encoding.unit == PATIENT else slides
        return frame.filter(~pl.col(key).is_in(list(gone)))

    change_rows(store, without, check)
