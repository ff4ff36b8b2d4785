"""Files of codecs: arrays in safetensors under `stats/`, named by the column's field metadata."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from safetensors.numpy import load, save

from featurestore.codecs.codec import Codec
from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.licences import Licence
from featurestore.storage.read_errors import meaning_of
from featurestore.storage.sealed_json import checksum_of, json_bytes, sealed
from featurestore.storage.store import Store
from featurestore.tables.schema import CODEC_KEY, is_quantised, quantised_field

FILE = "codec.safetensors"


def column_name(source: str, codec: str) -> str:
    """Return the name of a source's quantised column.

    >>> column_name("uni2_h", "int8")
    'uni2_h~int8'
    """
    return f"{source}~{codec}"


def write_codec(
    store: Store,
    source: str,
    mpp: float,
    codec: Codec,
    identity: Mapping[str, Any],
    licence: Licence | None = None,
) -> pa.Field:
    """Write a codec's files and return the field of its column, which names them.

    Args:
        store: the lake's files.
        source: the column that is quantised.
        mpp: microns per pixel of its tiles.
        codec: the fitted codec.
        identity: identity of the source.
        licence: licence that is kept with the source, if one is.
    """
    content = save(dict(sorted(codec.arrays.items())))
    sha256, name = hashlib.sha256(content).hexdigest(), column_name(source, codec.name)
    folder = f"stats/{name}@mpp{mpp_name(mpp)}/codec-{sha256[:12]}"
    facts = {"codec": codec.name, "dim": codec.dim, "tokens": codec.tokens}
    own_identity = {**identity, "source": source, "codec": codec.name, "codec_sha256": sha256}
    card = {**facts, "teacher": name, "mpp": mpp, "identity": own_identity}
    store.write_bytes(f"{folder}/{FILE}", content)
    store.write_bytes(f"{folder}/card.json", json_bytes(sealed(card, {FILE: content})))
    record = {**facts, "path": f"{folder}/{FILE}", "checksum": checksum_of(content)}
    return quantised_field(name, codec.codes, own_identity, record, licence)


def codec_paths(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the files of the codec of each quantised column of a features table."""
    records = {
        field.name: json.loads(field.metadata[CODEC_KEY])["path"]
        for field in schema
        if is_quantised(field)
    }
    return {name: (path, f"{path.removesuffix(FILE)}card.json") for name, path in records.items()}


def read_codec(store: Store, field: pa.Field) -> Codec:
    """Return the codec of a quantised column.

    Raises:
        DamageError: its file is gone or damaged.
        LakeError: a later slidelake wrote it, with a codec that is not known here.
    """
    record: dict[str, Any] = json.loads(field.metadata[CODEC_KEY])
    path = record["path"]
    try:
        content = store.read_bytes(path)
    except OSError as error:
        raise meaning_of(error, store, f"the codec of '{field.name}', {path}") from error
    if checksum_of(content) != record["checksum"]:
        msg = (
            f"the codec of '{field.name}', {path}, is not what was written (checksum): take the "
            "file from a copy, or `slidelake drop` the column and quantise again"
        )
        raise DamageError(msg)
    codec = Codec(
        name=record["codec"], dim=record["dim"], tokens=record["tokens"], arrays=load(content)
    )
    try:
        codes = codec.codes
    except LakeError as error:
        msg = f"'{field.name}' has a codec of a later slidelake: {error}"
        raise LakeError(msg) from error
    if codes != field.type.list_size:
        msg = f"'{field.name}' has {field.type.list_size} codes a tile, and a codec of {codes}"
        raise DamageError(msg)
    return codec
