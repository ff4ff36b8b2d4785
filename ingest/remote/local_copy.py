"""Slides from anywhere: a path that openslide can open, for as long as it is needed.

A slide that is not on this machine is copied to node-local scratch, each byte once, and dropped
after use; for coarse magnifications only the levels that are read from travel. A copy that is not
the whole of what the server has is an error, never half a slide.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ingest.errors import SlideError
from ingest.readers.tiff.jpeg_tiff import JpegLevel, NotNativeError
from ingest.readers.tiff.tiff_check import check_tiff
from ingest.remote import sparse_tiff
from ingest.remote.partial_file import PartialFile, Range
from ingest.remote.remote_errors import as_slide_errors
from ingest.remote.remote_files import RemoteFile, is_local, name_of, open_fs, split_image
from ingest.remote.scratch import scratch_folder
from ingest.select.file_groups import named_files

NAME_BYTES = 200  # of a copy; file systems take 255


class Fetched:
    """A slide that can be opened at `path`.

    Attributes:
        path: a local file with the slide's own suffix; other files that belong to it lie beside.
        bytes_file: size of the slide in bytes, with the files that belong to it.
        levels: places of its tiles, if it was fetched in part; for `sparse_tiff.level_ranges`.
        plan: why it was fetched whole or in part; None where nothing was planned.
        image: number of the slide's image in the file; None: not named.
    """

    def __init__(self, path: str, bytes_file: int, files: Sequence[PartialFile] = ()) -> None:
        self.path, self.bytes_file = path, bytes_file
        self.levels: list[JpegLevel] = []
        self.plan: sparse_tiff.FetchPlan | None = None
        self.image: int | None = None
        self._files = list(files)

    @property
    def bytes_read(self) -> int:
        """Return the number of bytes fetched for the slide; 0 for a local file."""
        return sum(file.bytes_read for file in self._files)

    @property
    def is_whole(self) -> bool:
        """Whether every byte of the file is on this machine."""
        return all(file.is_whole for file in self._files)

    def need(self, ranges: Iterable[Range]) -> None:
        """Fetch byte ranges [start, end) to `path`; ranges that are there already cost nothing.

        Raises:
            SlideError: the bytes can't be read, or the file changed since it was opened.
        """
        for file in self._files[:1]:
            file.need(ranges)

    def need_all(self) -> None:
        """Fetch the whole file to `path`. Raises SlideError as `need` does."""
        for file in self._files:
            file.need_all()


@contextlib.contextmanager
def local_slide(
    uri: str,
    *,
    scratch: str | None = None,
    mpps: Sequence[float] | None = None,
    mpp: float | None = None,
) -> Iterator[Fetched]:
    """Yield a slide as a local file; a remote slide is fetched, and removed after use.

    Args:
        uri: a path, or any URL that fsspec knows; `#2` at its end names an image of a TIFF.
        scratch: folder for copies; $SLIDELAKE_SCRATCH or the temporary folder if None.
        mpps: all mpps that will be read, overviews included; if all are coarse, and
            the file is a TIFF of JPEG tiles, the levels for them are fetched and no others.
            None: the whole file.
        mpp: microns per pixel of the slide where a better value than its file's is known.

    Raises:
        SlideError: the slide does not exist, can't be read, changed meanwhile, or has no room on
            the disk; or it is a TIFF that is cut off, or holds no colour image.
    """
    uri, image = split_image(uri)
    if is_local(uri):
        path = open_fs(uri)[1]
        with as_slide_errors(uri):
            size = Path(path).stat().st_size
        check_tiff(path)
        fetched = Fetched(path, size)
        fetched.image = image
        yield fetched
        return
    with _opened(uri, scratch) as (fetched, file):
        fetched.image = image
        in_part = mpps and min(mpps) >= sparse_tiff.COARSE_MPP and image is None
        if not (mpps and in_part and _plan(fetched, file, mpps, mpp)):
            file.need_all()
        check_tiff(fetched.path)
        yield fetched


@contextlib.contextmanager
def _opened(uri: str, scratch: str | None) -> Iterator[tuple[Fetched, PartialFile]]:
    """Yield the slide with an empty local file, and the other files that belong to it."""
    remote = RemoteFile(uri)
    state = remote.state()
    if state.is_folder:
        msg = f"{remote.shown} is a folder, not a slide"
        raise SlideError(msg)
    with scratch_folder(scratch) as folder, contextlib.ExitStack() as stack:
        file = PartialFile(remote, state, folder / _local_name(uri))
        stack.callback(file.close)
        others = _companions(remote, file, folder)
        for other in others:
            stack.callback(other.close)
        size = file.size + sum(other.size for other in others)
        path = str(file.local)
        try:
            yield Fetched(path, size, [file, *others]), file
        except SlideError as error:
            # Where the copy was is of no use to anyone; it is gone.
            text = str(error).replace(path, remote.shown).replace(uri, remote.shown)
            raise SlideError(text, error.facts) from error


def _directories(fetched: Fetched, file: PartialFile) -> bool:
    """Fetch the bytes that open the slide; return False if it can't be read in part."""
    if not file.state.ranges or file.local.suffix.lower() not in sparse_tiff.SUFFIXES:
        return False
    try:
        fetched.levels = sparse_tiff.fetch_directories(file)
    except NotNativeError:
        return False
    return True


