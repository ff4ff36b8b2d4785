"""The contact sheet: thumbnails with the tissue's outline and the grids of kept tiles drawn over.

Pictures are small JPEGs, so that a report of 36 slides stays near one megabyte.

Shape letters: N tiles, H W pixels of a picture.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore import Lake

    Rgb: TypeAlias = NDArray[np.uint8]

MOST_SLIDES = 36
MOST_FAILED = 12
PICTURE_PX = 360
_QUALITY = 75
_MASK_BLUR_PX = 2.0
_OUTLINE = (0, 0, 0)
_GRID_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))
_CLEAR_PX = 4
"""Tiles narrower than this in the picture are drawn as one area: their lines would fill it."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Kept tiles of one slide at one mpp.

    Attributes:
        side_px: Side of a tile in level-0 pixels.
        x: int32[N] left edges, level-0 pixels.
        y: int32[N] top edges, level-0 pixels.
    """

    side_px: int
    x: NDArray[np.int32]
    y: NDArray[np.int32]


def choose_slides(slides: pl.DataFrame, *, first: str | None = None) -> pl.DataFrame:
    """The slides to show: one that is named, failures, suspicious ones, then the rest in order.

    Args:
        slides: Rows with slide, slide_id, uri, state and verdict.
        first: File name of a slide to show in any case, or None.

    Returns:
        At most 36 of the rows, at most 12 of them failed.
    """
    failed = pl.col("state") == "failed"
    some_failed = slides.filter(failed).sort("slide").head(MOST_FAILED)
    named = pl.col("uri").str.ends_with(f"/{first}") if first else pl.lit(value=False)
    others = slides.filter(~failed).with_columns(
        rank=pl.when(named)
        .then(0)
        .when(pl.col("verdict").fill_null("ok") != "ok")
        .then(1)
        .otherwise(2)
    )
    others = others.sort("rank", "slide").drop("rank")
    return pl.concat([some_failed, others]).head(MOST_SLIDES)


def make_cards(lake: Lake, chosen: pl.DataFrame) -> list[dict[str, Any]]:
    """A card for each chosen slide: its row, tile counts per mpp, and its picture.

    Returns:
        The row's columns, `tiles` (mpp -> count) and `picture` (data URI, or None without one).
    """
    kept = {mpp: _catalog_rows(lake, chosen, mpp) for mpp in lake.config.mpps}
    cards = []
    for row in chosen.iter_rows(named=True):
        here = {mpp: rows[row["slide"]] for mpp, rows in kept.items() if row["slide"] in rows}
        tiles = {mpp: _tiles(lake, mpp, place) for mpp, place in here.items()}
        counts = {mpp: len(found.x) for mpp, found in tiles.items()}
        cards.append({**row, "tiles": counts, "picture": _picture(lake, row, tiles)})
    return cards


def _catalog_rows(lake: Lake, chosen: pl.DataFrame, mpp: float) -> dict[int, dict[str, Any]]:
    """Slide number -> catalog row of its tiles at one mpp."""
    rows = lake.tiles_of(mpp=mpp).filter(pl.col("slide").is_in(chosen["slide"].implode()))
    return {row["slide"]: row for row in rows.iter_rows(named=True)}


def _tiles(lake: Lake, mpp: float, place: Mapping[str, Any]) -> Tiles:
    """Read where a slide's tiles are: the row range that the catalog names."""
    from featurestore.schema import features_table

    none = np.empty(0, np.int32)
    if not place["tiles"]:
        return Tiles(side_px=place["tile_px_level0"] or 1, x=none, y=none)
    fragment = lake.table(features_table(mpp)).get_fragment(place["fragment"])
    table = fragment.scanner(
        columns=["x", "y"], offset=place["row_start"], limit=place["tiles"]
    ).to_table()
    return Tiles(side_px=place["tile_px_level0"], x=table["x"].to_numpy(), y=table["y"].to_numpy())


