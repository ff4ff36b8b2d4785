"""One slide from file to shards: open, find tissue, plan grids, cut, encode. No Ray in here."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg

from cluster import Extension, load_extensions
from featurestore import (
    BucketError,
    GridCut,
    LakeConfig,
    ShardWriter,
    SlideCut,
    Store,
    tile_ids,
    tiles_table,
)
from featurestore.storage import DiskFullError, disk_full_error, missing_keys_error
from featurestore.tables import shard_path
from ingest.errors import SlideError
from ingest.grid import Grid, plan_grids
from ingest.readers.open_slide import open_slide
from ingest.readers.slide_reader import SlideReader, read_options
from ingest.remote.local_copy import local_slide
from ingest.scores.focus import FOCUS_MPP
from ingest.select.cut_settings import CutSettings
from ingest.survey import Survey, mask_picture, survey
from ingest.tile_jpeg import encode_tile
from ingest.tissue.overview_tissue import OVERVIEW_MPP
from ingest.tissue.tissue_methods import STANDARD

STORED, ENCODED = "stored", "encoded"
THUMBNAIL_PX = 512
THUMBNAIL_MPP = 8.0

Row = dict[str, Any]
RgbArray = npt.NDArray[np.uint8]


def cut_slide(store: Store, config: LakeConfig, row: Row) -> SlideCut:
    """Cut a registered slide into shards, one per mpp, and return what was cut.

    The same file and settings give the same bytes under the same names, so a slide that was cut
    but not committed before a kill is simply cut again.

    Args:
        store: the lake's files.
        config: the lake's settings.
        row: the slide's row, with slide, slide_id, uri, fingerprint and perhaps mpp; `url` is
            where it is fetched from, if that holds more than `uri` may show.

    Raises:
        SlideError: the slide can't be read, has no mpp, or no tissue was found.
    """
    start = time.perf_counter()
    mpp, read_at = row.get("mpp"), (*config.mpps, FOCUS_MPP, OVERVIEW_MPP)
    with (
        local_slide(row.get("url") or row["uri"], mpps=read_at, mpp=mpp) as local,
        open_slide(local.path, read_options(row), image=local.image) as slide,
    ):
        slide_survey = survey(slide, **tissue_options(row))
        if slide_survey.tissue.verdict == "no tissue":
            msg = f"no tissue found on {row['uri']} ({slide_survey.tissue.why})"
            raise SlideError(msg, _describe(slide, slide_survey))
        cuts = _cut_grids(store, config, row, slide, slide_survey)
        described = {
            **row,
            **_describe(slide, slide_survey),
            "bytes_read": local.bytes_read or None,
        }
    return SlideCut(row={**described, "seconds": time.perf_counter() - start}, grids=cuts)


def tissue_options(row: Row) -> Row:
    """Return the arguments of `survey` that decide how tissue is found, from a slide's row."""
    return {
        "pen_veto": row.get("pen_veto"),
        "mask": row.get("mask"),
        "tissue_by": row.get("tissue_by") or STANDARD,
    }


def _cut_grids(
    store: Store, config: LakeConfig, row: Row, slide: SlideReader, slide_survey: Survey
) -> dict[float, GridCut]:
    grids = lake_grids(slide, config)
    kept = slide_survey.kept(grids, config.tissue_min)
    return {
        grid.mpp: _cut_grid(store, config, row, slide, grid, keep, scores)
        for grid, keep, scores in zip(grids, kept, slide_survey.scores(grids), strict=True)
    }


def lake_grids(slide: SlideReader, config: LakeConfig) -> list[Grid]:
    """Return the grids of a slide for the mpps of a lake, finest first."""
    ratios = {mpp: config.ratio(mpp) for mpp in config.mpps}
    planned = plan_grids(
        slide.size_px, slide.mpp, config.tile_px, ratios, stride_px=config.stride_px
    )
    return list(planned.values())


def _cut_grid(
    store: Store,
    config: LakeConfig,
    row: Row,
    slide: SlideReader,
    grid: Grid,
    keep: npt.NDArray[np.bool_],
    scores: dict[str, npt.NDArray[np.float32]],
) -> GridCut:
    at = np.argwhere(keep)
    ids = tile_ids(row["slide"], grid.mpp, at[:, 0], at[:, 1])
    path = shard_path(grid.mpp, row["slide"], _mark(config, row))
    codecs = []
    with ShardWriter(store, path) as shard:
        made = jpegs(slide, grid, config, at)
        for key, (y, x), (jpeg, codec) in zip(ids.tolist(), at.tolist(), made, strict=True):
            codecs.append(codec)
            sample = {
                "slide_id": row["slide_id"],
                "mpp": grid.effective_mpp,
                "x": x * grid.step_px,
                "y": y * grid.step_px,
                "tile_px_level0": grid.side_px,
                "tissue": round(float(scores["tissue"][y, x]), 4),
                "codec": codec,
            }
            shard.add(key, jpeg, sample)
    if shard.shard is None:
        msg = f"shard {path} was not finished"
        raise SlideError(msg)
    kept = {name: values[keep] for name, values in scores.items()}
    return GridCut(
        tiles=_tile_rows(config, row, grid, ids, at, kept, codecs),
        shard=shard.shard,
        effective_mpp=grid.effective_mpp,
        tile_px_level0=grid.side_px,
        grid_px_level0=grid.step_px,
        grid_width=grid.width,
        grid_height=grid.height,
    )


