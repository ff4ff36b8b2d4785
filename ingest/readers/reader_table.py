"""The table of slide readers, in the order in which they are tried.

A format is added by a module with a loader, and an entry here; `open_slide`, the suffixes that are
taken from folders and the message about files that no reader reads follow from it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, SlideReader
from ingest.readers.tiff.tiff_images import WEBP

Loader = Callable[[SlideFile, ReadOptions], SlideReader]


@dataclass(frozen=True, kw_only=True)
class ReaderEntry:
    """A slide reader, or a format that is recognised and refused.

    Attributes:
        takes: whether the reader is to be tried on a file.
        loader: `module:function` that opens a `SlideFile` with `ReadOptions`; it raises
            `NotNativeError` to leave the file to the next reader. Empty for a refused format.
        formats: the formats in words, as "a picture", for the message about other files.
        refusal: why a recognised format is not read, after "FILE "; None for a reader.
        suffixes: suffixes of the files in folders that this reader reads.
    """

    takes: Callable[[SlideFile], bool]
    loader: str = ""
    formats: str | None = None
    refusal: str | None = None
    suffixes: tuple[str, ...] = ()

    def open(self, file: SlideFile, options: ReadOptions) -> SlideReader:
        """Open a file as a slide, with this entry's reader.

        Raises:
            NotNativeError: another reader has to open the file.
            SlideError: the file can't be read.
        """
        module, _, function = self.loader.partition(":")
        loader: Loader = getattr(importlib.import_module(module), function)
        return loader(file, options)


def _is_first_image(file: SlideFile) -> bool:
    """Whether openslide reads the image; it decodes no WebP, and a TIFF's first image alone."""
    if file.vendor is None:
        return False
    return file.image is None or (file.image.number == 1 and file.image.compression != WEBP)


READERS = {
    "czi": ReaderEntry(
        takes=lambda file: file.head.startswith(b"ZISRAWFILE"),
        refusal="is a Zeiss CZI, which is not read here; export it as OME-TIFF or DICOM",
        suffixes=(".czi",),
    ),
    "tiff": ReaderEntry(
        takes=_is_first_image,
        loader="ingest.readers.tiff.tiff_reader:open_tiff",
        suffixes=(".svs", ".tif", ".tiff", ".svslide"),
    ),
    "tiff-image": ReaderEntry(
        takes=lambda file: file.image is not None,
        loader="ingest.readers.image_readers:open_tiff_image",
    ),
    "openslide": ReaderEntry(
        takes=_is_first_image,
        loader="ingest.readers.openslide_reader:open_with_openslide",
        formats="a slide format that openslide reads",
        suffixes=(".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm"),
    ),
    "pillow": ReaderEntry(
        takes=lambda file: file.image is not None or file.is_picture,
        loader="ingest.readers.image_readers:open_picture",
        formats="a picture",
    ),
}


def folder_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are taken from folders."""
    return frozenset(suffix for entry in READERS.values() for suffix in entry.suffixes)


def formats_read() -> str:
    """Return the formats that are read, in words."""
    return ", nor ".join(entry.formats for entry in READERS.values() if entry.formats)
