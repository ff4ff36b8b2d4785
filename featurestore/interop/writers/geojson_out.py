"""GeoJSON that QuPath opens: tissue as annotations and, on request, tiles as rectangles."""

import json
from collections.abc import Mapping
from typing import Any

from featurestore.interop.foreign_slide import InteropError, SlideTiles
from featurestore.interop.writers.outbox import Outbox
from featurestore.interop.writers.outgoing_slide import SlideOut

TISSUE = {"objectType": "annotation", "classification": {"name": "Tissue", "color": [0, 160, 80]}}
TILE = {"objectType": "tile", "classification": {"name": "Tile", "color": [40, 90, 200]}}


def export_slide(box: Outbox, slide: SlideOut) -> int:
    """Write `<slide>.geojson` of the tissue, and of the tiles if there are any to write.

    Raises:
        InteropError: the lake has no tissue of the slide, and no tiles are to be written.
    """
    tissue, name = slide.tissue(), slide.tiles.slide_id
    if tissue is None and not len(slide.tiles):
        msg = f"slide '{name}': the lake has no outline of its tissue; --tiles writes its tiles"
        raise InteropError(msg)
    features = [_annotation(feature) for feature in (tissue or {}).get("features", [])]
    text = json.dumps({"type": "FeatureCollection", "features": features + _tiles(slide.tiles)})
    rel = f"{name}.geojson"
    # Compared whole: it costs no more than writing it, and proves that it is the same.
    if box.path(rel).is_file() and box.path(rel).read_text() == text:
        return 0
    with box.file(rel) as path:
        path.write_text(text)
    return 1


def _annotation(feature: Mapping[str, Any]) -> dict[str, Any]:
    properties = {**TISSUE, **(feature.get("properties") or {})}
    return {"type": "Feature", "properties": properties, "geometry": feature["geometry"]}


def _tiles(tiles: SlideTiles) -> list[dict[str, Any]]:
    side = tiles.tile_px_level0
    return [
        {"type": "Feature", "properties": TILE, "geometry": _square(x, y, side)}
        for x, y in tiles.xy.tolist()
    ]


def _square(x: int, y: int, side: int) -> dict[str, Any]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [ring]}
