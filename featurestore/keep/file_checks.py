"""The kinds of files that `verify` checks and `repair --checksums` completes: a line for each."""

from collections.abc import Iterator

from featurestore.damage import Damage
from featurestore.keep.file_check import FileCheck
from featurestore.keep.lance_roots import add_checksums, unchecked_files
from featurestore.lake import Lake


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

FILE_CHECKS: tuple[FileCheck, ...] = (ROOTS,)
