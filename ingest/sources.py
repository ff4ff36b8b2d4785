"""From what a user types (files, folders, globs, manifests, URIs) to a list of slides."""

import contextlib
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from ingest.errors import InputError, SlideError
from ingest.remote_errors import shown, told
from ingest.remote_files import RemoteFile, is_local, name_of, open_fs, split_image

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .czi".split()  # noqa: SIM905
)
MANIFESTS = (".csv", ".parquet")
END_BYTES = 64 * 1024
ESCAPED = re.compile(r"\\udc[89a-f][0-9a-f]")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A slide that was asked for.

    Attributes:
        slide_id: the file's name without its suffix, unless a manifest says otherwise.
        uri: where the file is.
        patient_id: from the manifest; never guessed from the name.
        mpp: from the manifest; it overrules the file's own.
        extra: the manifest's other columns.
    """

    slide_id: str
    uri: str
    patient_id: str | None = None
    mpp: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def resolve(inputs: Sequence[str]) -> list[Source]:
    """All slides that the inputs name, in order, files named twice once.

    A path that does not exist is kept: it becomes a failed slide with that reason.

    Raises:
        InputError: nothing was given, or a manifest has no column for the file.
    """
    found: dict[str, Source] = {}
    for text in inputs:
        for source in _resolve_one(text):
            found.setdefault(source.uri, source)
    if not found:
        msg = f"no slides found in {', '.join(inputs) or 'nothing'}; looked for {sorted(SUFFIXES)}"
        raise InputError(msg)
    return list(found.values())


def chosen(sources: Sequence[Source], only: Sequence[str]) -> list[Source]:
    """The sources of these slide_ids, or all if none are named.

    Raises:
        InputError: one of them is not among the sources.
    """
    if unknown := set(only) - {source.slide_id for source in sources}:
        msg = f"the inputs name no slide {', '.join(sorted(unknown))}; see --only"
        raise InputError(msg)
    return [source for source in sources if not only or source.slide_id in only]


def split_duplicates(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The first source of every slide_id, and the later ones of a slide_id already taken."""
    first: dict[str, Source] = {}
    later = []
    for source in sources:
        if source.slide_id in first:
            later.append(source)
        else:
            first[source.slide_id] = source
    return list(first.values()), later


def fingerprint(uri: str) -> tuple[int, str]:
    """Bytes of a file, and a mark of its content: size and CRC-32 of its first and last 64 KiB.

    Times are left out: a copied slide is the same slide.

    Raises:
        SlideError: the file can't be read.
    """
    uri, image = split_image(uri)
    size, head, tail = _local_ends(uri) if is_local(uri) else _remote_ends(uri)
    mark = f"{size}-{zlib.crc32(tail, zlib.crc32(head)):08x}"
    return size, mark if image is None else f"{mark}#{image}"


def _local_ends(uri: str) -> tuple[int, bytes, bytes]:
    if ESCAPED.search(uri) and not os.path.lexists(uri):
        msg = f"{uri} has a name that is not UTF-8 (the escaped bytes say where); rename the file"
        raise SlideError(msg)
    with told(uri):
        path = open_fs(uri)[1]
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would wait for its writer, without end
            what = "folder" if stat.S_ISDIR(kind) else "pipe or device"
            msg = f"{uri} is a {what}, not a slide"
            raise SlideError(msg)
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(END_BYTES)
            file.seek(max(0, size - END_BYTES))
            return size, head, file.read(END_BYTES)


def _remote_ends(uri: str) -> tuple[int, bytes, bytes]:
    remote = RemoteFile(uri)
    state = remote.state()
    if state.is_folder:
        msg = f"{remote.shown} is a folder, not a slide"
        raise SlideError(msg)
    if not state.ranges or state.size is None:
        return _streamed_ends(remote)
    head = remote.read(0, min(END_BYTES, state.size))
    tail = remote.read(max(0, state.size - END_BYTES), state.size)
    return state.size, head, tail


def _streamed_ends(remote: RemoteFile) -> tuple[int, bytes, bytes]:
    """All of it has to be read where a server gives no parts."""
    size, head, tail = 0, b"", b""
    for block in remote.stream():
        size += len(block)
        head += block[: END_BYTES - len(head)]
        tail = (tail + block)[-END_BYTES:]
    return size, head, tail


