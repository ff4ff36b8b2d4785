"""The kinds of files that `verify` checks and `repair --checksums` completes: a line for each."""

from collections.abc import Callable, Iterator

from featurestore.annotations.lance_annotation_check import verify_annotations
from featurestore.keep.lance_roots import add_checksums, unchecked_files
from featurestore.keep.verify.damage import Damage
from featurestore.keep.verify.file_check import FileCheck
from featurestore.keep.verify.index_checksums import add_index_checksums, unchecked_indexes
from featurestore.lake import Lake
from featurestore.storage.sealed import (
    Sealing,
    sealings_of_runs,
    sealings_of_stats,
    sealings_of_students,
)
from featurestore.storage.store import Store


def _no_damage(_: Lake) -> Iterator[Damage]:
    yield from ()


def _add_roots(lake: Lake) -> int:
    with lake.committer.exclusive():
        return add_checksums(lake.store, lake.config)


#: Damage of these is looked for before anything is opened: see `lance_roots.roots_damage`.
ROOTS = FileCheck(
    name="files of tables",
    damage=_no_damage,
    missing=lambda lake: unchecked_files(lake.store, lake.config),
    add=_add_roots,
)

#: Their checksums stand in the rows, and in the configuration of `slides.lance`.
ANNOTATIONS = FileCheck(
    name="annotations", damage=verify_annotations, missing=lambda _: 0, add=lambda _: 0
)

#: Damage of these is found while shards are read: see `lance_verify`.
SHARD_INDEXES = FileCheck(
    name="indexes of shards",
    damage=_no_damage,
    missing=unchecked_indexes,
    add=add_index_checksums,
)


def _sealed(name: str, sealings: Callable[[Store], Iterator[Sealing]]) -> FileCheck:
    """Return the check of files whose checksums stand in a sealed JSON file beside them."""
    return FileCheck(
        name=name,
        damage=lambda lake: (d for one in sealings(lake.store) for d in one.damage(lake.store)),
        missing=lambda lake: sum(one.missing(lake.store) for one in sealings(lake.store)),
        add=lambda lake: sum(one.add(lake.store) for one in sealings(lake.store)),
    )


STATS = _sealed("files of statistics", sealings_of_stats)
STUDENTS = _sealed("files of students", sealings_of_students)
RUNS = _sealed("files of studies", sealings_of_runs)

FILE_CHECKS: tuple[FileCheck, ...] = (ROOTS, ANNOTATIONS, SHARD_INDEXES, STATS, STUDENTS, RUNS)
