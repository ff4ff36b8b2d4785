"""From what a user types (files, folders, globs, manifests, URIs) to a list of slides."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import fsspec
import polars as pl

from ingest.errors import InputError, SlideError

SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .mrxs .scn .vms .vmu .bif .svslide .dcm .czi".split()  # noqa: SIM905
)
MANIFESTS = (".csv", ".parquet")
END_BYTES = 64 * 1024


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
    fs, path = fsspec.core.url_to_fs(uri)
    try:
        if fs.isdir(path):
            msg = f"{uri} is a folder, not a slide"
            raise SlideError(msg)
        size = int(fs.size(path))
        head = fs.cat_file(path, start=0, end=min(END_BYTES, size))
        tail = fs.cat_file(path, start=max(0, size - END_BYTES), end=size)
    except FileNotFoundError as error:
        msg = f"{uri} does not exist"
        raise SlideError(msg) from error
    except OSError as error:
        msg = f"{uri} can't be read: {error.strerror or error}"
        raise SlideError(msg) from error
    return size, f"{size}-{zlib.crc32(tail, zlib.crc32(head)):08x}"


def _resolve_one(text: str) -> Iterator[Source]:
    fs, path = fsspec.core.url_to_fs(text)
    if text.lower().endswith(MANIFESTS):
        yield from _manifest(text)
    elif any(mark in text for mark in "*?["):
        for name in sorted(fs.glob(path)):
            yield _from_uri(fs.unstrip_protocol(name))
    elif fs.isdir(path):
        for name in sorted(fs.find(path)):
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                yield _from_uri(fs.unstrip_protocol(name))
    else:
        yield _from_uri(fs.unstrip_protocol(path))


def _from_uri(uri: str) -> Source:
    plain = uri.removeprefix("file://")
    return Source(slide_id=PurePosixPath(plain).stem, uri=plain)


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
    uri = str(row.pop("uri"))
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{folder}/{uri}"
    source = next(iter(_resolve_one(uri)))
    slide_id, patient_id, mpp = (row.pop(name, None) for name in ("slide_id", "patient_id", "mpp"))
    return Source(
        slide_id=str(slide_id) if slide_id is not None else source.slide_id,
        uri=source.uri,
        patient_id=None if patient_id is None else str(patient_id),
        mpp=None if mpp is None else float(mpp),
        extra=row,
    )
