"""The facts in the OME-XML of a TIFF that its tags, and openslide, do not state."""

import math
from xml.etree import ElementTree as ET

import tifffile

from ingest.readers.mpp import StatedMpp

# Both signs for micro are in use: U+00B5 (the schema's) and U+03BC (the Greek letter).
MICRONS = {
    "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "micrometer": 1.0, "micrometre": 1.0, "micrometers": 1.0, "micrometres": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3, "pm": 1e-6, "\u00e5": 1e-4,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4, "dm": 1e5, "m": 1e6, "meter": 1e6,
    "in": 25400.0, "inch": 25400.0,
}  # fmt: skip


def ome_mpp(path: str, image: int = 0) -> StatedMpp | None:
    """Return the microns per pixel of an OME-TIFF's image; None if none are stated.

    Source: PhysicalSizeX and PhysicalSizeY of Pixels, in micrometres unless a unit is stated
    (OME schema 2016-06).

    Args:
        path: path of the file.
        image: number of the image, from 0; None is returned where several others are listed.
    """
    try:
        with tifffile.TiffFile(path) as file:
            text = file.ome_metadata
        pixels = ET.fromstring(text).findall("{*}Image/{*}Pixels") if text else []
        if len(pixels) == 1:  # its planes are images of the file, and of one size
            return _stated(pixels[0])
        return _stated(pixels[image]) if image < len(pixels) else None
    except Exception:  # noqa: BLE001 - tifffile raises nearly anything on files that are not TIFF
        return None


def _stated(pixels: ET.Element) -> StatedMpp | None:
    """Return the pixel sizes of a Pixels element; None where one is missing or is no length."""
    sizes = [_microns(pixels, axis) for axis in "XY"]
    x, y = sizes
    if x is None or y is None:
        return None
    return StatedMpp(x=x, y=y, source="file", place="its OME-XML")


def _microns(pixels: ET.Element, axis: str) -> float | None:
    unit = pixels.attrib.get(f"PhysicalSize{axis}Unit", "um").strip()
    # Case matters to no unit but these: the schema has "M" prefixes, and nobody measures in them.
    factor = MICRONS.get(unit) or MICRONS.get(unit.lower())
    try:
        size = float(pixels.attrib[f"PhysicalSize{axis}"])
    except (KeyError, ValueError):
        return None
    return size * factor if factor and math.isfinite(size) and size > 0 else None
