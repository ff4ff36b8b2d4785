"""The kinds of files that `verify` checks and `repair --checksums` completes: a line for each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from featurestore.codecs.codec_files import codec_paths
from featurestore.keep.verify.damage import FILE, Damage
from featurestore.keep.verify.index_checksums import add_index_checksums, unchecked_indexes
from featurestore.keep.verify.lance_annotation_check import verify_annotations, verify_encodings
from featurestore.keep.verify.root_files import add_checksums, unchecked_files
from featurestore.keep.verify.sealings import (
    Sealing,
    checkpoint_damage,
    sealings_of_runs,
    sealings_of_stats,
    sealings_of_students,
)
from featurestore.lake import Lake
from featurestore.storage.store import Store
from featurestore.tables.schema import features_table


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """The check of one kind of file with a checksum in the lake.

    A kind that `verify` checks anyhow while it reads slide after slide (indexes of shards) yields
    no damage here; it only counts and adds.

    Attributes:
        name: the kind in the plural, for people: "indexes of shards".
        damage: yields what differs from its checksum, without raising for damage.
        missing: counts the files of a lake that have no checksum.
        add: records the checksums that are missing, and returns how many; the files are read as
            they are now. It acquires the lake's lock by itself.
    """

    name: str
    damage: Callable[[Lake], Iterator[Damage]]
    missing: Callable[[Lake], int]
    add: Callable[[Lake], int]


def _no_damage(_: Lake) -> Iterator[Damage]:
    yield from ()


def _add_roots(lake: Lake) -> int:
    with lake.committer.exclusive():
        return add_checksums(lake.store, lake.config)


#: Damage of these is looked for before anything is opened: see `root_files.roots_damage`.
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

#: As those of annotations.
ENCODINGS = FileCheck(
    name="slide encodings", damage=verify_encodings, missing=lambda _: 0, add=lambda _: 0
)

#: Damage of these is found while shards are read: see `lance_verify`.
SHARD_INDEXES = FileCheck(
    name="indexes of shards",
    damage=_no_damage,
    missing=unchecked_indexes,
    add=add_index_checksums,
)


def _sealed_check(name: str, sealings: Callable[[Store], Iterator[Sealing]]) -> FileCheck:
    """Return the check of files with checksums in a sealed JSON file beside them."""
    return FileCheck(
        name=name,
        damage=lambda lake: (d for one in sealings(lake.store) for d in one.damage(lake.store)),
        missing=lambda lake: sum(one.missing(lake.store) for one in sealings(lake.store)),
        add=lambda lake: sum(one.add(lake.store) for one in sealings(lake.store)),
    )


STATS = _sealed_check("files of statistics", sealings_of_stats)
STUDENTS = _sealed_check("files of students", sealings_of_students)
RUNS = _sealed_check("files of runs", sealings_of_runs)


def _lost_codecs(lake: Lake) -> Iterator[Damage]:
    """Yield the codecs of columns that are gone; damaged ones are found among the statistics."""
    for mpp in lake.config.mpps:
        for column, paths in codec_paths(lake.table(features_table(mpp)).schema).items():
            for path in paths:
                if not lake.exists(path):
                    text = f"the codec of '{column}' is gone, so its features can't be read"
                    yield Damage(mpp=mpp, teacher=column, description=text, part=FILE, path=path)


CODECS = FileCheck(name="codecs", damage=_lost_codecs, missing=lambda _: 0, add=lambda _: 0)

#: They change all the time, so the checksums are in them: each is a zip archive.
CHECKPOINTS = FileCheck(
    name="checkpoints",
    damage=lambda lake: checkpoint_damage(lake.store),
    missing=lambda _: 0,
    add=lambda _: 0,
)

FILE_CHECKS: tuple[FileCheck, ...] = (
    ROOTS,
    ANNOTATIONS,
    ENCODINGS,
    SHARD_INDEXES,
    STATS,
    CODECS,
    STUDENTS,
    RUNS,
    CHECKPOINTS,
)
