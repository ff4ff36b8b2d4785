"""The attention of one slide as files, written once: picture, GeoJSON, table and top tiles.

A slide's record is written last and names its files with size and checksum, and the attention that
they show. What a record tells is there whole is not drawn again.
"""

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from downstream.report.attention_maps import (
    attention_contents,
    file_stem,
    replace_file,
    with_ranks,
)
from downstream.report.tile_pictures import tile_jpegs
from ingest.pages import decode_rgb, encode_jpeg, scaled

if TYPE_CHECKING:
    from featurestore import Lake

FORMAT = 1
"""Version of what the files show; with another one they are drawn again."""
TOP_TILES, _ACROSS = 8, 4
_SIDE_PX, _GAP_PX = 224, 4


@dataclass(frozen=True, kw_only=True)
class SlideHeatmap:
    """The attention of a slide's tiles in one arm.

    Attributes:
        slide_id: id of the slide.
        patient_id: its patient.
        arm: name of the arm.
        tiles: slide_id, tile_id, mpp, x, y (level-0 px) and attention of each tile; of one mpp or
            of several.
    """

    slide_id: str
    patient_id: str
    arm: str
    tiles: pl.DataFrame

    @property
    def checksum(self) -> int:
        """Return the CRC-32 of the attention and the places of the tiles."""
        ordered, crc32 = self.tiles.sort("tile_id"), 0
        for name in ("tile_id", "x", "y", "attention"):
            crc32 = zlib.crc32(np.ascontiguousarray(ordered[name].to_numpy()).tobytes(), crc32)
        return crc32


@dataclass(frozen=True, kw_only=True)
class HeatmapRecord:
    """The files of a slide's heatmap.

    Attributes:
        slide_id: id of the slide.
        patient_id: its patient.
        arm: name of the arm.
        files: names in the folder, pictures first.
        notes: what could not be drawn, and why.
        is_new: whether the files were written now, and were not there whole.
    """

    slide_id: str
    patient_id: str
    arm: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_new: bool = True

    def of_ending(self, ending: str) -> list[str]:
        """Return the names of the files that end so."""
        return [name for name in self.files if name.endswith(ending)]


def write_heatmap(lake: "Lake", heatmap: SlideHeatmap, folder: Path) -> HeatmapRecord:
    """Write the files of a slide, unless they are there whole.

    Args:
        lake: the lake that holds the slide.
        heatmap: attention of the slide's tiles.
        folder: an existing local folder.

    Returns:
        The slide's files: `<slide>-<arm>.png`, `.geojson`, `.csv` and `-tiles.jpg` (the tiles with
        the most attention, the first at the top left); per mpp where the arm saw several.

    Raises:
        LakeError: The slide has no tiles at an mpp any more.
    """
    stem = file_stem(heatmap.slide_id, heatmap.arm)
    record_path = folder / f"{stem}.json"
    whole_record = _whole_record(record_path, heatmap)
    if whole_record is not None:
        return whole_record
    files: dict[str, list[int]] = {}
    notes: list[str] = []
    levels = sorted(heatmap.tiles["mpp"].unique().to_list())
    for mpp in levels:
        part = f"{stem}-mpp{mpp:g}" if len(levels) > 1 else stem
        tiles = with_ranks(heatmap.tiles.filter(pl.col("mpp") == mpp))
        contents = attention_contents(lake, heatmap.slide_id, heatmap.arm, tiles)
        top, damage = top_tiles(lake, tiles)
        notes += [damage] if damage else []
        contents |= {"-tiles.jpg": top} if top else {}
        for ending, content in contents.items():
            replace_file(folder / f"{part}{ending}", content)
            files[f"{part}{ending}"] = [len(content), zlib.crc32(content)]
    record = {**_identity(heatmap), "patient_id": heatmap.patient_id, "files": files}
    replace_file(record_path, json.dumps({**record, "notes": notes}).encode())
    return _as_record(heatmap, files, notes, is_new=True)


def top_tiles(lake: "Lake", tiles: pl.DataFrame) -> tuple[bytes | None, str]:
    """Return a JPEG of the tiles with the most attention, row by row, and why some are not there.

    Args:
        lake: the lake that holds the shards; one of imported features has none.
        tiles: tiles from `with_ranks`, of one slide and mpp.
    """
    chosen = tiles.sort("attention", "tile_id", descending=[True, False]).head(TOP_TILES)
    jpegs, damage = tile_jpegs(lake, chosen)
    pictures = [
        scaled(decode_rgb(jpegs[key]), _SIDE_PX) for key in chosen["tile_id"] if key in jpegs
    ]
    return (encode_jpeg(_mosaic(pictures), sharp=True) if pictures else None), damage


def _mosaic(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return pictures in rows of four on white."""
    rows = -(-len(pictures) // _ACROSS)
    step = _SIDE_PX + _GAP_PX
    across = min(len(pictures), _ACROSS)
    canvas = np.full((rows * step - _GAP_PX, across * step - _GAP_PX, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (number // _ACROSS) * step, (number % _ACROSS) * step
        height, width = picture.shape[:2]
        canvas[top : top + height, left : left + width] = picture
    return canvas


def _identity(heatmap: SlideHeatmap) -> dict[str, Any]:
    """Return what the files of a slide show, as its record keeps it."""
    return {
        "format": FORMAT,
        "slide_id": heatmap.slide_id,
        "arm": heatmap.arm,
        "attention_crc32": heatmap.checksum,
    }


def _whole_record(path: Path, heatmap: SlideHeatmap) -> HeatmapRecord | None:
    """Return the record of a slide whose files are there whole and show this attention, or None."""
    try:
        record = json.loads(path.read_bytes())
        files, notes = dict(record["files"]), list(record["notes"])
        identity = {key: record[key] for key in _identity(heatmap)}
        contents = {name: (path.parent / name).read_bytes() for name in files}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, half there, or of another kind: it is written again
    if identity != _identity(heatmap):
        return None
    sums = {name: [len(content), zlib.crc32(content)] for name, content in contents.items()}
    return _as_record(heatmap, files, notes, is_new=False) if sums == files else None


def _as_record(
    heatmap: SlideHeatmap, files: dict[str, list[int]], notes: list[str], *, is_new: bool
) -> HeatmapRecord:
    """Return the record of a slide's files."""
    return HeatmapRecord(
        slide_id=heatmap.slide_id,
        patient_id=heatmap.patient_id,
        arm=heatmap.arm,
        files=tuple(files),
        notes=tuple(notes),
        is_new=is_new,
    )


@dataclass(kw_only=True)
class HeatmapFolder:
    """A folder of heatmaps, and what has been written to it.

    Attributes:
        lake: the lake that holds the slides.
        folder: local folder, created if it does not exist.
        records: the slides whose files are there.
        failed: slides without files, each with the reason.
    """

    lake: "Lake"
    folder: Path
    records: list[HeatmapRecord] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, heatmap: SlideHeatmap) -> bool:
        """Write the files of a slide, or note why there are none; the other slides go on.

        Returns:
            Whether files were written now.
        """
        from featurestore import LakeError

        try:
            self.records.append(write_heatmap(self.lake, heatmap, self.folder))
        except LakeError as error:
            self.failed.append(f"{heatmap.slide_id}, {heatmap.arm}: {error}")
            return False
        return self.records[-1].is_new

    @property
    def new(self) -> int:
        """Return the number of slides and arms whose files were written now."""
        return sum(record.is_new for record in self.records)
