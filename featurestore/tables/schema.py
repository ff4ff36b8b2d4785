"""Arrow schemas of the lake's tables, and the names of their places.

The catalog is a ledger: a row with a null `teacher` holds the place of a slide's tiles at one mpp;
a row with a teacher holds the checksum of its features of these tiles.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.licences import Licence, licence_metadata

SLIDES = "slides.lance"
CATALOG = "catalog.lance"
#: The column of each that a B-tree index finds rows by.
INDEX_COLUMNS = {SLIDES: "slide_id", CATALOG: "slide"}

READY, FAILED, PENDING = "ready", "failed", "pending"
#: Of a row that keeps the number of a slide taken; readers leave it out.
DROPPED = "dropped"

SLIDES_SCHEMA = pa.schema(
    [
        pa.field("slide", pa.int32(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string()),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("why", pa.string()),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string()),
        pa.field("listing_mark", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width_px", pa.int32()),
        pa.field("height_px", pa.int32()),
        pa.field("mpp", pa.float64()),
        pa.field("mpp_source", pa.string()),
        pa.field("mpp_x", pa.float64()),
        pa.field("mpp_y", pa.float64()),
        pa.field("objective", pa.float32()),
        pa.field("vendor", pa.string()),
        pa.field("levels", pa.int32()),
        pa.field("reader", pa.string()),
        pa.field("fallback", pa.string()),
        pa.field("notes", pa.string()),
        pa.field("bytes_read", pa.int64()),
        pa.field("tissue", pa.float32()),
        pa.field("pen", pa.float32()),
        pa.field("seconds", pa.float32()),
        pa.field("extra", pa.string()),
        pa.field("cut_with", pa.string()),
        pa.field("thumbnail", pa.binary()),
        pa.field("tissue_mask", pa.binary()),
        pa.field("tissue_geojson", pa.string()),
        pa.field("icc_profile", pa.binary()),
        pa.field("row_crc32", pa.uint32()),
    ]
)

CATALOG_SCHEMA = pa.schema(
    [
        pa.field("slide", pa.int32(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("mpp", pa.float64(), nullable=False),
        pa.field("teacher", pa.string()),
        pa.field("tiles", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("fragment", pa.int64(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("shard", pa.string()),
        pa.field("shard_bytes", pa.int64()),
        pa.field("shard_crc32", pa.uint32()),
        pa.field("index_crc32", pa.uint32()),
        pa.field("effective_mpp", pa.float64()),
        pa.field("tile_px_level0", pa.int32()),
        pa.field("grid_px_level0", pa.int32()),
        pa.field("grid_width", pa.int32()),
        pa.field("grid_height", pa.int32()),
        pa.field("row_crc32", pa.uint32()),
    ]
)

#: The scores that every tile has in format 1; `ingest.scores.score_table` defines them.
SCORE_FIELDS = [
    pa.field(name, pa.float32()) for name in ("tissue", "pen", "focus", "brightness", "saturation")
]
TILE_FIELDS = [
    pa.field("tile_id", pa.int64(), nullable=False),
    pa.field("slide", pa.int32(), nullable=False),
    pa.field("slide_id", pa.string(), nullable=False),
    pa.field("grid_y", pa.int32(), nullable=False),
    pa.field("grid_x", pa.int32(), nullable=False),
    pa.field("y", pa.int32(), nullable=False),
    pa.field("x", pa.int32(), nullable=False),
    *SCORE_FIELDS,
    pa.field("codec", pa.string()),
]
TILE_COLUMNS = tuple(field.name for field in TILE_FIELDS)

# A plus stands in a pooling (`virchow2:cls+mean`) alone: elsewhere it joins teachers.
TEACHER_NAME = re.compile(
    r"(?=.{1,100}$)[A-Za-z0-9][A-Za-z0-9_@-]*(:[A-Za-z0-9_:@-]+(\+mean(@[A-Za-z0-9@]+)?)?)?"
)
#: A quantised column: its source's name and the codec's.
QUANTISED_NAME = re.compile(rf"(?=.{{1,100}}$){TEACHER_NAME.pattern}~[a-z0-9]+")
IDENTITY_KEY = b"slidelake:identity"
CODEC_KEY = b"slidelake:codec"

#: What a column of a features table is; its field metadata name it under `KIND_KEY`.
TILE, TEACHER, SCORE, ANNOTATION, OTHER = "tile", "teacher", "score", "annotation", "other"
#: What the metadata of a teacher's column of codes say; readers from before codecs leave it alone.
QUANTISED = "quantised"
KIND_KEY = b"slidelake:kind"


def features_table(mpp: float) -> str:
    """Return the path of the wide table of one mpp, relative to the lake."""
    return f"features/mpp{mpp_name(mpp)}.lance"


def shard_path(mpp: float, slide: int, mark: str) -> str:
    """Return the path of a slide's shard; `mark` differs where the slide was scanned again."""
    return f"tiles/mpp{mpp_name(mpp)}/{slide:06d}-{mark}.tar"


def tiles_schema(mpp: float, tile_px: int) -> pa.Schema:
    """Return the schema of a features table before any teacher was added."""
    metadata = {"slidelake:mpp": mpp_name(mpp), "slidelake:tile_px": str(tile_px)}
    return pa.schema(TILE_FIELDS, metadata=metadata)


