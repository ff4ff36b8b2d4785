"""Outlines of a mask along its pixels' edges, as GeoJSON polygons with holes.

Filling the polygons restores the mask exactly. (OpenCV's contours run through the centres of
pixels, which loses half a pixel all around: about 50 um on an overview of 512 pixels.)
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Point = tuple[int, int]
Step = tuple[int, int]
Ring = list[Point]

# An edge leads from a corner (x, y) with the mask on its right: y points down.
RIGHT, DOWN, LEFT, UP = (1, 0), (0, 1), (-1, 0), (0, -1)


def outlines(mask: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Return the polygons of a mask [H, W] in its pixels: a part's outer ring, then its holes.

    Parts touch at corners at most. Rings are closed; the outer one runs clockwise on the screen.

    >>> outlines(np.array([[True, True]]))
    [[[(0, 0), (2, 0), (2, 1), (0, 1), (0, 0)]]]
    """
    import cv2

    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    parts: dict[int, list[Ring]] = {}
    for ring, inside in _rings(mask):
        # The first ring found of a part holds its topmost edge: it is the outer one.
        parts.setdefault(int(labels[inside[1], inside[0]]), []).append(ring)
    return list(parts.values())


def _rings(mask: npt.NDArray[np.bool_]) -> list[tuple[Ring, Point]]:
    """Return closed rings by their topmost, leftmost corner, each with a pixel beside it."""
    edges = _edges(mask)
    rings = []
    while edges:
        start, (step, *_) = next(iter(edges.items()))
        rings.append((_ring(edges, start, step), _right_of(start, step)))
    return rings


def _ring(edges: dict[Point, list[Step]], start: Point, first: Step) -> Ring:
    """Follow edges, taking them out, until the ring closes; only its corners are kept."""
    ring, at, step = [start], start, first
    while True:
        edges[at].remove(step)
        if not edges[at]:
            del edges[at]
        at = (at[0] + step[0], at[1] + step[1])
        # Where a part touches itself the ring may pass its start; it is closed by a right turn.
        if at == start and (start not in edges or _right_turn(step) == first):
            return [*ring, start]
        turn = _next(edges, at, step)
        if turn != step:
            ring.append(at)
        step = turn


def _edges(mask: npt.NDArray[np.bool_]) -> dict[Point, list[Step]]:
    """Return the edges between mask and background by their first corner, topmost first."""
    padded = np.pad(mask, 1)
    down = padded[1:, 1:-1].astype(np.int8) - padded[:-1, 1:-1]
    across = padded[1:-1, 1:].astype(np.int8) - padded[1:-1, :-1]
    corner_steps: list[tuple[Point, Step]] = []
    corner_steps += [((x, y), RIGHT) for y, x in np.argwhere(down > 0).tolist()]
    corner_steps += [((x + 1, y), LEFT) for y, x in np.argwhere(down < 0).tolist()]
    corner_steps += [((x, y + 1), UP) for y, x in np.argwhere(across > 0).tolist()]
    corner_steps += [((x, y), DOWN) for y, x in np.argwhere(across < 0).tolist()]
    edges: dict[Point, list[Step]] = {}
    for corner, step in sorted(
        corner_steps, key=lambda edge: (edge[0][1], edge[0][0], edge[1] != RIGHT)
    ):
        edges.setdefault(corner, []).append(step)
    return edges


def _next(edges: dict[Point, list[Step]], at: Point, step: Step) -> Step:
    """Return the next edge of a ring; where two parts touch, the ring turns right."""
    steps = edges[at]
    right = _right_turn(step)
    return right if right in steps else steps[0]


def _right_turn(step: Step) -> Step:
    return -step[1], step[0]


def _right_of(corner: Point, step: Step) -> Point:
    """Return the pixel on the right of an edge."""
    x, y = corner
    return {RIGHT: (x, y), DOWN: (x - 1, y), LEFT: (x - 1, y - 1), UP: (x, y - 1)}[step]


def mask_geojson(mask: npt.NDArray[np.bool_], width_px: int, height_px: int) -> dict[str, Any]:
    """Return a mask of a whole slide as a FeatureCollection in level-0 pixels.

    Args:
        mask: tissue [H, W].
        width_px: width of level 0.
        height_px: height of level 0.
    """
    scale_x, scale_y = width_px / mask.shape[1], height_px / mask.shape[0]
    features = [
        {
            "type": "Feature",
            "properties": {"tissue_id": number},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x * scale_x, y * scale_y] for x, y in ring] for ring in rings],
            },
        }
        for number, rings in enumerate(outlines(mask))
    ]
    return {"type": "FeatureCollection", "features": features}
