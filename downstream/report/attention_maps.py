"""A slide's attention as files for people: a picture, tiles for QuPath, a table.

QuPath (0.4 and later) reads the GeoJSON by "Import objects", or when it is dropped on the viewer:
tiles are coloured by fifths of their rank, and "Show measurement maps" colours them by number.

Shape letters: N tiles.
"""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.report.finished_run import RunError, nearest, read_run
from downstream.report.kept_attention import (
    arms_with_attention,
    attention_files,
    read_tiles,
    slides_of,
)
from downstream.report.plots.plots_attention import attention_png, shares
from downstream.report.tile_pictures import tile_side
from downstream.run.study import safe_name
from ingest.pages import decode_rgb, scaled

if TYPE_CHECKING:
    from downstream.report.finished_run import Run
    from downstream.report.kept_attention import AttentionFile
    from featurestore import Lake

_FIFTHS = 5
_MAP_PX = 1024
_BLANK = 235


class AttentionError(ValueError):
    """An error for a run or a slide that has no attention to write."""


def write_attention(
    lake: "Lake",
    run: str,
    slide_id: str,
    *,
    arm: str | None = None,
    folder: str | PathLike[str],
) -> list[Path]:
    """Write a slide's attention: `<slide>-<arm>.png`, `.geojson` and `.csv`.

    The models are those of the first repetition and seed of the fold in which the slide's patient
    is tested. If the model used tiles of several mpps, each has its files (`-mpp0.5`). Existing
    files of the same name are overwritten.

    Args:
        lake: the lake of the run.
        run: name of a finished run.
        slide_id: id of the slide; its patient must be tested in the run.
        arm: name of the arm; None for all that weigh tiles (a mean does not).
        folder: local folder, created if it does not exist.

    Returns:
        The paths of the files, arm by arm.

    Raises:
        RunError: The run does not exist, is not finished, or has no such arm.
        AttentionError: No model of the run has attention, or no test part has the slide.
        LakeError: The slide has no tiles any more.
    """
    finished_run = read_run(lake, run)
    rows = _tiles(lake, finished_run, slide_id, arm)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, tiles in rows.items():
        levels = sorted(tiles["mpp"].unique().to_list())
        for mpp in levels:
            part = f"-mpp{mpp:g}" if len(levels) > 1 else ""
            stem = f"{file_stem(slide_id, name)}{part}"
            one = with_ranks(tiles.filter(pl.col("mpp") == mpp))
            for ending, content in attention_contents(lake, slide_id, name, one).items():
                written.append(target / f"{stem}{ending}")
                replace_file(written[-1], content)
    return written


def file_stem(slide_id: str, arm: str) -> str:
    """Return the beginning of the names of a slide's files; no two slides have the same.

    >>> file_stem("S-0012", "uni2+virchow2 / abmil")
    'S-0012-uni2+virchow2_abmil'
    """
    return f"{safe_name(slide_id)}-{re.sub(r'[^A-Za-z0-9._+-]+', '_', arm)}"


