"""What a listing states of slide files: a mark of the content, and the time of the last change.

A file whose mark is the one that the lake keeps is the file that was read, so none of its bytes
are read again: 300,000 known slides take seconds on a disk and 300 requests in a bucket, where
reading both ends of each would take 39 GB.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurestore.storage import protocol_of
from ingest.errors import SlideError
from ingest.remote.remote_errors import BUCKETS, as_slide_errors
from ingest.remote.remote_files import RemoteFile, is_local, open_fs, split_image

AT_ONCE = 16  # on a file server and in a bucket it is nothing but waiting
STATS_A_TASK = 256
#: From so many files of one folder of a bucket on, the folder is listed: 1,000 files a request.
MANY_OF_A_FOLDER = 50
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
CONTENT_MARKS = ("ETag", "etag", "md5Hash", "generation")


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedFile:
    """What a listing states of one file.

    Attributes:
        mark: size, and ETag or time of modification, as text; None if neither is stated.
        changed_s: time of the last change in seconds since 1970; on a disk also that of its
            arrival (its ctime), since copies may keep an older time. None if it is not stated.
    """

    mark: str | None = None
    changed_s: float | None = None


NOTHING = ListedFile()
Listing = dict[str, ListedFile]


def list_files(uris: Iterable[str], listing: Mapping[str, ListedFile]) -> Listing:
    """Return what a listing states of files, by URI; files that can't be listed are left out.

    Args:
        uris: URIs of files; `slide.tif#2` is the file slide.tif.
        listing: what listings of their folders have stated already.
    """
    local, remote = list[str](), list[str]()
    stated: Listing = {}
    for uri in uris:
        if uri in listing:
            stated[uri] = listing[uri]
        else:
            (local if is_local(uri) else remote).append(uri)
    stated |= _local_files(local)
    stated |= _bucket_files([uri for uri in remote if protocol_of(uri) in BUCKETS])
    return stated


# ---------------------------------------------------------------------- files of this machine


def _local_files(uris: Sequence[str]) -> Listing:
    parts = [uris[at : at + STATS_A_TASK] for at in range(0, len(uris), STATS_A_TASK)]
    if len(parts) < 2:
        return _stats(uris)
    stated: Listing = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in pool.map(_stats, parts):
            stated |= part
    return stated


def _stats(uris: Sequence[str]) -> Listing:
    return {uri: file for uri in uris if (file := _local_file(uri)) is not None}


def _local_file(uri: str) -> ListedFile | None:
    """Return what the disk states of a file; None for what is no file or can't be looked at."""
    try:
        path = split_image(uri)[0] if "#" in uri else uri
        status = os.stat(open_fs(path)[1] if "://" in path else path)  # noqa: PTH116 - 300,000 times
    except (OSError, ValueError, SlideError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ListedFile(
        mark=f"{status.st_size}-{status.st_mtime_ns}",
        changed_s=max(status.st_mtime, status.st_ctime),
    )


# ---------------------------------------------------------------------- files in buckets


def file_of(info: Mapping[str, Any]) -> ListedFile:
    """Return what a bucket's entry of a file states.

    >>> file_of({"size": 7, "ETag": '"9a0364b9"', "type": "file"}).mark
    '7-9a0364b9'
    >>> file_of({"size": 7}).mark is None
    True
    """
    time_s = next((_seconds(info[name]) for name in TIMES if info.get(name)), None)
    content = next((str(info[name]).strip('"') for name in CONTENT_MARKS if info.get(name)), None)
    if content is None and time_s is not None:
        content = f"{time_s:.6f}"
    size = info.get("size")
    is_complete = content is not None and size is not None
    return ListedFile(mark=f"{size}-{content}" if is_complete else None, changed_s=time_s)


def _seconds(time: object) -> float | None:
    if isinstance(time, (int, float)):
        return float(time)
    try:
        moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _bucket_files(uris: Sequence[str]) -> Listing:
    by_folder: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for uri in uris:
        file = split_image(uri)[0]
        by_folder[file.rpartition("/")[0]][file].append(uri)
    stated: Listing = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in pool.map(lambda folder_files: _in_folder(*folder_files), by_folder.items()):
            stated |= part
    return stated


def _in_folder(folder: str, uris_of_files: Mapping[str, Sequence[str]]) -> Listing:
    """Return what a bucket states of some files of one folder."""
    many = len(uris_of_files) >= MANY_OF_A_FOLDER
    files = _listed(folder, list(uris_of_files)) if many else {}
    stated: Listing = {}
    for file, uris in uris_of_files.items():
        one = files.get(file) if many else _asked(file)
        stated |= {uri: one for uri in uris if one is not None}
    return stated


def _listed(folder: str, uris: Sequence[str]) -> Listing:
    """Return files of a bucket's folder by URI; none if it can't be listed, as keys may forbid."""
    try:
        with as_slide_errors(folder):
            fs, path = open_fs(folder)
            infos = fs.find(path, maxdepth=1, detail=True)
            paths = {uri: fs._strip_protocol(uri) for uri in uris}
    except SlideError:
        return {}
    return {uri: file_of(infos[path]) for uri, path in paths.items() if path in infos}


def _asked(uri: str) -> ListedFile | None:
    try:
        return file_of(RemoteFile(uri).info())
    except SlideError:
        return None  # it is named when its content is read


def manifest_marks(inputs: Sequence[str]) -> tuple[str | None, ...]:
    """Return the marks of files that inputs name, which change when a manifest is written anew."""
    stated = list_files([text for text in inputs if Path(text).suffix], {})
    return tuple(stated.get(text, NOTHING).mark for text in inputs)
