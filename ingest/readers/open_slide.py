"""Open a slide with the reader that fits it: the one door to all readers.

openslide and the native reader take what openslide knows. A TIFF whose largest image is not its
first, or of which another image is asked, a strip TIFF and a picture have readers of their own.
"""

from ingest.errors import SlideError
from ingest.readers.image_readers import PictureReader, TiffImageReader
from ingest.readers.jpeg_tiff import WEBP, NotNativeError
from ingest.readers.openslide_reader import detect_vendor
from ingest.readers.refusal import picture_kind, undecodable, why_no_slide
from ingest.readers.slide_reader import ReadOptions, SlideReader
from ingest.readers.tiff_images import TiffImage, largest, other_images, tiff_images
from ingest.readers.tiff_reader import TiffReader

GENERIC = "generic-tiff"
# Of these what else is in the file is known: label, macro, thumbnail.
OWN_IMAGES = {None, GENERIC}


def open_slide(
    path: str, options: ReadOptions | None = None, *, image: int | None = None
) -> SlideReader:
    """Open a slide.

    Args:
        path: a local file.
        options: how to read it.
        image: number of an image of a TIFF that holds several; None: the largest.

    Raises:
        SlideError: it is no slide that can be read, or has no usable mpp; the text says why.
    """
    vendor = detect_vendor(path)
    images = tiff_images(path)
    chosen = _chosen(path, vendor, images, image)
    if chosen is None:
        if vendor is None:
            return _picture(path, options)
        return TiffReader(path, options=options)
    if codec := undecodable(chosen.compression):
        msg = f"{path} is compressed as {codec}, which is not decoded here; convert it to JPEG"
        raise SlideError(msg)
    reader = _tiff(path, vendor, chosen, options)
    if vendor in OWN_IMAGES:
        reader.notes += other_images(images, chosen)
    if chosen.orientation != 1 and not isinstance(reader, PictureReader):
        reader.notes.append(
            f"its orientation tag says {chosen.orientation} (turned or mirrored); it is read as it "
            "is stored"
        )
    return reader


def _chosen(
    path: str, vendor: str | None, images: list[TiffImage], number: int | None
) -> TiffImage | None:
    """Return the image of a TIFF that is to be read; None if it is no TIFF."""
    if number is None:
        if not images:
            return None
        return largest(images) if vendor in OWN_IMAGES else images[0]
    if vendor not in OWN_IMAGES and number != 1:
        msg = f"{path}#{number}: images of a TIFF have numbers, and this is a slide of {vendor}"
        raise SlideError(msg)
    if not 1 <= number <= len(images):
        sizes = ", ".join(image.size_text for image in images) or "it is no TIFF"
        msg = f"{path} has no image #{number}; it has {len(images)} ({sizes})"
        raise SlideError(msg)
    return images[number - 1]


def _tiff(
    path: str, vendor: str | None, image: TiffImage, options: ReadOptions | None
) -> SlideReader:
    if vendor is not None and image.number == 1 and image.compression != WEBP:
        return TiffReader(path, options=options)
    try:
        return TiffImageReader(path, image, options)
    except NotNativeError:
        return PictureReader(path, image, options)


def _picture(path: str, options: ReadOptions | None) -> SlideReader:
    if picture_kind(path) is None:
        raise SlideError(why_no_slide(path))
    return PictureReader(path, None, options)
