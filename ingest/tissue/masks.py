"""A user's own tissue masks: GeoJSON as QuPath writes it, or a PNG.

They are sampled at the middle of each overview pixel. Everything that would result in an empty or a
wrong mask without a word is an error instead: a mask replaces the detector.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from featurestore.storage import shown
from ingest.errors import SlideError
from ingest.remote.remote_errors import as_slide_errors
from ingest.remote.remote_files import name_of, open_fs

SUFFIXES = (".geojson", ".json", ".png")
ASPECT_TOLERANCE = 0.01
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPE = 25
# QuPath's convention is that classes with an asterisk are ignored (Ignore*, Artefact*), all but
# Region*, which is what it calls a part of the slide to look at.
NOT_TISSUE = frozenset({"ignore", "background", "artefact", "artifact", "glass", "whitespace"})
REGION = "region*"
NO_AREAS = frozenset({"detection", "cell", "tile"})

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]
Ring = Float64Array
Polygon = list[Ring]
Anything = Any


def read_mask(
    path_or_uri: str, *, size_px: tuple[int, int], shape: tuple[int, int], scale: float
) -> BoolArray:
    """Return a user's mask at the resolution of an overview, [H, W].

    GeoJSON: a FeatureCollection, a Feature, a list of them or a bare geometry, with coordinates in
    level-0 pixels from the slide's corner. Tissue is the union of all Polygons and MultiPolygons,
    less their holes and less areas classified as not tissue (`Ignore*`, `Background`, ...: names
    with an asterisk but `Region*`, and NOT_TISSUE). Points, lines, cells, detections and cores of a
    microarray that are marked as missing are left out. A ring that crosses itself is filled by the
    even-odd rule.

    PNG: any size with the slide's aspect ratio; non-zero pixels are tissue: the index in a palette,
    else any of the colours, where alpha is not zero. In a picture without colours alpha decides.

    Args:
        path_or_uri: path or fsspec URL that ends in .geojson, .json or .png.
        size_px: width and height of level 0.
        shape: height and width of the overview.
        scale: side of a pixel of the overview in level-0 pixels.

    Raises:
        SlideError: the file can't be read, is no such mask, marks no tissue here, or has the
            aspect ratio or the coordinates of another slide.
    """
    path, kind = shown(path_or_uri), name_of(path_or_uri).lower().rpartition(".")[2]
    if f".{kind}" not in SUFFIXES:
        msg = f"mask {path} must end in {', '.join(SUFFIXES)}"
        raise SlideError(msg)
    mask_bytes = _read(path_or_uri)
    y, x = ((np.arange(n, dtype=np.float64) + 0.5) * scale for n in shape)
    if kind == "png":
        mask = _sampled(_png_mask(mask_bytes, path), path, size_px, y, x)
    else:
        mask = _from_geojson(mask_bytes, path, size_px, shape, scale)
    mask &= (y < size_px[1])[:, None] & (x < size_px[0])
    if not mask.any():
        msg = f"mask {path} marks no tissue inside the slide of {_by(size_px)} px"
        raise SlideError(msg)
    return mask


def _read(uri: str) -> bytes:
    fs, path = open_fs(uri)
    with as_slide_errors(uri):
        mask_bytes: bytes = fs.cat_file(path)
    return mask_bytes


# ------------------------------------------------------------------ GeoJSON


def _from_geojson(
    mask_bytes: bytes, path: str, size_px: tuple[int, int], shape: tuple[int, int], scale: float
) -> BoolArray:
    try:
        tissue, ignored = _polygons(json.loads(mask_bytes.decode("utf-8-sig")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"mask {path} is not JSON: {error}"
        raise SlideError(msg) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        msg = f"mask {path} is not GeoJSON: {type(error).__name__} {error}"
        raise SlideError(msg) from error
    if not tissue:
        msg = (
            f"mask {path} has no polygons of tissue ({len(ignored)} of ignored classes); "
            "export annotations with an area, coordinates in level-0 pixels"
        )
        raise SlideError(msg)
    _check_place(tissue, path, size_px)
    return fill(tissue, shape, scale) & ~fill(ignored, shape, scale)


def _polygons(document: Anything) -> tuple[list[Polygon], list[Polygon]]:
    """Return the polygons of tissue, and the polygons that are cut out of the tissue."""
    tissue: list[Polygon] = []
    ignored: list[Polygon] = []
    for feature in _features(document):
        properties = feature.get("properties") or {}
        # A core of a tissue microarray that is marked as missing is a hole in the block.
        if properties.get("objectType") in NO_AREAS or properties.get("isMissing") is True:
            continue
        areas = list(_areas(feature.get("geometry")))
        (ignored if _is_ignored(properties) else tissue).extend(areas)
    return tissue, ignored


def _features(document: Anything) -> Iterator[dict[str, Anything]]:
    if isinstance(document, list):
        for feature in document:
            yield from _features(feature)
    elif document["type"] == "FeatureCollection":
        yield from _features(document["features"])
    elif document["type"] == "Feature":
        yield document
    else:
        yield {"geometry": document}


def _is_ignored(properties: dict[str, Anything]) -> bool:
    """Whether an annotation's class marks it as no tissue; without a class it is tissue."""
    classification = properties.get("classification") or {}
    # QuPath writes `name`, or `names` for a class of several parts; others write the name alone.
    text = (
        classification
        if isinstance(classification, str)
        else classification.get("name") or ":".join(classification.get("names", []))
    )
    parts = [part.strip().casefold() for part in text.split(":")]
    return any(
        (part.endswith("*") and part != REGION) or part.rstrip("*") in NOT_TISSUE for part in parts
    )


