"""Tiles of an evaluation: a bounded sample, the same each time, with cached features and JPEGs.

JPEGs are kept and not pixels: 2,048 tiles of 256 px are 60 MB and not 400.

Shape letters: N tiles, D embedding, H W pixels.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from distill.evaluate.compared_students import EvaluationSplit
from featurestore import Lake, ShardReader, TileBatch
from ingest import decode_tile

BLOCK_TILES = 4  # neighbouring tiles that are read together
BATCH_TILES = 64

RgbArray = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Array = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class SampledTiles:
    """Some tiles of one mpp.

    Attributes:
        mpp: mpp of the tiles.
        tile_id: keys of the tiles [N].
        patient: a number for each patient [N].
        features: raw features [N, D], by column.
        jpeg: JPEG files of the tiles, as they are stored [N].
        label: class of each tile [N], if the tiles have labels.
        site: site of each tile [N], if the labels name one.
    """

    mpp: float
    tile_id: Int64Array
    patient: Int64Array
    features: Mapping[str, Array]
    jpeg: Sequence[bytes]
    label: Int64Array | None = None
    site: npt.NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.tile_id)

    def first(self, count: int) -> Self:
        """Return the first `count` tiles, which are a sample again, since tiles are in no order."""
        return type(self)(
            mpp=self.mpp,
            tile_id=self.tile_id[:count],
            patient=self.patient[:count],
            features={name: x[:count] for name, x in self.features.items()},
            jpeg=self.jpeg[:count],
            label=None if self.label is None else self.label[:count],
            site=None if self.site is None else self.site[:count],
        )

    def batches(self) -> Iterator[tuple[Int64Array, RgbArray]]:
        """Yield keys and pixels [B, H, W, 3] of 64 tiles at a time."""
        for start in range(0, len(self), BATCH_TILES):
            rows = slice(start, start + BATCH_TILES)
            yield self.tile_id[rows], np.stack([decode_tile(jpeg) for jpeg in self.jpeg[rows]])


def readable_slides(
    lake: Lake, columns: Sequence[str], *, mpp: float, slides: Sequence[str]
) -> list[str]:
    """Return the slides that have tiles with pixels and all columns' features at an mpp."""
    rows = lake.tiles_of(mpp=mpp, slide_ids=slides)
    rows = rows.filter((pl.col("tiles") > 0) & pl.col("shard").is_not_null())
    slide_ids = set(rows["slide_id"])
    for column in columns:
        slide_ids &= set(lake.features_of(column, mpp=mpp, slide_ids=slides)["slide_id"])
    return sorted(slide_ids)


def sample_tiles(
    lake: Lake,
    split: EvaluationSplit,
    slides: Sequence[str],
    *,
    mpp: float,
    most: int,
    seed: int = 0,
) -> SampledTiles | None:
    """Sample tiles of all slides together, in blocks of four; None if no slide has such tiles.

    Features are the columns of the split. If the split has a finer mpp, a teacher's features are
    the mean over the tiles under each tile. A tile without features of a teacher is left out.
    """
    shared_slides = readable_slides(lake, split.columns, mpp=mpp, slides=slides)
    if split.under:
        fine = readable_slides(lake, split.teachers, mpp=split.under, slides=slides)
        shared_slides = sorted(set(shared_slides) & set(fine))
    if not shared_slides:
        return None
    stream = lake.stream(
        split.columns,
        mpp=mpp,
        slide_ids=shared_slides,
        pixels="jpeg",
        under={split.under: split.teachers} if split.under else None,
        batch_tiles=min(most, 256),
        block_tiles=BLOCK_TILES,
        buffer_tiles=min(most, 1024),
        seed=seed,
    )
    numbers = _patient_numbers(stream.slides, split.patient)
    parts: list[SampledTiles] = []
    with contextlib.closing(iter(stream)) as batches:
        for batch in batches:
            parts.append(_complete_tiles(_tiles_of_batch(batch, numbers, split.under)))
            if sum(len(part) for part in parts) >= most:
                break
    sampled = joined_tiles(parts).first(most)
    return sampled if len(sampled) else None


def _tiles_of_batch(
    batch: TileBatch, numbers: Mapping[int, int], under: float | None
) -> SampledTiles:
    means = {}
    if under:
        below = batch.under[under]
        means = {name: _mean_under(x, below.mask) for name, x in below.features.items()}
    return SampledTiles(
        mpp=batch.mpp,
        tile_id=batch.tile_id,
        patient=np.array([numbers[n] for n in batch.slide.tolist()], np.int64),
        features={**means, **batch.features},
        jpeg=batch.jpeg or [],
    )


def _mean_under(x_BrrD: Array, mask_Brr: npt.NDArray[np.bool_]) -> Array:
    """Average features over the tiles under each tile [B, D]; NaN where no tile is under it."""
    kept = np.where(mask_Brr[..., None], x_BrrD.astype(np.float32), 0).sum(axis=(1, 2))
    counts = mask_Brr.sum(axis=(1, 2))[:, None]
    mean_BD: Array = np.where(counts, kept / np.maximum(counts, 1), np.nan).astype(np.float32)
    return mean_BD


def _patient_numbers(slides: pl.DataFrame, patient: Mapping[str, str]) -> dict[int, int]:
    """Return the patient's number by the slide's number; all calls on a lake return the same."""
    order = {name: at for at, name in enumerate(sorted(set(patient.values())))}
    rows = slides.select("slide", "slide_id").iter_rows()
    return {number: order[patient[slide_id]] for number, slide_id in rows}


