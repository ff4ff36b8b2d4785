"""`lake.json` compared with the copy that `roots.json` keeps of it: settings never change."""

import contextlib

from featurestore.config import LakeConfig
from featurestore.errors import DamageError, FormatError, LakeMissingError, NewerFormatError
from featurestore.roots.roots_file import LAKE_FILE, ROOTS_FILE, Roots, readable_roots
from featurestore.storage.store import Store


def read_settings(store: Store, roots: Roots | None = None) -> LakeConfig:
    """Read the settings of a lake.

    Args:
        store: the lake's files.
        roots: contents of `roots.json`, if they were read already.

    Raises:
        LakeMissingError: there is no lake.
        DamageError: `lake.json` is gone or is not what was written.
        NewerFormatError: the lake was written by a newer slidelake.
        FormatError: the file is not a lake's `lake.json`.
    """
    roots = roots or readable_roots(store)
    copy = roots.texts.get(LAKE_FILE, "") if roots is not None else ""
    try:
        content = store.read_bytes(LAKE_FILE)
    except FileNotFoundError as error:
        if copy:
            raise _damage_error(store, "is gone") from error
        fault = "is not a lake (no lake.json)" if store.fs.exists(store.root) else "does not exist"
        msg = f"{store.uri} {fault}; `slidelake ingest` makes one"
        raise LakeMissingError(msg) from error
    if copy and content != copy.encode():
        raise _damage_error(store, "is not what was written")
    return LakeConfig.from_json(content, uri=store.uri)


def settings_or_copy(store: Store) -> LakeConfig:
    """Read the settings of a lake, from the copy in `roots.json` if `lake.json` is damaged.

    Raises:
        LakeMissingError: there is no lake.
        DamageError: both are damaged.
        NewerFormatError: the lake was written by a newer slidelake.
    """
    try:
        return read_settings(store)
    except NewerFormatError:
        raise
    except (DamageError, FormatError) as error:
        roots = readable_roots(store)
        copy = roots.texts.get(LAKE_FILE) if roots is not None else None
        if copy is not None:
            return LakeConfig.from_json(copy.encode(), uri=store.uri)
        msg = (
            f"{store.uri}/{LAKE_FILE} is damaged, and {ROOTS_FILE} has no copy of it: take it from "
            f"a copy of the lake ({error})"
        )
        raise DamageError(msg) from error


def _damage_error(store: Store, fault: str) -> DamageError:
    return DamageError(
        f"{store.uri}/{LAKE_FILE} {fault}; `slidelake verify` shows what else is damaged, "
        "`slidelake repair` writes it again"
    )


def is_lake(store: Store) -> bool:
    """Whether there is a lake at a place.

    Raises:
        DamageError: there is a lake, but its `lake.json` is gone.
    """
    if not store.is_local:  # a file is asked for by one request, a file or folder by two
        with contextlib.suppress(FileNotFoundError):
            store.read_bytes(LAKE_FILE)
            return True
    elif store.exists(LAKE_FILE):
        return True
    roots = readable_roots(store)
    if roots is not None and LAKE_FILE in roots.texts:
        raise _damage_error(store, "is gone")
    return False
