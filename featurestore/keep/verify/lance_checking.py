"""`verify` of a lake that may not open: damaged parts are named, and nothing is raised.

The command runs it in a process of its own, since Lance may abort while it reads a damaged file;
`on_table` gets the table that is read next, so that it can be named then.
"""

import os
from collections.abc import Callable

from featurestore.errors import DamageError, LakeError
from featurestore.keep.verify.checked_reads import UnreadableError, read
from featurestore.keep.verify.damage import TABLE, Damage, Verdict
from featurestore.keep.verify.lance_verify import verify
from featurestore.keep.verify.lance_versions import whole_versions
from featurestore.keep.verify.root_files import roots_damage
from featurestore.lake import Lake
from featurestore.roots.lake_settings import settings_or_copy
from featurestore.roots.snapshots import version_named
from featurestore.storage.store import Store
from featurestore.tables.schema import CATALOG


def open_unchecked(store: Store, version: int | None) -> Lake:
    """Open a lake as it is, without a look at `roots.json`.

    Raises:
        LakeMissingError: there is none.
        UnreadableError: the lake's catalog can't be opened.
    """
    config = settings_or_copy(store)
    return read(store, lambda: Lake(store, config, version, believed=True))


def check_lake(
    uri: str | os.PathLike[str],
    *,
    at: str | None = None,
    sample: float = 1.0,
    seed: int = 0,
    on_total: Callable[[int], None] = lambda _: None,
    on_slide: Callable[[int], None] = lambda _: None,
    on_table: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Compare a lake with its catalog, as `verify` does, also if the lake can't be opened.

    Args:
        uri: folder or URL of the lake.
        at: number of a version or name of a snapshot; the newest version if None.
        sample: share of slides that are read in full.
        seed: another seed samples other slides.
        on_total: called once with the number of slides to read, each mpp counted.
        on_slide: called with 1 after each slide at each mpp.
        on_table: called with the table that is read next.

    Raises:
        LakeMissingError: there is no lake.
        AccessError: the lake could not be read, though it may be whole.
        LakeError: the lake has no such version or snapshot.
    """
    store = Store(uri)
    config = settings_or_copy(store)
    version = None if at is None else version_named(store, at)
    root_damage = [] if version is not None else list(roots_damage(store))
    catalog_damage = [one for one in root_damage if one.part == TABLE and one.path == CATALOG]
    on_table(CATALOG)
    if not catalog_damage:
        try:
            lake = open_unchecked(store, version)
        except (UnreadableError, DamageError) as error:
            fault = f"table {CATALOG} can't be opened: {error}"
            catalog_damage = [Damage(description=fault, part=TABLE, path=CATALOG)]
        else:
            return verify(
                lake,
                sample=sample,
                seed=seed,
                on_total=on_total,
                on_slide=on_slide,
                on_table=on_table,
            )
    other_damage = [one for one in root_damage if one not in catalog_damage]
    verdict = Verdict(version=version or 0, damage=[*catalog_damage, *other_damage])
    verdict.whole = whole_versions(store, config)
    return verdict


def lake_to_mend(uri: str | os.PathLike[str]) -> Lake:
    """Return the newest version of a lake with undamaged tables but other damage.

    Raises:
        LakeError: the lake can't be opened.
    """
    try:
        return open_unchecked(Store(uri), None)
    except UnreadableError as error:
        raise LakeError(str(error)) from error