def jpegs(
    slide: SlideReader, grid: Grid, config: LakeConfig, at: npt.NDArray[np.int64]
) -> Iterator[tuple[bytes, str]]:
    """Yield the JPEGs of tiles as the lake stores them, with `stored` or `encoded`.

    Raises:
        SlideError: the tiles are to be the slide's own JPEGs, and the slide has no such JPEGs.
    """
    level = slide.stored_level(grid) if grid.mpp in config.passthrough else None
    if level is None and grid.mpp in config.passthrough and not config.mix_codecs:
        msg = (
            f"it stores no JPEG tiles of {grid.tile_px} px at {grid.mpp} mpp to be copied, as the "
            f"lake's are ({_why_not_stored(slide)}); a lake made with "
            "--mix-codecs encodes such slides"
        )
        raise SlideError(msg)
    for y, x in at.tolist():
        jpeg = slide.stored_jpeg(level, y, x) if level is not None else None
        if jpeg is not None:
            yield jpeg, STORED
        else:
            yield encode_tile(slide.tile(grid, y, x), config), ENCODED


def _why_not_stored(slide: SlideReader) -> str:
    """Return why no level's own tiles can be copied."""
    if slide.converts_colours:
        return "its colours are converted (--icc)"
    return "; ".join([slide.fallback or "its tiles or levels are others", *slide.notes])


def _tile_rows(
    config: LakeConfig,
    row: Row,
    grid: Grid,
    ids: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    scores: dict[str, npt.NDArray[np.float32]],
    codecs: list[str],
) -> pa.Table:
    columns = {
        "tile_id": ids,
        "slide": np.full(len(ids), row["slide"]),
        "slide_id": [row["slide_id"]] * len(ids),
        "grid_y": at[:, 0],
        "grid_x": at[:, 1],
        "y": at[:, 0] * grid.step_px,
        "x": at[:, 1] * grid.step_px,
        **{name: pa.array(values, from_pandas=True) for name, values in scores.items()},
        "codec": codecs,
    }
    return tiles_table(grid.mpp, config.tile_px, columns)


def _mark(config: LakeConfig, row: Row) -> str:
    """Return a hash of all that decides a shard's bytes, as the last part of the shard's name."""
    settings = CutSettings.from_json(row.get("cut_with") or "{}")
    marks = [settings.leaves_pen_out, settings.mask_mark] if "pen_veto" in row else []
    if settings.tissue != STANDARD:
        marks.append(settings.tissue)
    marks += ["icc"] if settings.icc else []
    text = json.dumps([row["fingerprint"], row.get("mpp"), asdict(config), *marks])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _describe(slide: SlideReader, slide_survey: Survey) -> Row:
    width, height = slide.size_px
    pixels, _ = slide.overview(max(THUMBNAIL_MPP, slide.mpp * max(slide.size_px) / THUMBNAIL_PX))
    return {
        "width_px": width,
        "height_px": height,
        "mpp": slide.mpp,
        "mpp_source": slide.mpp_source,
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "objective": slide.objective,
        "vendor": slide.vendor,
        "levels": slide.levels,
        "reader": slide.name,
        "fallback": slide.fallback,
        "notes": "; ".join(slide.notes) or None,
        "icc_profile": slide.icc_profile,
        "tissue": slide_survey.tissue.share,
        "pen": slide_survey.tissue.pen_share,
        "verdict": slide_survey.tissue.verdict,
        "why": slide_survey.tissue.why,
        "thumbnail": simplejpeg.encode_jpeg(pixels, quality=80, colorspace="RGB"),
        "tissue_mask": png_bytes(mask_picture(slide_survey, pixels.shape[:2])),
    }


def png_bytes(gray: npt.NDArray[np.uint8]) -> bytes:
    """Return a grey picture [H, W] as PNG."""
    _, png = cv2.imencode(".png", gray)
    return bytes(png)


def cut_or_reason(
    store: Store, config: LakeConfig, row: Row, extensions: Sequence[Extension] = ()
) -> SlideCut | Row:
    """Return the cut slide, or its row with the reason why it could not be cut.

    `disk_full` and `no_keys` of the row say whether the reason is this machine's: the slide has not
    failed then.
    """
    try:
        load_extensions(extensions)
        return cut_slide(store, config, row)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one slide is its reason
        fault = disk_full_error(error, store.uri) or missing_keys_error(error)
        return {
            **failure(row, fault or error),
            "disk_full": isinstance(fault, DiskFullError),
            "no_keys": isinstance(fault, BucketError),
        }


def failure(row: Row, error: BaseException) -> Row:
    """Return a slide's row with the reason why it could not be cut, as one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    expected: Sequence[type[BaseException]] = (SlideError, DiskFullError, BucketError)
    if not isinstance(error, tuple(expected)):
        reason = f"{type(error).__name__}: {reason}"
    return {**row, **getattr(error, "facts", {}), "reason": reason}