def _plan(fetched: Fetched, file: PartialFile, mpps: Sequence[float], mpp: float | None) -> bool:
    """Fetch the levels for these mpps, if they are few bytes; return whether they were fetched."""
    if not _directories(fetched, file):
        return False
    try:
        own = sparse_tiff.slide_mpp(fetched.path, mpp)
    except SlideError:
        return False  # what is wrong with it, its reader says of the whole file
    plan = sparse_tiff.plan_fetch(fetched.levels, file.size, slide_mpp=own, mpps=mpps)
    fetched.plan = plan
    if not plan.sparse:
        return False
    levels = [sparse_tiff.level_ranges(fetched.levels, level) for level in plan.levels]
    levels.append(sparse_tiff.check_ranges(fetched.levels, plan.levels))
    fetched.need(one for ranges in levels for one in ranges)
    if why := sparse_tiff.unfit_levels(fetched.path, mpp, min(mpps)):
        fetched.plan = dataclasses.replace(plan, sparse=False, share=1.0, reason=why)
        return False
    return True


# ---------------------------------------------------------------------- files that belong together


def _companions(remote: RemoteFile, file: PartialFile, folder: Path) -> list[PartialFile]:
    """Copy the other files of a slide of several files beside it, and return them."""
    suffix = file.local.suffix.lower()
    if suffix == ".mrxs":
        others = remote.beside(PurePosixPath(name_of(remote.uri)).stem)
    elif suffix in {".vms", ".vmu"}:
        file.need_all()
        named = _named_files(file.local)
        others = [one for one in remote.beside("") if name_of(one.uri) in named]
    elif suffix == ".dcm":
        others = [one for one in remote.beside("") if one.path.lower().endswith(".dcm")]
    else:
        return []
    return [
        _whole(one, folder / one.relative_to(remote)) for one in others if one.path != remote.path
    ]


def _named_files(path: Path) -> set[str]:
    """Return the names of the files that a Hamamatsu index lists."""
    if named := named_files(path.read_text(encoding="utf-8", errors="replace")):
        return named
    msg = f"{path} is no index of a Hamamatsu slide"
    raise SlideError(msg)


def _whole(remote: RemoteFile, local: Path) -> PartialFile:
    local.parent.mkdir(parents=True, exist_ok=True)
    file = PartialFile(remote, remote.state(), local)
    file.need_all()
    return file


def _local_name(uri: str) -> str:
    """Return the slide's own name as a valid file name: openslide depends on suffixes."""
    name = name_of(uri).replace("/", "_").replace("\0", "_").lstrip(".") or "slide"
    stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
    while len(f"{stem}{suffix}".encode()) > NAME_BYTES:
        stem = stem[:-1]
    return f"{stem}{suffix}"