def _resolve_one(text: str) -> Iterator[Source]:
    if text.lower().endswith(MANIFESTS):
        yield from _manifest(text)
        return
    found = list(_local_files(text) if is_local(text) else _remote_files(text))
    yield from (_from_uri(uri) for uri in found)


def _local_files(text: str) -> Iterator[str]:
    fs, path = open_fs(text)
    path = str(Path(path).expanduser().absolute())
    # A file may have the marks of a pattern in its name.
    if any(mark in path for mark in "*?[") and not os.path.lexists(path):
        yield from sorted(fs.glob(path))
    elif _is_folder(path):
        slides = [name for name in sorted(fs.find(path)) if _is_slide(name)]
        # What is called a slide and is an empty folder is told of, as a slide that is missing is.
        yield from slides or ([path] if _is_slide(path) else [])
    else:
        yield path


def _is_folder(path: str) -> bool:
    with contextlib.suppress(OSError):  # a name too long, for one: told when it is read
        return Path(path).is_dir()
    return False


def _remote_files(text: str) -> Iterator[str]:
    """What a URL names; a slide's own is taken as it is, without a request.

    Trouble with listing a folder is kept for the moment when it is read as a slide: one bucket
    that can't be reached is no reason to leave the slides of others.
    """
    web = text.startswith(("http://", "https://"))
    if _is_slide(name_of(text)) and (web or not any(mark in text for mark in "*?[")):
        yield text
        return
    if web and not text.endswith("/"):
        yield text
        return
    try:
        with told(text):
            fs, path = open_fs(text)
            if any(mark in text for mark in "*?["):
                # A key may have the marks of a pattern in its name.
                names = sorted(fs.glob(path)) or ([path] if "*" not in path else [])
            elif web or fs.isdir(path):
                names = [name for name in sorted(fs.find(path)) if _is_slide(name_of(name))]
            else:
                names = [path]
            yield from [fs.unstrip_protocol(name) for name in names]
    except SlideError:
        yield text


def _is_slide(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _from_uri(uri: str) -> Source:
    # A local name may be any bytes; what is no text can't be written down, nor printed.
    text = uri.encode(errors="backslashreplace").decode()
    file, image = split_image(text)
    name = PurePosixPath(name_of(file)).stem
    return Source(slide_id=name if image is None else f"{name}#{image}", uri=text)


def _manifest(text: str) -> Iterator[Source]:
    read = pl.read_parquet if text.lower().endswith(".parquet") else pl.read_csv
    try:
        table = read(text)
    except (OSError, pl.exceptions.PolarsError) as error:
        msg = f"manifest {text} can't be read: {str(error).partition(chr(10))[0]}"
        raise InputError(msg) from error
    if "uri" not in table.columns:
        msg = f"manifest {text} needs a column 'uri'; it has {table.columns}"
        raise InputError(msg)
    folder = text.rpartition("/")[0] or "."
    for row in table.iter_rows(named=True):
        yield _from_row(row, folder)


def _from_row(row: dict[str, Any], folder: str) -> Source:
    uri = row.pop("uri")
    if not uri:
        msg = f"a manifest has a row without a uri: {row}; every row names a file or URL"
        raise InputError(msg)
    uri = str(uri) if "://" in str(uri) or str(uri).startswith("/") else f"{folder}/{uri}"
    if is_local(uri):
        uri = str(Path(open_fs(uri)[1]).absolute())
    source = _from_uri(uri)
    slide_id, patient_id, mpp = (row.pop(name, None) for name in ("slide_id", "patient_id", "mpp"))
    return Source(
        slide_id=str(slide_id) if slide_id is not None else source.slide_id,
        uri=source.uri,
        patient_id=None if patient_id is None else str(patient_id),
        mpp=None if mpp is None else _number(mpp, uri),
        extra=row,
    )


def _number(mpp: object, uri: str) -> float:
    try:
        return float(str(mpp))
    except ValueError as error:
        msg = f"the manifest gives mpp '{mpp}' for {shown(uri)}; give microns per pixel as a number"
        raise InputError(msg) from error
