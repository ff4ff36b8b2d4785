"""Tiles to evaluate on: a bounded sample, the same each time, with cached features and their JPEGs.

JPEGs are kept and not pixels: 2,048 tiles of 256 px are 60 MB and not 400.

Letters in names: N tiles, D embedding, H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore import Lake, ShardReader
from ingest.encoder import decode

BLOCK_TILES = 4  # neighbours that are read together
BATCH_TILES = 64

RgbArray = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float16Array = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Some tiles of one mpp.

    Attributes:
        mpp: of the tiles.
        tile_id: keys [N].
        patient: a number for each patient [N].
        features: raw float16 [N, D] per teacher.
        jpeg: as they are stored [N].
        label: class of each [N], if they have any.
    """

    mpp: float
    tile_id: Int64Array
    patient: Int64Array
    features: Mapping[str, Float16Array]
    jpeg: Sequence[bytes]
    label: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.tile_id)

    def first(self, count: int) -> Self:
        """The first of them: again a sample, as they are in no order."""
        return type(self)(
            mpp=self.mpp,
            tile_id=self.tile_id[:count],
            patient=self.patient[:count],
            features={name: x[:count] for name, x in self.features.items()},
            jpeg=self.jpeg[:count],
            label=None if self.label is None else self.label[:count],
        )

    def batches(self) -> Iterator[tuple[Int64Array, RgbArray]]:
        """Keys and pixels [B, H, W, 3] of 64 tiles at a time."""
        for start in range(0, len(self), BATCH_TILES):
            rows = slice(start, start + BATCH_TILES)
            yield self.tile_id[rows], np.stack([decode(jpeg) for jpeg in self.jpeg[rows]])


def readable(
    lake: Lake, teachers: Sequence[str], *, mpp: float, slides: Sequence[str]
) -> list[str]:
    """Those slides that have pixels, tiles and all teachers' features at an mpp."""
    rows = lake.tiles_of(mpp=mpp, slide_ids=slides)
    rows = rows.filter((pl.col("tiles") > 0) & pl.col("shard").is_not_null())
    there = set(rows["slide_id"])
    for teacher in teachers:
        there &= set(lake.features_of(teacher, mpp=mpp, slide_ids=slides)["slide_id"])
    return sorted(there)


def sample(
    lake: Lake,
    teachers: Sequence[str],
    *,
    mpp: float,
    slides: Sequence[str],
    patient: Mapping[str, str],
    most: int,
    seed: int = 0,
) -> Tiles | None:
    """Up to so many tiles of all slides together, drawn in blocks of four; None if there are none.

    A tile that a teacher was not run on is left out.
    """
    wanted = readable(lake, teachers, mpp=mpp, slides=slides)
    if not wanted:
        return None
    stream = lake.stream(
        teachers,
        mpp=mpp,
        slide_ids=wanted,
        pixels="jpeg",
        batch_tiles=min(most, 256),
        block_tiles=BLOCK_TILES,
        buffer_tiles=min(most, 1024),
        seed=seed,
    )
    numbers = _patients(stream.slides, patient)
    parts: list[Tiles] = []
    batches = iter(stream)
    while sum(len(part) for part in parts) < most:
        batch = next(batches, None)
        if batch is None:
            break
        part = Tiles(
            mpp=mpp,
            tile_id=batch.tile_id,
            patient=np.array([numbers[n] for n in batch.slide.tolist()], np.int64),
            features=batch.features,
            jpeg=batch.jpeg or [],
        )
        parts.append(_known(part))
    batches.close()
    found = joined(parts).first(most)
    return found if len(found) else None


def _patients(slides: pl.DataFrame, patient: Mapping[str, str]) -> dict[int, int]:
    """Number of a slide's patient by the slide's number; equal for all calls on a lake."""
    order = {who: at for at, who in enumerate(sorted(set(patient.values())))}
    rows = slides.select("slide", "slide_id").iter_rows()
    return {number: order[patient[slide_id]] for number, slide_id in rows}


