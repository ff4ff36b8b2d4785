"""One slide from file to shards: open, find tissue, plan grids, cut, encode. No Ray in here."""

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg

from featurestore import GridCut, LakeConfig, ShardWriter, SlideCut, Store, tile_ids, tiles_table
from featurestore.schema import shard_path
from ingest.errors import SlideError
from ingest.grid import Grid, keep_tiles, plan_grids, tissue_share
from ingest.tiff_reader import TiffReader
from ingest.tissue import OVERVIEW_MPP, Tissue, find_tissue

THUMBNAIL_PX = 512
THUMBNAIL_MPP = 8.0

Row = dict[str, Any]
RgbArray = npt.NDArray[np.uint8]


def cut_slide(store: Store, config: LakeConfig, row: Row) -> SlideCut:
    """Cut a registered slide into shards, one per mpp, and say what was cut.

    The same file and settings give the same bytes under the same names, so a slide that was cut
    but not committed before a kill is simply cut again.

    Args:
        store: the lake's files.
        config: the lake's settings.
        row: the slide's row, with slide, slide_id, uri, fingerprint and perhaps mpp.

    Raises:
        SlideError: the slide can't be read, has no mpp, or no tissue was found.
    """
    start = time.perf_counter()
    with local_copy(row["uri"]) as path, TiffReader(path, mpp=row.get("mpp")) as slide:
        overview, scale = slide.overview(OVERVIEW_MPP)
        tissue = find_tissue(overview, slide.mpp * scale)
        if tissue.verdict == "no tissue":
            msg = f"no tissue found on {row['uri']} ({tissue.share:.2%} of the slide)"
            raise SlideError(msg)
        ratios = {mpp: config.ratio(mpp) for mpp in config.mpps}
        grids = plan_grids(slide.size_px, slide.mpp, config.tile_px, ratios)
        shares = [tissue_share(tissue.mask, scale, grid) for grid in grids.values()]
        kept = keep_tiles(shares, list(grids.values()), config.tissue_min)
        cuts = {
            grid.mpp: _cut_grid(store, config, row, slide, grid, share, keep)
            for grid, share, keep in zip(grids.values(), shares, kept, strict=True)
        }
        described = {**row, **_describe(slide, tissue)}
    return SlideCut(row={**described, "seconds": time.perf_counter() - start}, grids=cuts)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local path of a slide; one in a bucket is copied to scratch and dropped after use."""
    fs, path = fsspec.core.url_to_fs(uri)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        local = Path(folder) / path.rsplit("/", 1)[-1]
        try:
            fs.get_file(path, str(local))
        except OSError as error:
            msg = f"{uri} can't be fetched: {error}"
            raise SlideError(msg) from error
        yield str(local)


def _cut_grid(
    store: Store,
    config: LakeConfig,
    row: Row,
    slide: TiffReader,
    grid: Grid,
    share: npt.NDArray[np.float32],
    keep: npt.NDArray[np.bool_],
) -> GridCut:
    at = np.argwhere(keep)
    ids = tile_ids(row["slide"], grid.mpp, at[:, 0], at[:, 1])
    path = shard_path(grid.mpp, row["slide"], _mark(config, row))
    with ShardWriter(store, path) as shard:
        for key, (y, x) in zip(ids.tolist(), at.tolist(), strict=True):
            about = {
                "slide_id": row["slide_id"],
                "mpp": grid.effective_mpp,
                "x": x * grid.side_px,
                "y": y * grid.side_px,
                "tile_px_level0": grid.side_px,
                "tissue": round(float(share[y, x]), 4),
            }
            shard.add(key, encode_jpeg(slide.tile(grid, y, x), config), about)
    if shard.shard is None:
        msg = f"shard {path} was not finished"
        raise SlideError(msg)
    return GridCut(
        tiles=_tile_rows(config, row, grid, ids, at, share[keep]),
        shard=shard.shard,
        effective_mpp=grid.effective_mpp,
        tile_px_level0=grid.side_px,
        grid_px_level0=grid.side_px,
        grid_width=grid.width,
        grid_height=grid.height,
    )


def encode_jpeg(rgb: RgbArray, config: LakeConfig) -> bytes:
    """A tile as it is stored."""
    jpeg: bytes = simplejpeg.encode_jpeg(
        rgb,
        quality=config.jpeg_quality,
        colorspace="RGB",
        colorsubsampling=config.jpeg_subsampling,
        fastdct=False,
    )
    return jpeg


def _tile_rows(
    config: LakeConfig,
    row: Row,
    grid: Grid,
    ids: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    share: npt.NDArray[np.float32],
) -> pa.Table:
    columns = {
        "tile_id": ids,
        "slide": np.full(len(ids), row["slide"]),
        "slide_id": [row["slide_id"]] * len(ids),
        "grid_y": at[:, 0],
        "grid_x": at[:, 1],
        "y": at[:, 0] * grid.side_px,
        "x": at[:, 1] * grid.side_px,
        "tissue": share,
        "codec": ["encoded"] * len(ids),
    }
    return tiles_table(grid.mpp, config.tile_px, columns)


def _mark(config: LakeConfig, row: Row) -> str:
    text = json.dumps([row["fingerprint"], row.get("mpp"), asdict(config)])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _describe(slide: TiffReader, tissue: Tissue) -> Row:
    width, height = slide.size_px
    pixels, _ = slide.overview(max(THUMBNAIL_MPP, slide.mpp * max(slide.size_px) / THUMBNAIL_PX))
    mask = cv2.resize(
        tissue.mask.astype(np.uint8) * 255, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    return {
        "width_px": width,
        "height_px": height,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "objective": slide.objective,
        "vendor": slide.vendor,
        "levels": slide.levels,
        "reader": slide.name,
        "fallback": slide.fallback,
        "tissue": tissue.share,
        "verdict": tissue.verdict,
        "thumbnail": simplejpeg.encode_jpeg(pixels, quality=80, colorspace="RGB"),
        "tissue_mask": png_bytes(mask),
    }


def png_bytes(gray: npt.NDArray[np.uint8]) -> bytes:
    """A grey picture [H, W] as PNG."""
    _, data = cv2.imencode(".png", gray)
    return bytes(data)


def failure(row: Row, error: BaseException) -> Row:
    """A slide's row with the reason why it could not be cut, as one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    known: Sequence[type[BaseException]] = (SlideError,)
    if not isinstance(error, tuple(known)):
        reason = f"{type(error).__name__}: {reason}"
    return {**row, "reason": reason}
