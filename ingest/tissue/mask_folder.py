"""A folder of users' masks: which slide has which, and which are of no slide."""

import difflib
import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cluster import counted
from featurestore.storage import shown
from ingest.errors import InputError, SlideError
from ingest.remote.remote_errors import as_slide_errors
from ingest.remote.remote_files import name_of, open_fs
from ingest.select.folders import is_shadow
from ingest.tissue.masks import SUFFIXES

NAMED = 3  # in a message


@dataclass(frozen=True)
class MaskFolder:
    """The masks of a folder, listed once.

    Attributes:
        uri: path or URL of the folder, without a slash at its end.
        names: slide_id -> names of its masks.
    """

    uri: str
    names: dict[str, list[str]]

    def mask_of(self, slide_id: str) -> str | None:
        """Return the path or URL of a slide's mask; None if it has no mask.

        Raises:
            SlideError: the slide has more than one mask.
        """
        names = self.names.get(slide_id, [])
        if len(names) > 1:
            paths = ", ".join(shown(f"{self.uri}/{name}") for name in names)
            msg = f"slide {slide_id} has more than one mask ({paths}); leave one"
            raise SlideError(msg)
        return f"{self.uri}/{names[0]}" if names else None

    def notes(self, slide_ids: Collection[str]) -> list[str]:
        """Return notes on the masks that belong to none of these slides.

        Raises:
            InputError: none of the masks is a slide's.
        """
        missing = [slide_id for slide_id in slide_ids if slide_id not in self.names]
        strange = sorted(set(self.names) - set(slide_ids))
        if len(missing) == len(slide_ids):
            msg = (
                f"no mask in {shown(self.uri)} is of one of the slides: masks are called "
                f"{_some(strange) or 'nothing'}, slides {_some(sorted(missing))}; name them "
                f"SLIDE_ID{SUFFIXES[0]} or SLIDE_ID{SUFFIXES[-1]}"
            )
            raise InputError(msg)
        notes = []
        if strange:
            near = difflib.get_close_matches(strange[0], missing, n=1)
            hint = f"; is {strange[0]} meant for {near[0]}?" if near else ""
            notes.append(
                f"{counted(len(strange), 'mask', 'match')} no slide: {_some(strange)}{hint}"
            )
        if missing:
            notes.append(
                f"{counted(len(missing), 'slide', 'have')} no mask; tissue is looked for there"
            )
        return notes


def open_masks(uri: str) -> MaskFolder:
    """List a folder of `<slide_id>.geojson`, `.json` or `.png`, at any fsspec URL.

    Raises:
        InputError: there is no such folder.
        SlideError: the folder can't be listed.
    """
    fs, path = open_fs(uri)
    with as_slide_errors(uri):
        # In a bucket a folder is any prefix with files.
        files = fs.ls(path, detail=False) if fs.isdir(path) else None
    if files is None:
        msg = f"there is no folder {shown(uri)}; --masks names one with SLIDE_ID.geojson or .png"
        raise InputError(msg)
    names: dict[str, list[str]] = defaultdict(list)
    for name in sorted(map(name_of, files)):
        stem, dot, kind = name.rpartition(".")
        if f"{dot}{kind}" in SUFFIXES and not is_shadow(name):
            names[stem].append(name)
    return MaskFolder(uri.rstrip("/"), dict(names))


def mask_mark(uri: str) -> str:
    """Return a mark of a mask's content, its size and CRC-32, which a redrawn mask changes.

    Raises:
        SlideError: the mask can't be read.
    """
    fs, path = open_fs(uri)
    with as_slide_errors(uri):
        mask_bytes: bytes = fs.cat_file(path)
    return f"{len(mask_bytes)}-{zlib.crc32(mask_bytes):08x}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
