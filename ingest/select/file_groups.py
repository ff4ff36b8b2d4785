"""Slides that are several files: which file represents the slide.

A DICOM series is a file per level, with labels and macros beside; openslide opens the whole series
by any of its levels. A Hamamatsu index (.vms, .vmu) names the pictures that belong to it.
"""

import configparser
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster import counted
from ingest.errors import SlideError
from ingest.readers.dicom_header import DicomHeader, read_header
from ingest.remote.remote_files import RemoteFile, is_local, open_fs
from ingest.select.folders import Note

HEAD_BYTES = 64 * 1024
AT_ONCE = 16  # from a bucket it is nothing but waiting
INDEXES = (".vms", ".vmu")


def one_file_a_slide(uris: Sequence[str], note: Note) -> list[str]:
    """Return the files that represent slides, one for each slide, in their order.

    Args:
        uris: URIs of files; unreadable files are kept, since their reader states the reason.
        note: function that is called with a sentence for each file that is left out.
    """
    left_out = {*_parts_of_indexes(uris, note), *_parts_of_series(uris, note)}
    return [uri for uri in uris if uri not in left_out]


def _parts_of_series(uris: Sequence[str], note: Note) -> set[str]:
    """Return the files of DICOM series that represent no slide: smaller levels, labels, macros."""
    files = [uri for uri in uris if uri.lower().endswith(".dcm")]
    series: dict[tuple[str, str], list[tuple[str, DicomHeader]]] = defaultdict(list)
    if len(files) < 2:
        return set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        headers = list(pool.map(lambda uri: read_header(head_of(uri)), files))
    for uri, header in zip(files, headers, strict=True):
        if header is not None and header.series:
            series[uri.rpartition("/")[0], header.series].append((uri, header))
    parts: set[str] = set()
    for members in series.values():
        volumes = [one for one in members if one[1].is_volume]
        chosen = max(volumes, key=lambda one: one[1].pixels)[0] if volumes else None
        parts |= {uri for uri, _ in members} - {chosen}
    if parts:
        slides = sum(any(h.is_volume for _, h in members) for members in series.values())
        note(
            f"{counted(len(files), 'DICOM file', 'hold')} {counted(slides, 'slide')}, each in "
            "the file of its "
            "largest "
            f"level; left out: {counted(len(parts), 'file')} of other levels, labels and macros"
        )
    return parts


def _parts_of_indexes(uris: Sequence[str], note: Note) -> set[str]:
    """Return the pictures that belong to a Hamamatsu slide among the files."""
    parts: set[str] = set()
    for uri in uris:
        if uri.lower().endswith(INDEXES):
            folder = uri.rpartition("/")[0]
            index = head_of(uri).decode(errors="replace")
            parts |= {f"{folder}/{name}" for name in named_files(index)}
    parts &= set(uris)
    if parts:
        note(
            f"{counted(len(parts), 'picture', 'belong')} to Hamamatsu slides (.vms, .vmu): no "
            "slides"
        )
    return parts


def named_files(index: str) -> set[str]:
    """Return the files that a Hamamatsu index names; an empty set for other files."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        parser.read_string(index)
    except configparser.Error:
        return set()
    return {file_name for section in parser.values() for file_name in section.values() if file_name}


def head_of(uri: str) -> bytes:
    """Return the first bytes of a file; b"" if it can't be read."""
    try:
        if not is_local(uri):
            remote = RemoteFile(uri)
            size = remote.state().size
            return remote.read(0, min(HEAD_BYTES, size)) if size else b""
        with open(open_fs(uri)[1], "rb") as file:  # noqa: PTH123 - a name of any bytes
            return file.read(HEAD_BYTES)
    except (OSError, SlideError):
        return b""
