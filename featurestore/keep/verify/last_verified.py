"""The version that `verify` last found whole, which no automatic vacuum frees."""

import json
from datetime import UTC, datetime

from featurestore.errors import LakeError
from featurestore.storage.store import Store

VERIFIED = "verified.json"


def last_verified(store: Store) -> int | None:
    """Return the newest version that `verify` found whole in full; None without a record."""
    try:
        record = json.loads(store.read_bytes(VERIFIED))
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, LakeError):  # the bucket does not answer
            raise
        return None
    version = record.get("version") if isinstance(record, dict) else None
    return version if isinstance(version, int) else None


def record_verified(store: Store, version: int) -> bool:
    """Record a version as verified, unless a newer version was verified.

    Returns:
        Whether it is written down; a lake that may only be read has no record.
    """
    newest = last_verified(store)
    if newest is not None and newest >= version:
        return True
    record = {"version": version, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        store.write_bytes(VERIFIED, (json.dumps(record) + "\n").encode())
    except (OSError, LakeError):
        return False
    return True