def tiles_table(mpp: float, tile_px: int, columns: Mapping[str, Any]) -> pa.Table:
    """Return rows of tiles from their columns; missing columns are null."""
    schema = tiles_schema(mpp, tile_px)
    rows = len(columns["tile_id"])
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def teacher_field(
    name: str, dim: int, identity: Mapping[str, Any], licence: Licence | None = None
) -> pa.Field:
    """Return the column of a teacher: a nullable fixed-size list of float16.

    Args:
        name: the teacher's name; it is the column's name.
        dim: length of an embedding.
        identity: weights hash, pooling, preprocessing, precision: all that decides the numbers.
        licence: licence of the encoder; None if nothing is known of it.

    Raises:
        LakeError: the name has other characters than letters, digits and `_ : @ -` (`+` joins
            teachers in a feature set, but for the pooling `cls+mean`), or is that of a tile column.
    """
    if not TEACHER_NAME.fullmatch(name) or name in TILE_COLUMNS:
        msg = (
            f"'{name}' can't name a teacher: use letters, digits and _ : @ - (no dots, no +), "
            f"and none of {', '.join(TILE_COLUMNS)}"
        )
        raise LakeError(msg)
    element = pa.field("item", pa.float16(), nullable=True)
    text = json.dumps(identity, sort_keys=True)
    metadata = {IDENTITY_KEY: text, KIND_KEY: TEACHER, **licence_metadata(licence)}
    return pa.field(name, pa.list_(element, dim), nullable=True, metadata=metadata)


def quantised_field(
    name: str,
    codes: int,
    identity: Mapping[str, Any],
    record: Mapping[str, Any],
    licence: Licence | None = None,
) -> pa.Field:
    """Return the column of a teacher's features as codes: a nullable fixed-size list of uint8.

    Args:
        name: the source's name, `~` and the codec's.
        codes: number of codes of a tile.
        identity: identity of the source, with the codec's.
        record: codec, `dim` and `tokens` of the features, path and checksum of the codec's file.
        licence: licence of the source's encoder, which the codes have too; None if none is kept.

    Raises:
        LakeError: a quantised column can't have this name.
    """
    check_column_name(name, quantised=True)
    metadata = {
        IDENTITY_KEY: json.dumps(identity, sort_keys=True),
        KIND_KEY: QUANTISED,
        CODEC_KEY: json.dumps(record, sort_keys=True),
        **licence_metadata(licence),
        # Rows of few bytes are packed otherwise, and could not be read in place.
        b"lance-encoding:structural-encoding": "fullzip",
    }
    element = pa.field("item", pa.uint8(), nullable=True)
    return pa.field(name, pa.list_(element, codes), nullable=True, metadata=metadata)


def check_column_name(name: str, *, quantised: bool) -> None:
    """Raise LakeError if a teacher's column, or a quantised one, can't have a name."""
    if quantised and not QUANTISED_NAME.fullmatch(name):
        msg = f"'{name}' can't name a quantised column: it is NAME~CODEC, as in uni2_h~int8"
        raise LakeError(msg)
    if not quantised:
        teacher_field(name, 1, {})


def is_quantised(field: pa.Field) -> bool:
    """Whether a column holds codes of a teacher's features."""
    kind = (field.metadata or {}).get(KIND_KEY, b"").decode(errors="replace")
    holds_codes = pa.types.is_fixed_size_list(field.type) and pa.types.is_uint8(
        field.type.value_type
    )
    return kind == QUANTISED and holds_codes and CODEC_KEY in field.metadata


def dim_of(field: pa.Field) -> int:
    """Return the number of values of a tile in a teacher's column, as they are read."""
    if is_quantised(field):
        return int(json.loads(field.metadata[CODEC_KEY])["dim"])
    return int(field.type.list_size)


def kind_of(field: pa.Field) -> str:
    """Return the kind of a features table's column: tile, teacher, score, annotation or other.

    A column that carries no kind, or calls itself a teacher and holds no embeddings, is classified
    by its type: a fixed-size list of float16 is a teacher's, any other column is of unknown origin.

    >>> kind_of(pa.field("uni2", pa.list_(pa.float16(), 8))), kind_of(pa.field("mine", pa.int64()))
    ('teacher', 'other')
    """
    if field.name in TILE_COLUMNS:
        return TILE
    named: bytes = (field.metadata or {}).get(KIND_KEY, b"")
    kind = named.decode(errors="replace")
    if kind in (SCORE, ANNOTATION):
        return kind
    if is_quantised(field):
        return TEACHER
    holds_embeddings = pa.types.is_fixed_size_list(field.type) and pa.types.is_float16(
        field.type.value_type
    )
    return TEACHER if holds_embeddings else OTHER


def is_teacher(field: pa.Field) -> bool:
    """Whether a field of a features table is a teacher's column."""
    return kind_of(field) == TEACHER


def identity_of(field: pa.Field) -> dict[str, Any]:
    """Return the identity kept with a teacher's column."""
    text = (field.metadata or {}).get(IDENTITY_KEY, b"{}")
    identity: dict[str, Any] = json.loads(text)
    return identity
