"""Copies of files from one store to another; files that are there already are skipped.

A file appears in its place whole or not at all, so a copy that was killed goes on where it was.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from featurestore.errors import DamageError
from featurestore.storage.full_disk import naming_full_disk
from featurestore.storage.store import FileInfo, Store

CHUNK_BYTES = 16 << 20
THREADS = {True: 2, False: 16}  # both local, or a bucket at one end


def missing_files(
    source: Mapping[str, FileInfo], target: Mapping[str, FileInfo]
) -> Iterator[FileInfo]:
    """Yield the files that are not in the target yet, or not as they are in the source.

    Files of tables and shards never change once they are there; others (a run's metrics, a page)
    may, and are copied again if they are younger than their copy.
    """
    for path, file in source.items():
        copy = target.get(path)
        if (
            copy is None
            or copy.bytes != file.bytes
            or (not is_fixed(path) and file.modified > copy.modified)
        ):
            yield file


def is_fixed(path: str) -> bool:
    """Whether a file of a lake is written once, under a name of its own."""
    return path.startswith("tiles/") or (".lance/" in path and "/_refs/" not in path)


def copy_files(
    source: Store, target: Store, files: Iterator[FileInfo], on_file: Callable[[int], None]
) -> int:
    """Copy files, several at a time; returns how many.

    Args:
        source: store of the files.
        target: store of the copies, under the same paths.
        files: files to copy.
        on_file: called with the size of each file that was copied.

    Raises:
        DamageError: a file is not there any more.
        DiskFullError: there is no room for it.
    """
    count, running = 0, set[Future[int]]()
    with ThreadPoolExecutor(THREADS[source.is_local and target.is_local]) as pool:
        for file in files:
            if len(running) >= 64:  # not all at once: there may be a million
                done, running = wait(running, return_when=FIRST_COMPLETED)
                count += _finish(done, running, on_file)
            running.add(pool.submit(_copy, source, target, file))
        count += _finish(wait(running).done, set(), on_file)
    return count


def _finish(
    done: set[Future[int]], running: set[Future[int]], on_file: Callable[[int], None]
) -> int:
    try:
        for each in done:
            on_file(each.result())
    except BaseException:
        for other in running:
            other.cancel()
        raise
    return len(done)


def _copy(source: Store, target: Store, file: FileInfo) -> int:
    local = target.scratch(file.path)
    try:
        with naming_full_disk(target.uri):
            if source.is_local:
                shutil.copyfile(source.path(file.path), local)
            else:
                _fetch(source, file, local)
            if target.is_local:
                _synced(local)
            target.publish(local, file.path)
    except FileNotFoundError as error:
        msg = (
            f"{source.uri}/{file.path} is gone; `slidelake verify {source.uri}` shows what is whole"
        )
        raise DamageError(msg) from error
    finally:
        with suppress(FileNotFoundError):
            local.unlink()
    return file.bytes


def _fetch(source: Store, file: FileInfo, local: Path) -> None:
    with local.open("wb") as out:
        for start in range(0, file.bytes, CHUNK_BYTES):
            out.write(source.read_range(file.path, start, min(CHUNK_BYTES, file.bytes - start)))


def _synced(path: Path) -> None:
    """Have a file on the disk before it gets its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
