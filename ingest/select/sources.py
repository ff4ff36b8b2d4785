"""From what a user types (files, folders, globs, manifests, URIs) to a list of slides."""

import contextlib
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cluster import counted
from ingest.errors import InputError, NoSlidesError, SlideError
from ingest.readers.reader_table import folder_suffixes
from ingest.remote.remote_errors import as_slide_errors
from ingest.remote.remote_files import RemoteFile, is_local, name_of, open_fs, split_image
from ingest.select.file_groups import one_file_a_slide
from ingest.select.folders import (
    Note,
    files_under,
    is_shadow,
    is_slide,
    slides_of,
    without_shadows,
)
from ingest.select.listed_files import Listing, file_of
from ingest.select.manifests import ManifestRow, is_manifest, read_manifest

END_BYTES = 64 * 1024
ESCAPED = re.compile(r"\\udc[89a-f][0-9a-f]")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A slide that the inputs of an ingest name.

    Attributes:
        slide_id: the file's name without its suffix, unless a manifest states another.
        uri: path or URL of the file.
        patient_id: patient from the manifest; never guessed from the file's name.
        mpp: microns per pixel from the manifest; they overrule the file's own.
        extra: the manifest's other columns.
        named: whether the slide_id is a manifest's, and not the file's name.
    """

    slide_id: str
    uri: str
    patient_id: str | None = None
    mpp: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    named: bool = False


def resolve(
    inputs: str | Sequence[str],
    *,
    note: Note = lambda _: None,
    distinct_ids: bool = False,
    listing: Listing | None = None,
) -> list[Source]:
    """Return all slides that the inputs name, in order.

    A file is one slide, unless a manifest has several slide_ids for it (two sections on one
    glass): it is then a slide of each, and not of its own name. A path that does not exist is kept:
    it becomes a failed slide with that reason, if its name is a slide's.

    Args:
        inputs: files, folders, globs, manifests, URLs; or one of them.
        note: function that is called with a sentence for each file that is left out.
        distinct_ids: whether ids of manifests that differ by case, blanks or Unicode form only are
            different; else they are refused.
        listing: gets what listings of buckets' folders state of their files, by URI.

    Raises:
        NoSlidesError: the inputs hold no slide.
        InputError: there is no input, an input does not exist, or a manifest can't be read.
    """
    if isinstance(inputs, str):  # each letter of it would be a path, `/` among them
        inputs = [inputs]
    search = _Search(note=note, listing={} if listing is None else listing)
    sources = [
        source
        for text in inputs
        for source in _resolve_one(text, search, distinct_ids=distinct_ids)
    ]
    if len(inputs) > 1:  # a shell may have named the files of a folder one by one
        plain = [source.uri for source in sources if not source.named]
        kept = set(one_file_a_slide(plain, note))
        sources = [source for source in sources if source.named or source.uri in kept]
    if not sources:
        msg = (
            f"no slides found in {', '.join(inputs) or 'nothing'}; of a folder, files that end in "
            f"{', '.join(sorted(folder_suffixes()))} are taken; name others, like pictures "
            "(FOLDER/*.png)"
        )
        raise NoSlidesError(msg)
    named = {source.uri for source in sources if source.named}
    slides: dict[Any, Source] = {}
    for source in sources:
        if source.named or source.uri not in named:
            slides.setdefault(_identity(source), source)
    return list(slides.values())


@dataclass(frozen=True, kw_only=True)
class _Search:
    """A search for slides: where its notes go, and what listings of buckets state."""

    note: Note
    listing: Listing


def _identity(source: Source) -> tuple[str, ...]:
    """Return the values in which equal sources agree: the file, and its facts in a manifest."""
    return (source.uri, repr(replace(source, uri=""))) if source.named else (source.uri,)


def chosen(sources: Sequence[Source], only: Sequence[str]) -> list[Source]:
    """Return the sources of these slide_ids, or all sources if none are named.

    Raises:
        InputError: a slide_id is not among the sources.
    """
    if unknown := set(only) - {source.slide_id for source in sources}:
        msg = f"the inputs name no slide {', '.join(sorted(unknown))}; see --only"
        raise InputError(msg)
    return [source for source in sources if not only or source.slide_id in only]


def split_duplicates(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Return the first source of every slide_id, and the later sources with the same slide_id.

    A file that is also reached by a link is one source.
    """
    first: dict[str, Source] = {}
    later = []
    for source in sources:
        taken = first.setdefault(source.slide_id, source)
        if taken is not source and not _is_linked(taken, source):
            later.append(source)
    return list(first.values()), later


def _is_linked(one: Source, other: Source) -> bool:
    """Whether two sources are one local file, with the same facts of both."""
    if replace(one, uri=other.uri) != other or not (is_local(one.uri) and is_local(other.uri)):
        return False
    with contextlib.suppress(OSError):
        return Path(one.uri).samefile(other.uri)
    return False


def fingerprint(uri: str) -> tuple[int, str]:
    """Return a file's size, and a mark of its content: size and CRC-32 of 64 KiB at each end.

    Times are left out: a copied slide is the same slide.

    Raises:
        SlideError: the file can't be read.
    """
    uri, image = split_image(uri)
    size, head, tail = _local_ends(uri) if is_local(uri) else _remote_ends(uri)
    mark = f"{size}-{zlib.crc32(tail, zlib.crc32(head)):08x}"
    return size, mark if image is None else f"{mark}#{image}"


