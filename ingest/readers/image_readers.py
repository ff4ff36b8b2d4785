"""Images that openslide does not read: pictures (PNG, JPEG), strip TIFFs, any image of a TIFF.

An image of a TIFF with JPEG or WebP tiles is read tile by tile. Everything else is decoded as a
whole by Pillow and kept in memory, so its size is limited.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ingest.errors import SlideError
from ingest.readers.level_check import Place
from ingest.readers.level_reader import LevelReader
from ingest.readers.mpp import StatedMpp
from ingest.readers.slide_file import SlideFile
from ingest.readers.slide_reader import ReadOptions, RgbArray, SlideReader
from ingest.readers.tiff.jpeg_tiff import JpegTiff, NotNativeError
from ingest.readers.tiff.ome import ome_mpp
from ingest.readers.tiff.tiff_images import ORIENTATION, TiffImage
from ingest.readers.tiff.tile_grids import tile_places

PICTURE_MAX_PX = 500_000_000  # 1.5 GB
DEEP_PNG = 16
COLOURS = {"RGB", "RGBA", "RGBX", "P", "PA", "YCbCr", "RGBa"}
NEEDED = "an 8-bit colour image (RGB or YCbCr) is needed, since tiles are stored as such"


class TiffImageReader(LevelReader):
    """An image of JPEG tiles in a TIFF, and its levels.

    Args:
        path: a local file.
        image: the image of the file.
        options: the settings to read it with.

    Raises:
        NotNativeError: the image has no tiles of 8-bit colour JPEGs.
        SlideError: there is no usable mpp.
    """

    name = "tiff"

    def __init__(self, path: str, image: TiffImage, options: ReadOptions | None = None) -> None:
        self._native = JpegTiff(path, image.number)
        self._image, self.path, self.icc_profile = image, path, image.icc_profile
        sizes = [(level.width_px, level.height_px) for level in self._native.levels]
        super().__init__(path, sizes, options)

    def _stated_mpps(self) -> list[StatedMpp]:
        return stated_mpps(self.path, self._image)

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        return self._native.region(level, x, y, width, height)

    def _reduced(
        self, level: int, x: int, y: int, width: int, height: int, shrink: int
    ) -> RgbArray:
        if self._native.shrinks(level, shrink):
            return self._native.region(level, x, y, width, height, shrink=shrink)
        return super()._reduced(level, x, y, width, height, shrink)

    def _places(self, level: int) -> list[Place]:
        return tile_places(self._native.levels[0], self._native.levels[level])

    def close(self) -> None:
        """Close the file."""
        self._native.close()


class PictureReader(LevelReader):
    """A picture that is decoded as a whole.

    Args:
        path: a local file.
        image: the image of a TIFF; None for other formats.
        options: the settings to read it with.

    Raises:
        SlideError: the picture can't be decoded, is too large for that, is no 8-bit colour
            picture, or has no usable mpp.
    """

    name = "pillow"
    turns_upright = True

    def __init__(
        self, path: str, image: TiffImage | None = None, options: ReadOptions | None = None
    ) -> None:
        self.path, self._image = path, image
        with _opened(path) as picture:
            self.icc_profile = picture.info.get("icc_profile")
            self._array, turned = _decoded(path, picture, image.page if image else 0)
        super().__init__(path, [(self._array.shape[1], self._array.shape[0])], options)
        if turned:
            self.notes.append("it was turned upright, as its orientation tag says")

    def _stated_mpps(self) -> list[StatedMpp]:
        return stated_mpps(self.path, self._image) if self._image else []

    def _pixels(self, level: int, x: int, y: int, width: int, height: int) -> RgbArray:
        out = np.full((height, width, 3), 255, np.uint8)
        left, top = max(0, x), max(0, y)
        inside = self._array[top : max(top, y + height), left : max(left, x + width)]
        out[top - y :, left - x :][: inside.shape[0], : inside.shape[1]] = inside
        return out

    def close(self) -> None:
        """Drop the decoded pixels."""
        del self._array


def open_tiff_image(file: SlideFile, options: ReadOptions) -> SlideReader:
    """Open an image of JPEG or WebP tiles in a TIFF.

    Raises:
        NotNativeError: the file is no such image.
    """
    if file.image is None:
        msg = "it is no TIFF"
        raise NotNativeError(msg)
    return TiffImageReader(file.path, file.image, options)


def open_picture(file: SlideFile, options: ReadOptions) -> SlideReader:
    """Open a picture, or an image of a TIFF that is decoded as a whole."""
    return PictureReader(file.path, file.image, options)


def stated_mpps(path: str, image: TiffImage) -> list[StatedMpp]:
    """Return the microns per pixel that a TIFF states of an image: its OME-XML, then its tags."""
    xml = ome_mpp(path, image.number - 1)
    tags = None
    if image.resolution is not None:
        x, y = (1 / pixels for pixels in image.resolution)
        tags = StatedMpp(x=x, y=y, source="file", place="its tags")
    return [one for one in (xml, tags) if one is not None]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open a picture, without Pillow's own limit of pixels, which a small slide exceeds."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as picture:
            yield picture
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, SlideError):
            raise
        msg = f"{path} can't be decoded as a picture: {error}"
        raise SlideError(msg) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decoded(path: str, picture: Image.Image, page: int) -> tuple[RgbArray, bool]:
    """Return the pixels [H, W, 3], upright and on white, and whether they were turned for that."""
    if page:
        picture.seek(page)
    width, height = picture.size
    if width * height > PICTURE_MAX_PX:
        msg = (
            f"{path} has {width} x {height} px in one piece, and pictures of up to "
            f"{PICTURE_MAX_PX / 1e6:.0f} million px are read; convert it to a tiled TIFF"
        )
        raise SlideError(msg)
    if picture.mode not in COLOURS or _is_deep(path, picture):
        msg = f"{path} is a picture of mode {picture.mode}; {NEEDED}"
        raise SlideError(msg)
    turned = picture.getexif().get(ORIENTATION, 1) != 1
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in {"RGBA", "RGBa", "PA"} or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.new("RGB", layer.size, (255, 255, 255))
        upright.paste(layer, mask=layer.getchannel("A"))
    return np.array(upright.convert("RGB")), turned


def _is_deep(path: str, picture: Image.Image) -> bool:
    """Whether the picture is a PNG of 16 bits per sample, of which Pillow drops the lower half."""
    if picture.format != "PNG":
        return False
    with Path(path).open("rb") as file:
        return file.read(25)[24:] == bytes([DEEP_PNG])
