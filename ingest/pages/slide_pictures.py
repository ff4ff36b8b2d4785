"""A slide as a small picture: its thumbnail, the tissue's outline, kept tiles, and those with pen.

Pictures of 300 px are JPEGs of 10 to 20 kB, so that a page can carry those of 400 slides in itself.

Shape letters: N tiles, H W pixels of a picture.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rgb: TypeAlias = NDArray[np.uint8]

PEN_SHOWN = 0.1
"""Tiles with a greater share of pen are tinted."""

_QUALITY, _SHARP_QUALITY = 60, 75
_MASK_BLUR_PX = 2.0
_OUTLINE = (0, 0, 0)
_GRID_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))
# Marker ink is blue, green, red or black, tissue is pink to violet: yellow is none of them.
_PEN_COLOUR = (255, 225, 0)
_PEN_OPACITY, _LINE_OPACITY = 0.55, 0.7
_CLEAR_PX = 12
"""Tiles narrower than this in the picture are drawn as one area: their lines would hide it."""
_THICK_PX = 24
"""Tiles wider than this have thicker lines the coarser they are."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Kept tiles of one slide at one mpp.

    Attributes:
        side_px: side of a tile in level-0 pixels.
        x: int32[N] left edges, level-0 pixels.
        y: int32[N] top edges, level-0 pixels.
        pen: float32[N] share of each tile that is pen, NaN where it is not known.
        codecs: number of tiles that were `stored` in the slide as they are, and `encoded`.
    """

    side_px: int
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    pen: NDArray[np.float32]
    codecs: Mapping[str, int] = field(default_factory=dict)

    @property
    def with_pen(self) -> NDArray[np.bool_]:
        """Return bool[N]: whether more than `PEN_SHOWN` of a tile is pen."""
        return self.pen > PEN_SHOWN


def draw_slide(
    thumbnail_HW3: Rgb, mask_HW: NDArray[np.uint8] | None, grids: Sequence[Tiles], *, width_px: int
) -> Rgb:
    """Draw kept tiles, the finest grid with the thinnest lines, and the tissue's outline.

    Tiles of the finest grid with much pen are tinted yellow, over the lines of all grids: pen is
    a finding, a line is not.

    Args:
        thumbnail_HW3: thumbnail of the whole slide.
        mask_HW: tissue where not 0, in any size; or None.
        grids: kept tiles per mpp, finest first.
        width_px: width of the slide at level 0.

    Returns:
        A new picture of the thumbnail's size.
    """
    import cv2

    scale = thumbnail_HW3.shape[1] / width_px
    lines = thumbnail_HW3.copy()
    for number, tiles in enumerate(grids):
        colour = _GRID_COLOURS[number % len(_GRID_COLOURS)]
        _draw_grid(lines, tiles, scale, colour=colour, thickness=1 + number)
    picture: Rgb = cv2.addWeighted(lines, _LINE_OPACITY, thumbnail_HW3, 1 - _LINE_OPACITY, 0)
    if grids:
        _tint(picture, _boxes(grids[0], scale)[:, grids[0].with_pen])
    if mask_HW is not None:
        size = (picture.shape[1], picture.shape[0])
        resized = cv2.resize(mask_HW, size, interpolation=cv2.INTER_LINEAR)
        # Blurred: the mask is coarser than the picture, and its steps are no finding.
        smooth = cv2.GaussianBlur(resized, (0, 0), _MASK_BLUR_PX)
        _draw_outline(picture, (smooth > 127).astype(np.uint8), _OUTLINE, 1)
    return picture


def _boxes(tiles: Tiles, scale: float) -> NDArray[np.int64]:
    """Return the tiles' left, top, right and bottom [4, N] in pixels of the picture."""
    corners = np.stack([tiles.x, tiles.y, tiles.x + tiles.side_px, tiles.y + tiles.side_px])
    return np.rint(corners * scale).astype(np.int64)


