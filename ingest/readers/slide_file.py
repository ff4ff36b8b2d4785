"""A file that is to be opened as a slide, as far as readers are chosen by it."""

from dataclasses import dataclass

from ingest.readers.tiff.tiff_images import TiffImage


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """A local file with the facts of its first bytes and directories.

    Attributes:
        path: path of the file.
        head: first 64 bytes of the file.
        vendor: the format as openslide names it; None if openslide does not read the file.
        image: the image of a TIFF that is to be read; None if the file is no TIFF.
        is_picture: whether it is a picture that can be decoded as a whole (JPEG, PNG, BMP, WebP).
    """

    path: str
    head: bytes
    vendor: str | None
    image: TiffImage | None
    is_picture: bool