def _complete_tiles(tiles: SampledTiles) -> SampledTiles:
    """Leave out the tiles without features of a teacher."""
    absent = np.zeros(len(tiles), bool)
    for x_ND in tiles.features.values():
        absent |= ~np.isfinite(x_ND[:, 0])
    return _selected_tiles(tiles, np.flatnonzero(~absent)) if absent.any() else tiles


def _selected_tiles(tiles: SampledTiles, selected_rows: Int64Array) -> SampledTiles:
    return SampledTiles(
        mpp=tiles.mpp,
        tile_id=tiles.tile_id[selected_rows],
        patient=tiles.patient[selected_rows],
        features={name: x[selected_rows] for name, x in tiles.features.items()},
        jpeg=[tiles.jpeg[at] for at in selected_rows.tolist()],
        label=None if tiles.label is None else tiles.label[selected_rows],
        site=None if tiles.site is None else tiles.site[selected_rows],
    )


def joined_tiles(parts: Sequence[SampledTiles]) -> SampledTiles:
    """Join parts of the tiles of one mpp, one after the other."""
    labels = [part.label for part in parts if part.label is not None]
    sites = [part.site for part in parts if part.site is not None]
    return SampledTiles(
        mpp=parts[0].mpp,
        tile_id=np.concatenate([part.tile_id for part in parts]),
        patient=np.concatenate([part.patient for part in parts]),
        features={
            name: np.concatenate([part.features[name] for part in parts])
            for name in parts[0].features
        },
        jpeg=[jpeg for part in parts for jpeg in part.jpeg],
        label=np.concatenate(labels) if labels else None,
        site=np.concatenate(sites) if sites else None,
    )


# ---------------------------------------------------------------------- with labels


def sample_labelled_tiles(
    lake: Lake,
    split: EvaluationSplit,
    slides: Sequence[str],
    labels: pl.DataFrame,
    *,
    mpp: float,
    most: int,
    seed: int = 0,
) -> SampledTiles | None:
    """Sample labelled tiles of some slides; None if the slides have none.

    Args:
        lake: the lake that holds the slides.
        split: the split; its columns at this mpp are read with the tiles.
        slides: ids of the slides.
        labels: `slide_id`, `x`, `y` (level-0 pixels of a tile's top-left corner), `label`,
            a number, and `site` where sites are known.
        mpp: mpp of the tiles.
        most: largest number of tiles; if there are more, that many are drawn.
        seed: seed of the draw.
    """
    columns = [name for name in split.columns if name in lake.teachers(mpp=mpp)]
    shared_slides = readable_slides(lake, columns, mpp=mpp, slides=slides)
    rows = labels.filter(pl.col("slide_id").is_in(shared_slides)).sort("slide_id", "y", "x")
    if rows.height > most:
        drawn = np.random.default_rng((seed, rows.height)).permutation(rows.height)[:most]
        rows = rows[np.sort(drawn)]
    order = {name: number for number, name in enumerate(sorted(set(split.patient.values())))}
    parts = []
    for (slide_id,), slide_labels in rows.group_by("slide_id", maintain_order=True):
        number = order[split.patient[str(slide_id)]]
        if (
            part := _tiles_of_slide(lake, columns, str(slide_id), slide_labels, mpp, number)
        ) is not None:
            parts.append(part)
    return joined_tiles(parts) if parts else None


def _tiles_of_slide(
    lake: Lake,
    columns: Sequence[str],
    slide_id: str,
    labels: pl.DataFrame,
    mpp: float,
    patient: int,
) -> SampledTiles | None:
    """Return the labelled tiles of a slide; labels that match no tile are left out."""
    tiles = lake.tiles(mpp=mpp).filter(pl.col("slide_id") == slide_id)
    labelled_rows = (
        tiles.select("tile_id", "x", "y")
        .cast({"x": pl.Int64, "y": pl.Int64})
        .collect()
        .join(
            labels.select(pl.col("x", "y", "label"), cs.by_name("site", require_all=False)),
            on=["x", "y"],
        )
        .sort("tile_id")
    )
    if labelled_rows.is_empty():
        return None
    shard_row = lake.tiles_of(mpp=mpp, slide_ids=[slide_id]).row(0, named=True)
    keys, features = labelled_rows["tile_id"].to_numpy(), {}
    if columns:
        bag = lake.bag(slide_id, columns, mpp=mpp)
        is_known = np.isin(keys, bag.tile_id)
        keys, labelled_rows = keys[is_known], labelled_rows.filter(is_known)
        at = np.searchsorted(bag.tile_id, keys)
        features = {name: x[at] for name, x in bag.by_teacher.items()}
    return SampledTiles(
        mpp=mpp,
        tile_id=keys,
        patient=np.full(len(keys), patient, np.int64),
        features=features,
        jpeg=_stored_jpegs(lake, shard_row, keys),
        label=labelled_rows["label"].to_numpy().astype(np.int64),
        site=np.array(labelled_rows["site"].to_list(), np.str_)
        if "site" in labelled_rows.columns
        else None,
    )


def _stored_jpegs(
    lake: Lake, shard_row: Mapping[str, Any], keys: npt.NDArray[np.int64]
) -> list[bytes]:
    with ShardReader.of(lake.store, shard_row) as shard:
        return [bytes(jpeg) for jpeg in shard.jpegs(keys)]
