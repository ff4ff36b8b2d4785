"""Slide files in folders of this machine: links to folders are followed, macOS's shadows left out.

A folder that is reached by two ways is read once, so a link that leads back to where it lies ends.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from cluster import counted
from ingest.readers.reader_table import folder_suffixes
from ingest.remote.remote_files import name_of

SHADOW = "._"  # macOS writes one beside each file on a disk that is not its own

Note = Callable[[str], None]


def is_slide(name: str) -> bool:
    """Whether a file's name is that of a slide."""
    return PurePosixPath(name_of(name)).suffix.lower() in folder_suffixes()


def is_shadow(name: str) -> bool:
    """Whether a file holds macOS's notes on another file, with its name and without pixels.

    >>> is_shadow("/slides/._a.svs"), is_shadow("/slides/a._b.svs")
    (True, False)
    """
    return name_of(name).startswith(SHADOW)


def slides_of(names: Iterable[str], note: Note) -> list[str]:
    """Return the slides among the files of a folder, sorted."""
    suffixes = folder_suffixes()  # once: a folder may hold 300,000 files

    def ends_as_slide(name: str) -> bool:
        plain = name if "://" not in name else name_of(name)
        return os.path.splitext(plain)[1].lower() in suffixes  # noqa: PTH122

    return without_shadows(sorted(filter(ends_as_slide, names)), note)


def without_shadows(names: list[str], note: Note) -> list[str]:
    """Return the files without macOS's shadow files, which are noted."""
    shadows = [name for name in names if is_shadow(name)]
    if shadows:
        more = ", ..." if shadows[1:] else ""
        note(f"{counted(len(shadows), 'file')} of macOS left out: {name_of(shadows[0])}{more}")
    return [name for name in names if not is_shadow(name)]


def files_under(folder: str, note: Note) -> Iterator[str]:
    """Yield all files under a folder, each once; folders that can't be read are noted."""
    visited: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        note(f"folder {error.filename} can't be read: {error.strerror}; its slides are not taken")

    for path, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        # A folder is read at its own place before the links that lead to it.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(path, name)), name))  # noqa: PTH114, PTH118
        yield from (os.path.join(path, name) for name in files)  # noqa: PTH118