def _areas(geometry: dict[str, Anything] | None) -> Iterator[Polygon]:
    kind = geometry["type"] if geometry else None
    if geometry is None:
        return
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _areas(part)
    elif kind == "Polygon":
        yield _rings(geometry["coordinates"])
    elif kind == "MultiPolygon":
        yield from (_rings(part) for part in geometry["coordinates"])


def _rings(coordinates: list[list[list[float]]]) -> Polygon:
    rings = [np.array([point[:2] for point in ring], np.float64) for ring in coordinates]
    if not rings or any(ring.ndim != 2 or not np.isfinite(ring).all() for ring in rings):
        msg = "a polygon without finite x, y coordinates"
        raise ValueError(msg)
    return rings


def _check_place(tissue: list[Polygon], path: str, size_px: tuple[int, int]) -> None:
    """Refuse polygons that lie outside the slide, or reach far beyond it, by a SlideError."""
    points = np.concatenate([polygon[0] for polygon in tissue])
    low, high, size = points.min(0), points.max(0), np.array(size_px)
    span = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}"
    if (high <= 0).any() or (low >= size).any():
        msg = f"mask {path} lies outside the slide: {span}, the slide has {_by(size_px)} px"
        raise SlideError(msg)
    if (low < -size).any() or (high > 2 * size).any():
        msg = (
            f"mask {path} reaches far beyond the slide: {span}, the slide has {_by(size_px)} px; "
            "coordinates must be level-0 pixels of this slide"
        )
        raise SlideError(msg)


def fill(polygons: list[Polygon], shape: tuple[int, int], scale: float) -> BoolArray:
    """Return the pixels [H, W] whose middle lies in a polygon (rings in level-0 pixels)."""
    mask = np.zeros(shape, bool)
    for polygon in polygons:
        rings = [ring / scale for ring in polygon]
        # Only the rows and columns of the polygon: there may be thousands of small ones.
        low = np.clip(np.floor(rings[0].min(0)), 0, shape[::-1]).astype(int)
        high = np.clip(np.ceil(rings[0].max(0)), 0, shape[::-1]).astype(int)
        if (high > low).all():
            part = mask[low[1] : high[1], low[0] : high[0]]
            shifted, size = [ring - low for ring in rings], (part.shape[0], part.shape[1])
            # Both: a hole that reaches out of its polygon must not be filled there.
            part |= _inside(shifted, size) & _inside(shifted[:1], size)
    return mask


def _inside(rings: list[Ring], shape: tuple[int, int]) -> BoolArray:
    """Return the pixels inside rings by the even-odd rule: an odd number of edges on their left."""
    edges = np.concatenate([np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in rings])
    x0, y0, x1, y1 = edges[edges[:, 1] != edges[:, 3]].T
    # An edge crosses the middles of the rows from `top` to `bottom`: half-open, so that a corner
    # on the middle of a row counts once.
    top = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, shape[0]).astype(int)
    bottom = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, shape[0]).astype(int)
    count = bottom - top
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + top[edge]
    slope = (x1 - x0) / (y1 - y0)
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope[edge]
    column = np.clip(np.ceil(x - 0.5), 0, shape[1]).astype(int)
    crossings = np.zeros((shape[0], shape[1] + 1), np.int32)
    np.add.at(crossings, (row, column), 1)
    inside: BoolArray = crossings[:, :-1].cumsum(axis=1) % 2 == 1
    return inside


# ---------------------------------------------------------------------- PNG


def _png_mask(mask_bytes: bytes, path: str) -> BoolArray:
    try:
        # A palette's index is the label; its colours are for the eye (that of 0 is often white).
        if mask_bytes[PNG_COLOUR_TYPE : PNG_COLOUR_TYPE + 1] == b"\x03":
            with Image.open(io.BytesIO(mask_bytes), formats=["PNG"]) as picture:
                return np.asarray(np.asarray(picture) != 0)
        # PIL would cut 16-bit colours down to 8 bits and lose labels below 256.
        pixels = cv2.imdecode(np.frombuffer(mask_bytes, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        msg = f"mask {path} is not a PNG that can be read: {error}"
        raise SlideError(msg) from error
    if pixels is None or not mask_bytes.startswith(PNG_START):
        msg = f"mask {path} is not a PNG that can be read (it may be truncated)"
        raise SlideError(msg)
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    coloured = (pixels[..., :3] != 0).any(axis=-1)
    if pixels.shape[-1] == 3:
        return np.asarray(coloured)
    opaque = pixels[..., 3] != 0
    return np.asarray(coloured & opaque if coloured.any() else opaque)


def _sampled(
    marked: BoolArray, path: str, size_px: tuple[int, int], y: Float64Array, x: Float64Array
) -> BoolArray:
    height, width = marked.shape
    off = abs(width * size_px[1] / size_px[0] - height)
    if off > max(1.5, ASPECT_TOLERANCE * height):
        msg = (
            f"mask {path} has {width} x {height} px, another aspect ratio than the slide of "
            f"{_by(size_px)} px; it must show the whole slide"
        )
        raise SlideError(msg)
    rows = np.minimum(y * height / size_px[1], height - 1).astype(int)
    columns = np.minimum(x * width / size_px[0], width - 1).astype(int)
    sampled: BoolArray = marked[np.ix_(rows, columns)]
    return sampled


def _by(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]} x {size_px[1]}"
