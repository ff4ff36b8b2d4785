"""Names of versions: tags of the catalog, each a small file of which `roots.json` keeps a copy."""

import json

from featurestore.errors import DamageError, LakeError
from featurestore.roots.roots_file import TAGS, readable_roots
from featurestore.storage.store import Store


def read_snapshots(store: Store) -> dict[str, int]:
    """Return the version that each snapshot names, by its name.

    Raises:
        DamageError: the file of a snapshot is gone or damaged.
    """
    roots = readable_roots(store)
    copies = {} if roots is None else roots.texts
    names = {f"{TAGS}/{file}" for file in store.names(TAGS)}
    names |= {path for path in copies if path.startswith(f"{TAGS}/")}
    return {_name(path): _version(store, path, copies.get(path)) for path in sorted(names)}


def version_named(store: Store, name: str) -> int:
    """Return the number of a lake version from its number as text or a snapshot's name.

    Raises:
        LakeError: there is no such snapshot.
        DamageError: the snapshot's file is damaged.
    """
    if name.isdecimal():
        return int(name)
    versions = read_snapshots(store)
    if name not in versions:
        msg = f"{store.uri} has no snapshot '{name}'; it has: {', '.join(versions) or 'none'}"
        raise LakeError(msg)
    return versions[name]


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _version(store: Store, path: str, copy: str | None) -> int:
    try:
        text = store.read_bytes(path)
        if copy in {None, text.decode()}:
            return int(json.loads(text)["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, LakeError):
            raise
    msg = (
        f"snapshot '{_name(path)}' of {store.uri} is damaged; `slidelake repair` writes it again, "
        "or give the version as a number"
    )
    raise DamageError(msg)
