"""The tables that the holder of a lake's commit lock has opened: each is opened once.

Only the holder commits, so what it opened or committed last is the newest version of a table; to
ask the store again costs a listing and a manifest each time, a dozen times a commit. A holder that
lost its lock is stopped by the lock's own check, and Lance compares versions in each commit.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import lance

from featurestore.storage.store import Store

# Manifests, transactions, footers and pages of indexes; a bag's rows are in neither cache.
CACHE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class HeldTables:
    """Tables of one lake at their newest versions.

    Attributes:
        uri: URI of the lake.
        session: cache of Lance that the tables share; None for none.
        newest: tables by their path in the lake. Lance moves such an object to the new version when
            it is changed in place (`add_columns` and its likes).
        properties: properties of transactions that were read, by the table's URI and the version.
    """

    uri: str
    session: lance.Session | None = None
    newest: dict[str, lance.LanceDataset] = field(default_factory=dict)
    properties: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)


_HELD: ContextVar[tuple[HeldTables, ...]] = ContextVar("held tables of lakes", default=())


def new_session(store: Store) -> lance.Session | None:
    """Return an empty cache for the tables of a lake in a bucket; None for a local lake.

    It keeps what never changes once it is written, and the connections of Lance's client.
    """
    if store.is_local:
        return None
    return lance.Session(index_cache_size_bytes=CACHE_BYTES, metadata_cache_size_bytes=CACHE_BYTES)


@contextlib.contextmanager
def held_tables(store: Store, session: lance.Session | None = None) -> Iterator[None]:
    """Open each table of a lake once inside the block; the caller holds the lake's commit lock.

    Other threads open tables as always.

    Args:
        store: the lake's files.
        session: cache that outlives the block; None for a new one.
    """
    held = HeldTables(uri=store.uri, session=session or new_session(store))
    token = _HELD.set((*_HELD.get(), held))
    try:
        yield
    finally:
        _HELD.reset(token)


def kept_properties() -> dict[tuple[str, int], dict[str, str]]:
    """Return the properties of transactions that were read under the lock; a new dict without."""
    held = _HELD.get()
    return held[-1].properties if held else {}


def held_by(store: Store) -> HeldTables | None:
    """Return the tables of a lake that this thread holds the commit lock of; None without it."""
    return next((held for held in _HELD.get() if held.uri == store.uri), None)
