"""The mean of a column's features over the tiles of each slide.

Slides are read in parts in a few threads, each part is added up in float64 where it was read, and
its checksum is taken on the way: one pass over the bytes, and memory for a part a thread.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.errors import DamageError, LakeError
from featurestore.read.first_reads import place_of
from featurestore.read.lake_view import LakeView
from featurestore.read.select_slides import select
from featurestore.read.selection import Selection
from featurestore.storage.read_errors import reading
from featurestore.tables.checksums import features_crc32
from featurestore.tables.lance_flat import Float16Array

PART_BYTES = 16 << 20
THREADS = 4

MeanType = Literal["float32", "float64"]
Float64Array = npt.NDArray[np.float64]


def slide_means(
    lake: LakeView,
    column: str,
    *,
    mpp: float,
    slide_ids: Sequence[str] | None,
    dtype: MeanType,
) -> pl.DataFrame:
    """Return a row per slide with the mean of its tiles' features.

    Args:
        lake: read at its own version.
        column: name of the teacher's column.
        mpp: microns per pixel of the tiles.
        slide_ids: names of the slides; None for all slides with tiles.
        dtype: type of the means; they are added up in float64.

    Raises:
        LakeError: a slide is unknown or lacks features, or another dtype.
        DamageError: features differ from the committed features.
    """
    if dtype not in get_args(MeanType):
        msg = f"dtype '{dtype}' given; means come as {' or '.join(get_args(MeanType))}"
        raise LakeError(msg)
    selection = select(lake, [column], mpp=mpp, slide_ids=slide_ids)
    dim = lake.teachers(mpp=selection.mpp)[column]
    counts = np.zeros(len(selection), np.int64)
    means_SD = np.full((len(selection), dim), np.nan, dtype)
    for slide, count, sum_D in _sums(lake, column, selection, dim):
        counts[slide] = count
        if count:
            means_SD[slide] = sum_D / count
    vectors = pl.Series(column, means_SD, dtype=pl.Array(getattr(pl, dtype.capitalize()), dim))
    rows = pl.DataFrame({"slide_id": selection.slide_ids, "tiles": counts})
    return rows.with_columns(vectors).with_columns(
        pl.when(pl.col("tiles") > 0).then(pl.col(column)).alias(column)
    )


def _sums(
    lake: LakeView, column: str, selection: Selection, dim: int
) -> Iterator[tuple[int, int, Float64Array]]:
    """Yield each slide with the number of its tiles that have features, and their sum [D]."""

    def work(slide: int) -> tuple[int, int, Float64Array]:
        return slide, *_slide_sum(lake, column, selection, slide, dim)

    waiting: deque[Future[tuple[int, int, Float64Array]]] = deque()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="slidelake-means")
    try:
        for slide in range(len(selection)):
            waiting.append(pool.submit(work, slide))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _slide_sum(
    lake: LakeView, column: str, selection: Selection, slide: int, dim: int
) -> tuple[int, Float64Array]:
    """Return the number of a slide's tiles with features, and the sum of these [D].

    Raises:
        DamageError: features differ from the committed features; slide and column are named.
    """
    reader = lake.row_reader(mpp=selection.mpp)
    lake.first_reads.compare(reader, selection, [slide], [])
    fragment, start, rows = selection.place(slide)
    is_new = not lake.first_reads.is_compared(selection, slide, column)
    step = max(1, PART_BYTES // (2 * dim))
    crc, count, sum_D = 0, 0, np.zeros(dim, np.float64)
    with reading(reader.store, f"{place_of(selection, slide)}: '{column}' can't be read"):
        for at in range(0, rows, step):
            stored = reader.stored(fragment, start + at, min(step, rows - at), column)
            crc = features_crc32(stored, crc) if is_new else crc
            part_ND = reader.decoded(column, stored)
            chosen_ND = _chosen(part_ND)
            count += len(chosen_ND)
            sum_D += np.add.reduce(chosen_ND, axis=0, dtype=np.float64)
    if is_new:
        lake.first_reads.compare_crc32(selection, slide, column, crc)
    if not np.isfinite(sum_D).all():
        msg = f"{place_of(selection, slide)}: '{column}' holds values that are not finite"
        raise DamageError(msg)
    return count, sum_D


def _chosen(features_ND: Float16Array) -> Float16Array:
    """Return the features without the tiles that the teacher left out, which are NaN."""
    absent = np.isnan(features_ND[:, 0])
    return features_ND[~absent] if absent.any() else features_ND