def _local_ends(uri: str) -> tuple[int, bytes, bytes]:
    if is_shadow(uri):
        msg = f"{uri} is no slide but what macOS keeps beside one of that name; leave it out"
        raise SlideError(msg)
    if ESCAPED.search(uri) and not os.path.lexists(uri):
        msg = f"{uri} has a name that is not UTF-8 (the escaped bytes say where); rename the file"
        raise SlideError(msg)
    with as_slide_errors(uri):
        path = open_fs(uri)[1]
        kind = Path(path).stat().st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would wait for its writer, without end
            kind_of_file = "folder" if stat.S_ISDIR(kind) else "pipe or device"
            msg = f"{uri} is a {kind_of_file}, not a slide"
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
    """Return size and both ends of a file, which is read whole where a server sends no parts."""
    size, head, tail = 0, b"", b""
    for block in remote.stream():
        size += len(block)
        head += block[: END_BYTES - len(head)]
        tail = (tail + block)[-END_BYTES:]
    return size, head, tail


def _resolve_one(text: str, search: _Search, *, distinct_ids: bool) -> Iterator[Source]:
    if is_manifest(text):
        for row in read_manifest(text, distinct_ids=distinct_ids):
            yield from _from_row(row, search)
        return
    _check_there(text)
    yield from (_from_uri(uri) for uri in _files(text, search))


def _check_there(text: str) -> None:
    """Refuse a path that does not exist, unless its name is a slide's: that is a failed slide.

    Raises:
        InputError: there is no such file or folder.
    """
    if not is_local(text) or any(mark in text for mark in "*?["):
        return
    file, _ = split_image(text)
    path = str(Path(open_fs(file)[1]).expanduser())
    if not is_slide(path) and not os.path.lexists(path):
        msg = f"{text} does not exist; give a file, a folder or a pattern of slides"
        raise InputError(msg)


def _files(text: str, search: _Search) -> list[str]:
    note = search.note
    files = _local_files(text, note) if is_local(text) else _remote_files(text, search)
    return one_file_a_slide(list(files), note)


def _local_files(text: str, note: Note) -> Iterator[str]:
    fs, path = open_fs(text)
    path = str(Path(path).expanduser().absolute())
    # A file may have the marks of a pattern in its name.
    if any(mark in path for mark in "*?[") and not os.path.lexists(path):
        for name in without_shadows(sorted(fs.glob(path)), note):
            yield from _in_folder(name, note) if _is_folder(name) else [name]
    elif _is_folder(path):
        yield from _in_folder(path, note)
    else:
        yield path


def _in_folder(path: str, note: Note) -> list[str]:
    slides = slides_of(files_under(path, note), note)
    # What is called a slide and is an empty folder is noted, as a slide that is missing is.
    return slides or ([path] if is_slide(path) else [])


def _is_folder(path: str) -> bool:
    with contextlib.suppress(OSError):  # a name too long, for one: noted when it is read
        return Path(path).is_dir()
    return False


def _remote_files(text: str, search: _Search) -> Iterator[str]:
    """Yield the files that a URL names; a slide's own URL is returned without a request.

    An error in listing a folder is raised later, when it is read as a slide: one bucket
    that can't be reached is no reason to leave the slides of others.
    """
    web = text.startswith(("http://", "https://"))
    if is_slide(name_of(text)) and (web or not any(mark in text for mark in "*?[")):
        yield text
        return
    if web and not text.endswith("/"):
        yield text
        return
    try:
        with as_slide_errors(text):
            fs, path = open_fs(text)
            if any(mark in text for mark in "*?["):
                # A key may have the marks of a pattern in its name.
                infos = fs.glob(path, detail=True)
                names = without_shadows(sorted(infos), search.note)
                names = names or ([path] if "*" not in path else [])
            elif web or fs.isdir(path):
                infos = fs.find(path, detail=True)
                names = slides_of(infos, search.note)
            else:
                infos, names = {}, [path]
            uris = {name: fs.unstrip_protocol(name) for name in names}
            search.listing.update(
                {uri: file_of(infos[name]) for name, uri in uris.items() if name in infos}
            )
            yield from uris.values()
    except SlideError:
        yield text


def _from_uri(uri: str) -> Source:
    # A local name may be any bytes; what is no text can't be written down, nor printed.
    text = uri.encode(errors="backslashreplace").decode()
    file, image = split_image(text)
    name = PurePosixPath(name_of(file)).stem
    return Source(slide_id=name if image is None else f"{name}#{image}", uri=text)


def _from_row(row: ManifestRow, search: _Search) -> Iterator[Source]:
    """Yield the slides of a manifest's row: one for a file, several for a folder or glob.

    A row that names no slide is kept: it becomes a failed slide.
    """
    uris = _files(row.uri, search) or [row.uri]
    if len(uris) > 1 and row.slide_id is not None:
        msg = (
            f"{row.place}: {row.uri} are {counted(len(uris), 'slide')}, and slide_id "
            f"{row.slide_id!r} can be "
            "one of them only; leave it empty, or write a row a slide"
        )
        raise InputError(msg)
    for uri in uris:
        source = _from_uri(uri)
        yield Source(
            slide_id=row.slide_id or source.slide_id,
            uri=source.uri,
            patient_id=row.patient_id,
            mpp=row.mpp,
            extra=dict(row.extra),
            named=row.slide_id is not None,
        )
