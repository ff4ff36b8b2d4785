"""A file that is to be opened as a slide, as far as readers are chosen by it."""

from dataclasses import dataclass

from ingest.readers.tiff.tiff_images import TiffImage


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """A local file with what its first bytes and directories tell.

    Attributes:
        path: path of the file.
        head: its first 64 bytes.
        vendor: the format that openslide takes it for; None if openslide does not read it.
        image: the image of a TIFF that is to be read; None if it is no TIFF.
        is_picture: whether it is a picture that can be decoded as a whole (JPEG, PNG, BMP, WebP).
    """

    path: str
    head: bytes
    vendor: str | None
    image: TiffImage | None
    is_picture: bool
