"""Open a slide with the reader that fits it: the one door to all readers of `reader_table`.

openslide and the native reader take what openslide reads. A TIFF whose largest image is not its
first, or of which another image is named, a strip TIFF and a picture have readers of their own.
"""

from ingest.errors import SlideError
from ingest.readers.openslide_reader import detect_vendor
from ingest.readers.reader_table import READERS, formats_read
from ingest.readers.refusal import head_of, picture_kind, undecodable, why_no_slide
from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, SlideReader
from ingest.readers.tiff.jpeg_tiff import NotNativeError
from ingest.readers.tiff.tiff_images import TiffImage, largest, other_images, tiff_images

GENERIC = "generic-tiff"
# Of these what else is in the file is known: label, macro, thumbnail.
OWN_IMAGES = {None, GENERIC}


def open_slide(
    path: str,
    options: ReadOptions | None = None,
    *,
    image: int | None = None,
    reader: str | None = None,
) -> SlideReader:
    """Open a slide with the first reader that reads it.

    Args:
        path: a local file.
        options: the settings to read it with.
        image: number of an image of a TIFF that holds several; None: the largest image.
        reader: name of the only reader of `READERS` to use; None: the first that reads the slide.

    Raises:
        SlideError: the file is no slide that can be read, or has no usable mpp.
    """
    if reader is not None and reader not in READERS:
        msg = f"no slide reader '{reader}'; there are {', '.join(READERS)}"
        raise SlideError(msg)
    options = options or ReadOptions()
    vendor, images = detect_vendor(path), tiff_images(path)
    chosen = _chosen(path, vendor, images, image)
    file = SlideFile(
        path=path,
        head=head_of(path),
        vendor=vendor,
        image=chosen,
        is_picture=picture_kind(path) is not None,
    )
    if reader is not None:
        return _opened(file, options, (reader,))
    if chosen is not None and (codec := undecodable(chosen.compression)):
        msg = f"{path} is compressed as {codec}, which is not decoded here; convert it to JPEG"
        raise SlideError(msg)
    slide = _opened(file, options, tuple(READERS))
    if chosen is None:
        return slide
    if vendor in OWN_IMAGES:
        slide.notes += other_images(images, chosen)
    if chosen.orientation != 1 and not slide.turns_upright:
        slide.notes.append(
            f"its orientation tag says {chosen.orientation} (turned or mirrored); it is read as it "
            "is stored"
        )
    return slide


def _opened(file: SlideFile, options: ReadOptions, names: tuple[str, ...]) -> SlideReader:
    """Open a file with the first of some readers that reads it."""
    reason: str | None = None
    for name in names:
        entry = READERS[name]
        if not entry.takes(file):
            continue
        if entry.refusal is not None:
            msg = f"{file.path} {entry.refusal}"
            raise SlideError(msg)
        try:
            return entry.open(file, options)
        except NotNativeError as error:
            reason = f"{file.path}: {error}"
    raise SlideError(reason or why_no_slide(file.path, formats_read()))


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
