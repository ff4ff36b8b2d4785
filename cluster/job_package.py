"""The small files that travel with a job, as one archive that every node unpacks.

Ray keeps such an archive in the memory of its head and copies it to each node that works for the
job, so it is bounded. Its bytes depend on names and contents alone: the same files are uploaded
once. Only what a command line names travels, and no file or folder whose name starts with a dot.
"""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.errors import ClusterError

#: Most bytes of all files that travel with one job.
MOST_BYTES = 50_000_000
#: Most files that travel with one job.
MOST_FILES = 20_000
#: Folder of the files in the job's working directory.
FOLDER = "submitted"

_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16
_COPY_BYTES = 1 << 20


def packed_name(path: Path, taken: Mapping[str, Path]) -> str:
    """Return the path that a file or folder gets in the job, by its own name.

    Two of the same name in different folders are told apart by a number. The path has nothing else
    of this machine in it, so the same command line is the same job, wherever it was sent from.

    Example:
        >>> packed_name(Path("/home/me/labels.csv"), {})
        'submitted/labels.csv'
        >>> packed_name(Path("/tmp/labels.csv"), {"submitted/labels.csv": Path("/home/labels.csv")})
        'submitted/2/labels.csv'

    Args:
        path: the file or folder, as an absolute path.
        taken: path in the job -> path on this machine, of those that have one.
    """
    for number in range(1, len(taken) + 2):
        name = f"{FOLDER}/{path.name}" if number == 1 else f"{FOLDER}/{number}/{path.name}"
        if taken.get(name, path) == path:
            return name
    raise AssertionError  # one of so many names is free


def write_package(files: Mapping[str, Path], archive: Path) -> int:
    """Write files and folders into one ZIP archive, and return the number of their bytes.

    Args:
        files: path in the job -> file or folder on this machine.
        archive: the archive, which is made.

    Raises:
        ClusterError: there are too many files or bytes, a file can't be read, or one that was
            named starts with a dot.
    """
    total = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        for count, (name, path) in enumerate(_all_files(files), start=1):
            total += _size(path)
            if count > MOST_FILES or total > MOST_BYTES:
                raise _too_much(files)
            _add(package, name, path)
    return total


def _all_files(files: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the name in the archive and the path of each file, sorted; hidden files are left out.

    A link to a folder is not followed below a folder that was named.
    """
    for name, path in sorted(files.items()):
        if path.name.startswith("."):
            msg = (
                f"{path} starts with a dot, as files with settings and passwords do; such a file "
                "does not travel with a job: copy it to another name if it is meant"
            )
            raise ClusterError(msg)
        if not path.is_dir():
            yield name, path
            continue
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = sorted(one for one in subfolders if not one.startswith("."))
            for file in sorted(names):
                if not file.startswith("."):
                    found = Path(folder, file)
                    yield f"{name}/{found.relative_to(path).as_posix()}", found


def _size(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, str(error)) from error
    raise _unreadable(path, "it is no file")


def _add(package: zipfile.ZipFile, name: str, path: Path) -> None:
    entry = zipfile.ZipInfo(name, _FIRST_DATE)
    entry.external_attr, entry.compress_type = _MODE, zipfile.ZIP_DEFLATED
    try:
        with path.open("rb") as source, package.open(entry, "w") as target:
            while block := source.read(_COPY_BYTES):
                target.write(block)
    except OSError as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ClusterError:
    return ClusterError(f"{path} can't travel with the job: {why}")


def _too_much(files: Mapping[str, Path]) -> ClusterError:
    names = ", ".join(str(path) for path in files.values())
    return ClusterError(
        f"{names}: more than {MOST_FILES:,} files or {MOST_BYTES / 1e6:g} MB, which is all that "
        "travels with a job; put them into a bucket and name them by URL, or on a disk that all "
        "nodes see and name that by --shared"
    )