def _picture(lake: Lake, row: Mapping[str, Any], tiles: Mapping[float, Tiles]) -> str | None:
    """The slide's annotated picture as a data URI, or None if the lake has no thumbnail of it."""
    pictures = lake.pictures(row["slide_id"])
    if pictures["thumbnail"] is None or not row["width_px"]:
        return None
    mask = pictures["tissue_mask"]
    drawn = draw_slide(
        scaled(decode_rgb(pictures["thumbnail"]), PICTURE_PX),
        decode_mask(mask) if mask is not None else None,
        [tiles[mpp] for mpp in sorted(tiles)],
        width_px=row["width_px"],
    )
    return data_uri(encode_jpeg(drawn), "image/jpeg")


def draw_slide(
    thumbnail_HW3: Rgb, mask_HW: NDArray[np.uint8] | None, grids: Sequence[Tiles], *, width_px: int
) -> Rgb:
    """Draw kept tiles, the finest grid with the thinnest lines, and the tissue's outline.

    Args:
        thumbnail_HW3: Thumbnail of the whole slide.
        mask_HW: Tissue where not 0, in any size; or None.
        grids: Kept tiles per mpp, finest first.
        width_px: Width of the slide at level 0.

    Returns:
        A new picture of the thumbnail's size.
    """
    import cv2

    picture = thumbnail_HW3.copy()
    scale = picture.shape[1] / width_px
    for number, tiles in enumerate(grids):
        colour = _GRID_COLOURS[number % len(_GRID_COLOURS)]
        _draw_grid(picture, tiles, scale, colour=colour, thickness=1 + number)
    if mask_HW is not None:
        size = (picture.shape[1], picture.shape[0])
        resized = cv2.resize(mask_HW, size, interpolation=cv2.INTER_LINEAR)
        # Blurred: the mask is coarser than the picture, and its steps are no finding.
        smooth = cv2.GaussianBlur(resized, (0, 0), _MASK_BLUR_PX)
        _draw_outline(picture, (smooth > 127).astype(np.uint8), _OUTLINE, 1)
    return picture


def _draw_grid(
    picture: Rgb, tiles: Tiles, scale: float, *, colour: tuple[int, int, int], thickness: int
) -> None:
    """Draw the tiles' edges; where tiles are too small for that, the edge of all together."""
    import cv2

    corners = np.stack([tiles.x, tiles.y, tiles.x + tiles.side_px, tiles.y + tiles.side_px])
    boxes_4N = np.rint(corners * scale).astype(np.int64)
    if tiles.side_px * scale < _CLEAR_PX:
        _draw_outline(picture, _union(boxes_4N, picture.shape[:2]), colour, thickness)
        return
    for left, top, right, bottom in boxes_4N.T.tolist():
        cv2.rectangle(picture, (left, top), (right, bottom), colour, thickness)


def _union(boxes_4N: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """1 where any of the boxes (left, top, right, bottom) is, each at least one pixel."""
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


def decode_rgb(data: bytes) -> Rgb:
    """A picture in any format of OpenCV as RGB [H, W, 3].

    Raises:
        DamageError: It is no picture.
    """
    import cv2

    return np.ascontiguousarray(_decoded(data, cv2.IMREAD_COLOR)[..., ::-1])


def decode_mask(data: bytes) -> NDArray[np.uint8]:
    """A picture in any format of OpenCV as grey [H, W].

    Raises:
        DamageError: It is no picture.
    """
    import cv2

    return _decoded(data, cv2.IMREAD_GRAYSCALE)


def _decoded(data: bytes, mode: int) -> NDArray[np.uint8]:
    import cv2

    from featurestore import DamageError

    picture: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if picture is None:
        msg = f"a slide's picture of {len(data)} bytes can't be decoded: ingest the slide again"
        raise DamageError(msg)
    return picture


def scaled(picture_HW3: Rgb, longest_px: int) -> Rgb:
    """The picture with its longer side of so many pixels."""
    import cv2

    factor = longest_px / max(picture_HW3.shape[:2])
    size = tuple(max(1, round(side * factor)) for side in picture_HW3.shape[1::-1])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    resized: Rgb = cv2.resize(picture_HW3, size, interpolation=way)
    return resized


def encode_jpeg(picture_HW3: Rgb) -> bytes:
    """A picture [H, W, 3] as JPEG, colours at full resolution because the lines are thin."""
    import cv2

    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY, *sampling]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture_HW3[..., ::-1]), options)
    return bytes(data)


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a URI that a page carries in itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
