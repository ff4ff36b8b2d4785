"""The images in a TIFF: several sections, z-planes, a label; each with its reduced levels."""

from dataclasses import dataclass
from typing import Any

import tifffile

from cluster import counted

ASPECT_APART = 0.02
SCALE_APART = 0.02
REDUCED_BIT = 1  # of the tag NewSubfileType
PAGES_MAX = 2000
ICC_PROFILE, ORIENTATION = 34675, 274
# Values of the tag Compression.
JPEG, WEBP = 7, 50001


@dataclass(frozen=True, kw_only=True)
class TiffImage:
    """One image of a TIFF.

    Attributes:
        number: number of the image from 1, in the file's order; the 2 of `slide.tif#2`.
        page: number of the image's directory in the file's chain, from 0.
        width_px: width of the finest level.
        height_px: height of the finest level.
        is_tiled: whether it is stored in tiles, and not in strips.
        compression: value of the compression tag.
        orientation: value of the orientation tag; 1 is upright.
        resolution: pixels per micron across and down; None where it is not stated.
        icc_profile: ICC profile of the image's colours; None where there is none.
    """

    number: int
    page: int
    width_px: int
    height_px: int
    is_tiled: bool
    compression: int
    orientation: int
    resolution: tuple[float, float] | None
    icc_profile: bytes | None

    @property
    def size_text(self) -> str:
        """Return the number and the size of the image in words."""
        return f"#{self.number}: {self.width_px} x {self.height_px} px"


def tiff_images(path: str) -> list[TiffImage]:
    """Return the images of a TIFF in the order of the file; an empty list for other files."""
    try:
        with tifffile.TiffFile(path) as file:
            return [_image(n, levels[0]) for n, levels in enumerate(image_pages(file), start=1)]
    except Exception:  # noqa: BLE001 - tifffile raises nearly anything on files that are not TIFF
        return []


def image_pages(file: tifffile.TiffFile) -> list[list[Any]]:
    """Return the pages of each image, its finest level first.

    A page is a level of the image before it if it is smaller and has its shape, and is marked as a
    reduced image or a whole number of times smaller: another section is often nearly as large. The
    levels of an OME-TIFF are in sub-directories.
    """
    images: list[list[Any]] = []
    for number, page in enumerate(file.pages):
        if number == PAGES_MAX:
            break
        if page.subifds:
            images.append([page, *page.pages])
        elif images and _is_level(page, images[-1]):
            images[-1].append(page)
        else:
            images.append([page])
    return images


def _is_level(page: Any, levels: list[Any]) -> bool:  # noqa: ANN401 - a tifffile page, untyped
    shape = levels[0].imagewidth / levels[0].imagelength
    is_smaller = page.imagewidth < levels[-1].imagewidth
    alike = abs(page.imagewidth / page.imagelength / shape - 1) < ASPECT_APART
    scale = levels[0].imagewidth / page.imagewidth
    is_whole = round(scale) > 1 and abs(scale / round(scale) - 1) < SCALE_APART
    is_reduced = bool(int(page.subfiletype) & REDUCED_BIT) or is_whole
    return is_smaller and alike and is_reduced and not levels[0].subifds


def _image(number: int, page: Any) -> TiffImage:  # noqa: ANN401 - a tifffile page, untyped
    orientation, profile = page.tags.get(ORIENTATION), page.tags.get(ICC_PROFILE)
    return TiffImage(
        number=number,
        page=int(page.index),
        width_px=int(page.imagewidth),
        height_px=int(page.imagelength),
        is_tiled=bool(page.is_tiled),
        compression=int(page.compression),
        orientation=int(orientation.value) if orientation else 1,
        resolution=_resolution(page),
        icc_profile=bytes(profile.value) if profile else None,
    )


def _resolution(page: Any) -> tuple[float, float] | None:  # noqa: ANN401 - a tifffile page
    """Return the pixels per micron, where the tags state a unit of length."""
    unit = page.tags.get("ResolutionUnit")
    microns = {2: 25_400.0, 3: 10_000.0}.get(int(unit.value) if unit else 2)
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if microns is None or None in tags:
        return None
    x, y = (tag.value[0] / tag.value[1] / microns if tag.value[1] else 0.0 for tag in tags)
    return (x, y) if x > 0 and y > 0 else None


def largest(images: list[TiffImage]) -> TiffImage:
    """Return the image with most pixels; the first of equal images."""
    return max(images, key=lambda image: (image.width_px * image.height_px, -image.number))


def other_images(images: list[TiffImage], chosen: TiffImage) -> list[str]:
    """Return a note that names the images that are not read; an empty list for one image."""
    others = [image.size_text for image in images if image is not chosen]
    if not others:
        return []
    more = ", ..." if others[4:] else ""
    note = (
        f"it holds {counted(len(others), 'other image')} ({', '.join(others[:4])}{more}); image "
        f"#{chosen.number} was taken, and a slide given as FILE#{others[0][1:].partition(':')[0]} "
        "is another"
    )
    return [note]
