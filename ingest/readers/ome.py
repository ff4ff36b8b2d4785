"""What the OME-XML of a TIFF says that its tags, and openslide, do not."""

import math
from xml.etree import ElementTree as ET

import tifffile

MICRONS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def ome_mpp(path: str) -> float | None:
    """Microns per pixel of the first image of an OME-TIFF; None if it is none, or does not say.

    Source: PhysicalSizeX and PhysicalSizeY of Pixels, in micrometres unless a unit is given
    (OME schema 2016-06).
    """
    try:
        with tifffile.TiffFile(path) as file:
            text = file.ome_metadata
        pixels = ET.fromstring(text).find("{*}Image/{*}Pixels") if text else None
        return None if pixels is None else _mpp(pixels)
    except Exception:  # noqa: BLE001 - tifffile raises nearly anything on files that are not TIFF
        return None


def _mpp(pixels: ET.Element) -> float:
    x, y = (
        float(pixels.attrib[f"PhysicalSize{axis}"])
        * MICRONS[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
        for axis in "XY"
    )
    return math.sqrt(x * y)