def replace_file(path: Path, content: bytes) -> None:
    """Write a local file whole: a killed command leaves the old one, or none."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def with_ranks(tiles: pl.DataFrame) -> pl.DataFrame:
    """Return the tiles by (y, x) with `rank`: the share of others with less attention, 0 to 1."""
    rank = pl.Series("rank", shares(tiles["attention"].to_numpy()), dtype=pl.Float64)
    columns = ["slide_id", "tile_id", "mpp", "x", "y", "attention", "rank"]
    return tiles.with_columns(rank).select(columns).sort("y", "x")


def tile_geojson(tiles: pl.DataFrame, *, side_px: int, size_px: tuple[int, int]) -> dict[str, Any]:
    """Return tiles as GeoJSON for QuPath: squares in level-0 pixels with two measurements each.

    The last tiles of a row or column may reach beyond the slide, and are cut off at its edge.

    Args:
        tiles: tiles from `with_ranks`.
        side_px: side of a tile in level-0 pixels.
        size_px: width and height of the slide at level 0.

    Returns:
        A FeatureCollection. The form is that of `QuPathTypeAdapters.java` of QuPath 0.4:
        `objectType`, `classification` with `name` and `color`, `measurements` by name.
    """
    classes = [{"name": name, "color": colour} for name, colour in _rank_classes()]
    columns = tiles.select("x", "y", "attention", "rank").iter_rows()
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [_square(x, y, side_px, size_px)]},
                "properties": {
                    "objectType": "tile",
                    "classification": classes[min(int(rank * _FIFTHS), _FIFTHS - 1)],
                    "measurements": {"attention": attention, "rank": rank},
                },
            }
            for x, y, attention, rank in columns
        ],
    }


def _square(x: int, y: int, side_px: int, size_px: tuple[int, int]) -> list[list[int]]:
    """Return a closed ring by RFC 7946: counterclockwise if y pointed up."""
    right, below = min(x + side_px, size_px[0]), min(y + side_px, size_px[1])
    return [[x, y], [right, y], [right, below], [x, below], [x, y]]


def _rank_classes() -> list[tuple[str, list[int]]]:
    """Return the name and RGB colour of each fifth; QuPath would split a name at a colon."""
    from matplotlib import colormaps

    shades = np.rint(255 * colormaps["cividis"]((np.arange(_FIFTHS) + 0.5) / _FIFTHS)[:, :3])
    bounds = [round(100 * fifth / _FIFTHS) for fifth in range(_FIFTHS + 1)]
    names = [f"attention {low} to {high} %" for low, high in pairwise(bounds)]
    return [(name, [int(c) for c in rgb]) for name, rgb in zip(names, shades, strict=True)]


def _tiles(lake: "Lake", run: "Run", slide_id: str, arm: str | None) -> dict[str, pl.DataFrame]:
    """Return the tiles of a slide with their attention, by arm."""
    files = attention_files(lake, run.name)
    arms = weighing_arms(lake, run, files, arm)
    tiles_of_slide = {}
    for name in arms:
        for file in (one for one in files if one.arm == name):
            rows = read_tiles(lake, file, [slide_id])
            if not rows.is_empty():
                tiles_of_slide[name] = rows
                break
    if not tiles_of_slide:
        raise AttentionError(_missing_slide_message(lake, run, files, slide_id))
    return tiles_of_slide


def weighing_arms(
    lake: "Lake", run: "Run", files: Sequence["AttentionFile"], arm: str | None
) -> list[str]:
    """Return the requested arms, each of which weighs tiles.

    Args:
        lake: the lake of the run.
        run: the run.
        files: its attention files.
        arm: name of one arm; None for all that weigh tiles.

    Raises:
        RunError: The run has no such arm.
        AttentionError: The arm, or every arm, does not weigh tiles.
    """
    if arm is not None and arm not in run.arms:
        msg = f"run {run.name} has no arm {arm!r}; {nearest(arm, run.arms, 'it has')}"
        raise RunError(msg)
    attention_arms, _ = arms_with_attention(lake, run, files)
    if not attention_arms:
        models = sorted({str(one["model"]) for one in run.result["arms"].values()})
        msg = (
            f"run {run.name} has no attention to show: its models ({', '.join(models)}) do not "
            "weigh tiles, or weigh all alike; run slidelake mil with one that does, such as abmil"
        )
        raise AttentionError(msg)
    if arm not in (None, *attention_arms):
        names = ", ".join(attention_arms)
        msg = f"arm {arm!r} of run {run.name} does not weigh tiles; these do: {names}"
        raise AttentionError(msg)
    return attention_arms if arm is None else [arm]


def _missing_slide_message(
    lake: "Lake", run: "Run", files: Sequence["AttentionFile"], slide_id: str
) -> str:
    """Return a message on why a slide has no attention, with slides that have."""
    lake_slides = lake.slides().select("slide_id").collect()["slide_id"].to_list()
    if slide_id not in lake_slides:
        return (
            f"slide {slide_id!r} is not in {lake.uri}; {nearest(slide_id, lake_slides, 'it has')}"
        )
    tested = sorted(set().union(*(slides_of(lake, file) for file in files)))
    return (
        f"slide {slide_id!r} is in no test part of run {run.name}, which has "
        f"{counted(len(tested), 'slide')}: "
        f"its patient has no label, or it has no tiles; {nearest(slide_id, tested, 'tested are')}"
    )


def attention_contents(
    lake: "Lake", slide_id: str, arm: str, tiles: pl.DataFrame
) -> dict[str, bytes]:
    """Return the contents of a slide's files at one mpp, by ending: picture, GeoJSON, table.

    Args:
        lake: the lake that holds the slide.
        slide_id: id of the slide.
        arm: name of the arm, for the title.
        tiles: tiles from `with_ranks`, of one mpp.

    Raises:
        LakeError: The slide has no tiles at this mpp any more.
    """
    side_px = tile_side(lake, slide_id, float(tiles["mpp"][0]))
    size_px = _slide_size(lake, slide_id, tiles, side_px)
    geojson = tile_geojson(tiles, side_px=side_px, size_px=size_px)
    return {
        ".png": _attention_picture(lake, slide_id, arm, tiles, side_px=side_px, size_px=size_px),
        ".geojson": json.dumps(geojson).encode(),
        ".csv": tiles.write_csv().encode(),
    }


def _slide_size(lake: "Lake", slide_id: str, tiles: pl.DataFrame, side_px: int) -> tuple[int, int]:
    """Return width and height of a slide in level-0 pixels; up to its last tile without a size."""
    slides = lake.slides().filter(pl.col("slide_id") == slide_id)
    width, height = slides.select("width_px", "height_px").collect().row(0)
    last = [int(tiles[name].to_numpy().max()) + side_px for name in ("x", "y")]
    return width or last[0], height or last[1]


def _attention_picture(
    lake: "Lake",
    slide_id: str,
    arm: str,
    tiles: pl.DataFrame,
    *,
    side_px: int,
    size_px: tuple[int, int],
) -> bytes:
    """Return a PNG of attention over the thumbnail, or over grey in a lake without thumbnails."""
    return attention_png(
        _background(lake.pictures(slide_id)["thumbnail"], *size_px),
        *(tiles[name].to_numpy() for name in ("x", "y", "attention")),
        tile_px_level0=side_px,
        width_px=size_px[0],
        height_px=size_px[1],
        title=f"{slide_id}, {arm}",
    )


def _background(thumbnail: bytes | None, width: int, height: int) -> NDArray[np.uint8]:
    """Return the thumbnail's pixels, or a grey picture without one."""
    if thumbnail is not None:
        return scaled(decode_rgb(thumbnail), _MAP_PX)
    scale = _MAP_PX / max(width, height)
    shape = max(1, round(height * scale)), max(1, round(width * scale)), 3
    return np.full(shape, _BLANK, dtype=np.uint8)