def _known(tiles: Tiles) -> Tiles:
    """Without the tiles that a teacher was not run on."""
    absent = np.zeros(len(tiles), bool)
    for x_ND in tiles.features.values():
        absent |= ~np.isfinite(x_ND[:, 0])
    return _taken(tiles, np.flatnonzero(~absent)) if absent.any() else tiles


def _taken(tiles: Tiles, which: Int64Array) -> Tiles:
    return Tiles(
        mpp=tiles.mpp,
        tile_id=tiles.tile_id[which],
        patient=tiles.patient[which],
        features={name: x[which] for name, x in tiles.features.items()},
        jpeg=[tiles.jpeg[at] for at in which.tolist()],
        label=None if tiles.label is None else tiles.label[which],
    )


def joined(parts: Sequence[Tiles]) -> Tiles:
    """All tiles of some parts of one mpp, one after the other."""
    labels = [part.label for part in parts if part.label is not None]
    return Tiles(
        mpp=parts[0].mpp,
        tile_id=np.concatenate([part.tile_id for part in parts]),
        patient=np.concatenate([part.patient for part in parts]),
        features={
            name: np.concatenate([part.features[name] for part in parts])
            for name in parts[0].features
        },
        jpeg=[jpeg for part in parts for jpeg in part.jpeg],
        label=np.concatenate(labels) if labels else None,
    )


# ---------------------------------------------------------------------- with labels


def labelled(
    lake: Lake,
    teachers: Sequence[str],
    labels: pl.DataFrame,
    *,
    mpp: float,
    slides: Sequence[str],
    patient: Mapping[str, str],
    most: int,
    seed: int = 0,
) -> Tiles | None:
    """Up to so many labelled tiles of some slides; None if there are none.

    Args:
        lake: where they are.
        teachers: whose features they need.
        labels: `slide_id`, `x`, `y` (level-0 pixels of a tile's top-left corner) and `label`, a
            number.
        mpp: of the tiles.
        slides: whose.
        patient: of each slide.
        most: tiles that are drawn if there are more.
        seed: of the draw.
    """
    wanted = readable(lake, teachers, mpp=mpp, slides=slides)
    rows = labels.filter(pl.col("slide_id").is_in(wanted)).sort("slide_id", "y", "x")
    if rows.height > most:
        drawn = np.random.default_rng((seed, rows.height)).permutation(rows.height)[:most]
        rows = rows[np.sort(drawn)]
    parts = [
        part
        for (slide_id,), some in rows.group_by("slide_id", maintain_order=True)
        if (part := _of_slide(lake, teachers, str(slide_id), some, mpp, patient)) is not None
    ]
    return joined(parts) if parts else None


def _of_slide(
    lake: Lake,
    teachers: Sequence[str],
    slide_id: str,
    labels: pl.DataFrame,
    mpp: float,
    patient: Mapping[str, str],
) -> Tiles | None:
    """The labelled tiles of a slide; rows of labels that are of no tile are left out."""
    bag = lake.bag(slide_id, teachers, mpp=mpp)
    place = pl.DataFrame({"x": bag.x, "y": bag.y, "at": np.arange(len(bag.x))})
    met = labels.select("x", "y", "label").cast({"x": pl.Int64, "y": pl.Int64})
    met = met.join(place.cast({"x": pl.Int64, "y": pl.Int64}), on=["x", "y"]).sort("at")
    if met.is_empty():
        return None
    at = met["at"].to_numpy()
    (shard,) = lake.tiles_of(mpp=mpp, slide_ids=[slide_id])["shard"].to_list()
    keys = bag.tile_id[at]
    order = {who: number for number, who in enumerate(sorted(set(patient.values())))}
    return Tiles(
        mpp=mpp,
        tile_id=keys,
        patient=np.full(len(at), order[patient[slide_id]], np.int64),
        features={name: x[at] for name, x in bag.by_teacher.items()},
        jpeg=[bytes(jpeg) for jpeg in ShardReader(lake.store, shard).jpegs(keys)],
        label=met["label"].to_numpy().astype(np.int64),
    )
