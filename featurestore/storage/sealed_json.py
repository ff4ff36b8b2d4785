"""JSON files that name the size and CRC-32 of the files beside them, and their own checksum.

So are the moments of features (`card.json`), students (`report.json`) and studies (`result.json`)
checked: Lance's tables have the catalog, these files have none. Files of early lakes name nothing
and are taken as they are; `slidelake repair --checksums` seals them.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from featurestore.errors import DamageError
from featurestore.storage.read_errors import meaning_of
from featurestore.storage.store import Store

CHECKSUMS, OWN = "checksums", "card_crc32"

Json = dict[str, Any]


def checksum_of(content: bytes) -> list[int]:
    """Return size and CRC-32 of a file's bytes."""
    return [len(content), zlib.crc32(content)]


def own_checksum(fields: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a JSON object without its own checksum: keys sorted, no spaces.

    >>> own_checksum({"a": 1, "card_crc32": 5}) == own_checksum({"a": 1})
    True
    """
    rest = {key: fields[key] for key in fields if key != OWN}
    return zlib.crc32(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def sealed(fields: Mapping[str, Any], files: Mapping[str, bytes]) -> Json:
    """Return a JSON object with the checksums of the files beside it, by name, and its own."""
    named = {name: checksum_of(content) for name, content in sorted(files.items())}
    return resealed({**fields, CHECKSUMS: named})


def resealed(fields: Mapping[str, Any]) -> Json:
    """Return a changed JSON object with a new checksum of its own.

    An object of an early lake, without checksums of files, stays without its own.
    """
    early = CHECKSUMS not in fields
    return dict(fields) if early else {**fields, OWN: own_checksum(json.loads(json.dumps(fields)))}


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(fields, indent=2) + "\n").encode()


def read_sealed(store: Store, path: str) -> Json:
    """Return a sealed JSON object; an early object without checksums is not compared.

    Raises:
        DamageError: the file is gone or damaged.
        AccessError: the file can't be read now.
    """
    try:
        fields = json.loads(store.read_bytes(path))
    except (OSError, ValueError) as error:
        raise meaning_of(error, store, f"{path} can't be read") from error
    if not isinstance(fields, dict) or not _is_whole(fields):
        raise differs(path)
    return fields


def _is_whole(fields: Json) -> bool:
    early = OWN not in fields and CHECKSUMS not in fields
    return early or fields.get(OWN) == own_checksum(fields)


def differs(path: str) -> DamageError:
    """Return the error for a file that is not what was written."""
    advice = "`slidelake verify` lists all damage; make the file again, or take it from a copy"
    return DamageError(f"{path} is not what was written (checksum); {advice}")


def read_named(store: Store, path: str, seal: Mapping[str, Any]) -> bytes:
    """Read a file and compare it with its checksum in the sealed JSON object beside it.

    Args:
        store: the lake's files.
        path: path of the file, in the lake.
        seal: the JSON object; without a checksum (early objects) nothing is compared.

    Raises:
        DamageError: the file is gone, or not what was written.
        AccessError: the file can't be read now.
    """
    try:
        content = store.read_bytes(path)
    except OSError as error:
        raise meaning_of(error, store, f"{path} can't be read") from error
    if not is_named(path, content, seal):
        raise differs(path)
    return content


def is_named(path: str, content: bytes, seal: Mapping[str, Any]) -> bool:
    """Whether a file is what its seal names, or is not named by it."""
    for name, checksum in seal.get(CHECKSUMS, {}).items():
        if path.endswith(f"/{name}"):
            return bool(checksum_of(content) == checksum)
    return True