def _tint(picture: Rgb, boxes_4N: NDArray[np.int64]) -> None:
    if not boxes_4N.size:
        return
    inside = _union(boxes_4N, picture.shape[:2]) > 0
    tinted = (1 - _PEN_OPACITY) * picture[inside] + _PEN_OPACITY * np.array(_PEN_COLOUR)
    picture[inside] = np.rint(tinted).astype(np.uint8)


def _draw_grid(
    picture: Rgb, tiles: Tiles, scale: float, *, colour: tuple[int, int, int], thickness: int
) -> None:
    """Draw the edges of tiles; where tiles are too small for that, the edge of their union."""
    import cv2

    boxes_4N = _boxes(tiles, scale)
    if tiles.side_px * scale < _CLEAR_PX:
        _draw_outline(picture, _union(boxes_4N, picture.shape[:2]), colour, 1)
        return
    thickness = thickness if tiles.side_px * scale > _THICK_PX else 1
    for left, top, right, bottom in boxes_4N.T.tolist():
        cv2.rectangle(picture, (left, top), (right, bottom), colour, thickness)


def _union(boxes_4N: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return 1 inside any of the boxes (left, top, right, bottom), each at least one pixel."""
    height, width = shape
    left, top, right, bottom = boxes_4N
    columns = np.clip([left, np.maximum(right, left + 1)], 0, width)
    rows = np.clip([top, np.maximum(bottom, top + 1)], 0, height)
    steps_HW = np.zeros((height + 1, width + 1), np.int64)
    for row, column, step in ((0, 0, 1), (1, 1, 1), (0, 1, -1), (1, 0, -1)):
        np.add.at(steps_HW, (rows[row], columns[column]), step)
    covered_HW = steps_HW.cumsum(axis=0).cumsum(axis=1)[:height, :width]
    return (covered_HW > 0).astype(np.uint8)


def _draw_outline(
    picture: Rgb, area: NDArray[np.uint8], colour: tuple[int, int, int], thickness: int
) -> None:
    import cv2

    contours, _ = cv2.findContours(area, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)


# ---------------------------------------------------------------------- pictures and their bytes


def decode_rgb(file_bytes: bytes) -> Rgb:
    """Decode a picture in any format of OpenCV to RGB [H, W, 3].

    Raises:
        DamageError: The bytes are no picture.
    """
    import cv2

    return np.ascontiguousarray(_decoded(file_bytes, cv2.IMREAD_COLOR)[..., ::-1])


def decode_mask(file_bytes: bytes) -> NDArray[np.uint8]:
    """Decode a picture in any format of OpenCV to grey [H, W].

    Raises:
        DamageError: The bytes are no picture.
    """
    import cv2

    return _decoded(file_bytes, cv2.IMREAD_GRAYSCALE)


def _decoded(file_bytes: bytes, mode: int) -> NDArray[np.uint8]:
    import cv2

    from featurestore import DamageError

    picture: NDArray[np.uint8] | None = None
    if file_bytes:
        picture = cv2.imdecode(np.frombuffer(file_bytes, np.uint8), mode)
    if picture is None:
        msg = (
            f"a slide's picture of {len(file_bytes)} bytes can't be decoded: ingest the slide again"
        )
        raise DamageError(msg)
    return picture


def scaled(picture_HW3: Rgb, longest_px: int) -> Rgb:
    """Resize the picture so that its longer side has `longest_px` pixels."""
    import cv2

    factor = longest_px / max(picture_HW3.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in picture_HW3.shape[1::-1])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized: Rgb = cv2.resize(picture_HW3, size, interpolation=way)
    return resized


def encode_jpeg(picture_HW3: Rgb, *, sharp: bool = False) -> bytes:
    """Encode a picture [H, W, 3] as JPEG.

    Args:
        picture_HW3: the picture.
        sharp: whether colours have full resolution and quality 75, for text; twice the bytes.
    """
    import cv2

    sampling, quality = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, _QUALITY
    if sharp:
        sampling, quality = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, _SHARP_QUALITY
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(picture_HW3[..., ::-1]), options)
    return bytes(jpeg)


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data URI, which a page embeds."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
