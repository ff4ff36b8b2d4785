"""The tiles of a lake as a pipeline of the `webdataset` package, with cached features by key.

The split over ranks and workers and the shuffles are stages of webdataset; one stage of ours reads
a shard's tiles by its index, with their features from the table. That is faster than a walk through
the tar (`benchmarks/reading.py`), and compares each tile with its key and its checksums.
"""

import itertools
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import webdataset as wds
from torch.utils.data import IterableDataset
from webdataset.utils import pytorch_worker_info

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.messages import counted, listing
from featurestore.read.lake_view import LakeView
from featurestore.read.select_slides import select
from featurestore.read.selection import Selection
from featurestore.read.stream_tiles import TileSource
from featurestore.read.unforked import Unforked
from featurestore.shards.shard_index import member_name
from featurestore.tables.lance_rows import Rows

PART_ROWS = 1024  # tiles that are read at once, in their order
BLOCK_ROWS = 64  # with shuffling
OPEN_SLIDES = 8  # shards that are read in turns, with shuffling
JPEG = "jpg"  # the key of a tile's picture, as in the shard

TilePixels = Literal["none", "jpeg", "uint8"]
Sample = dict[str, Any]
Int64Array = npt.NDArray[np.int64]


class ShardPlan:
    """The slides and tiles of a lake that a pipeline reads, and what is left out.

    Args:
        lake: read at its own version.
        teachers: teachers of the tiles' features; slides without one of them are left out.
        mpp: microns per pixel of the tiles.
        slide_ids: names of the slides; None for all.
        where: predicate on the columns of `lake.tiles`; None for all tiles.
        pixels: "none", "jpeg" (as stored) or "uint8" (decoded).

    Attributes:
        selection: the slides to read.
        chosen: keys of the tiles for which `where` holds, rising; None without it.
        left_out: numbers of tiles that are left out, by reason.
        tiles: number of tiles to read, with those that a teacher was not run on.

    Raises:
        LakeError: a slide is unknown, no tile is left, or a setting is not allowed.
    """

    def __init__(
        self,
        lake: LakeView,
        teachers: Sequence[str],
        *,
        mpp: float,
        slide_ids: Sequence[str] | None,
        where: pl.Expr | None,
        pixels: TilePixels,
    ) -> None:
        if pixels not in get_args(TilePixels) or JPEG in teachers:
            allowed = ", ".join(get_args(TilePixels))
            msg = f"pixels='{pixels}', teachers {teachers} given; allowed: {allowed}; none '{JPEG}'"
            raise LakeError(msg)
        self.lake, self.teachers, self.pixels = lake, list(teachers), pixels
        self.left_out: Counter[str] = Counter()
        self.selection = self._select(select(lake, [], mpp=mpp, slide_ids=slide_ids))
        self.chosen = None if where is None else self._chosen(where)
        self.tiles = self.selection.tiles - self.left_out["where"]
        if not self.tiles:
            reasons = ", ".join(
                f"{why}: {counted(tiles, 'tile')}" for why, tiles in self.left_out.items()
            )
            msg = (
                f"{lake.uri} has no such tiles at mpp {mpp_name(mpp)} ({reasons or 'none at all'})"
            )
            raise LakeError(msg)

    def _select(self, slides: Selection) -> Selection:
        """Return the slides that have all features, and pixels if these are read."""
        rows, mpp = slides.slides, slides.mpp
        if self.pixels != "none":
            rows = self._keep(rows, rows.filter(pl.col("shard").is_not_null()), "no pixels")
        for teacher in self.teachers:
            names = rows["slide_id"].to_list()
            complete = self.lake.features_of(teacher, mpp=mpp, slide_ids=names)
            with_features = rows.join(complete, on="slide", how="semi", maintain_order="left")
            rows = self._keep(rows, with_features, f"no features of '{teacher}'")
        return select(self.lake, self.teachers, mpp=mpp, slide_ids=rows["slide_id"].to_list())

    def _keep(self, rows: pl.DataFrame, kept: pl.DataFrame, why: str) -> pl.DataFrame:
        """Return the kept rows; count and name the others in a warning."""
        others = rows.join(kept, on="slide", how="anti")
        if not others.is_empty():
            tiles = int(others["tiles"].cast(pl.Int64).sum())
            self.left_out[why] += tiles
            names = listing(others["slide_id"].to_list())
            warnings.warn(
                f"{others.height} of {rows.height} slides ({tiles:,} tiles) have {why} at mpp "
                f"{mpp_name(rows['mpp'][0])} and are left out: {names}",
                stacklevel=5,
            )
        return kept

    def _chosen(self, where: pl.Expr) -> Int64Array:
        """Return the keys of the slides' tiles for which a predicate holds; count the others."""
        numbers = self.selection.slides["slide"].implode()
        frame = self.lake.tiles(mpp=self.selection.mpp)
        try:
            rows = frame.filter(where).select("tile_id", "slide").collect()
        except pl.exceptions.PolarsError as error:
            names = ", ".join(frame.collect_schema().names())
            msg = f"where={where} can't be asked of tiles ({names}): {error}"
            raise LakeError(msg) from error
        keys = rows.filter(pl.col("slide").is_in(numbers))["tile_id"].sort().to_numpy()
        self.left_out["where"] += self.selection.tiles - len(keys)
        return keys.astype(np.int64)

    def url(self, slide: int) -> str:
        """Return the URL of a slide's shard; empty if it has none."""
        shard = self.selection.slides["shard"][slide]
        return "" if shard is None else self.lake.store.url(shard)

    def rows(self, source: TileSource, slide: int, numbers: Int64Array) -> Rows:
        """Return some rows of a slide with all features, and for which `where` holds.

        Raises:
            DamageError: the table is not as it was written; the slide is named.
        """
        rows = source.empty(len(numbers))
        source.read(self.selection.rows_of([slide])[numbers], rows, 0)
        kept = np.ones(len(numbers), bool)
        if (complete := rows.complete_rows()) is not None:
            kept[:] = False
            kept[complete] = True
        if self.chosen is not None:
            at = np.minimum(np.searchsorted(self.chosen, rows.tile_id), len(self.chosen) - 1)
            kept &= self.chosen[at] == rows.tile_id
        return rows if kept.all() else rows.take(np.flatnonzero(kept))

    def source(self) -> TileSource:
        """Return a reader of rows and pixels for this process."""
        return TileSource(self.lake, self.selection, self.teachers, "none")


class ShardList(IterableDataset[Sample]):
    """The shards as webdataset's first stage has them: a `url` each, and the slide's place.

    Args:
        plan: the slides.
        by_size: the largest first, so that ranks and workers that take turns get equally many
            tiles, but for one slide's; else in the lake's order.
    """

    def __init__(self, plan: ShardPlan, *, by_size: bool) -> None:
        self._plan, self._by_size = plan, by_size

    def __len__(self) -> int:
        return len(self._plan.selection)

    def __iter__(self) -> Iterator[Sample]:
        sizes = self._plan.selection.slides["tiles"].to_numpy()
        order = np.argsort(-sizes, kind="stable") if self._by_size else np.arange(len(sizes))
        for slide in order.tolist():
            yield {"url": self._plan.url(slide), "slide": slide}


class RankSplit:
    """A node splitter that also works in spawned workers, which don't know the rank by themselves.

    Args:
        shards: number of shards.
        rank: rank of this process; None for the rank of torch.distributed, or of `RANK` and
            `WORLD_SIZE`, when it is first needed, or when it is sent to a worker.
        world: number of processes.

    Raises:
        LakeError: only one of them, a rank out of range, or fewer shards than ranks.
    """

    def __init__(self, shards: int, rank: int | None, world: int | None) -> None:
        self._shards, self._rank, self._world = shards, rank, world
        if (rank is None) != (world is None):
            msg = f"rank={rank}, world={world} given; give both, or none"
            raise LakeError(msg)
        self.place()

    def place(self) -> tuple[int, int]:
        """Return rank and number of processes."""
        rank, world = self._rank, self._world
        if rank is None or world is None:
            rank, world, _, _ = pytorch_worker_info()
        if not 0 <= rank < world or world > self._shards:
            msg = (
                f"rank {rank} of {world} given for {self._shards} shards; ranks count from 0, and "
                "each needs a slide of its own: use fewer ranks or more slides, or lake.stream, "
                "which splits within slides"
            )
            raise LakeError(msg)
        return rank, world

    def __call__(self, shards: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the shards of this rank."""
        rank, world = self.place()
        yield from itertools.islice(shards, rank, None, world)

    def __getstate__(self) -> dict[str, Any]:
        rank, world = self.place()
        fixed = {"_rank": rank, "_world": world} if world > 1 else {}
        return {**self.__dict__, **fixed}


class TileReader(Unforked):
    """The stage that turns shards into samples.

    Args:
        plan: slides, teachers and pixels.
        seed: seed of the order in which open shards take turns; None for shard after shard.
    """

    def __init__(self, plan: ShardPlan, seed: int | None) -> None:
        Unforked.__init__(self)
        self._plan, self._seed = plan, seed
        self.epoch = -1

    def __call__(self, shards: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples of shards: see `Lake.webdataset`."""
        self.check_process()
        self.epoch += 1
        source = self._plan.source()
        blocks = (self._samples(source, shard) for shard in shards)
        if self._seed is None:
            return itertools.chain.from_iterable(itertools.chain.from_iterable(blocks))
        return in_turns(blocks, random.Random(self._seed + self.epoch))

    def _samples(self, source: TileSource, shard: Sample) -> Iterator[list[Sample]]:
        """Yield the samples of a shard, in lists of neighbouring tiles."""
        slide, url, plan = shard["slide"], shard["url"], self._plan
        _, _, tiles = plan.selection.place(slide)
        step = PART_ROWS if self._seed is None else BLOCK_ROWS
        for start in range(0, tiles, step):
            rows = plan.rows(source, slide, np.arange(start, min(start + step, tiles)))
            jpegs = self._jpegs(source, slide, rows.tile_id)
            yield [self._sample(rows, row, slide, url, jpegs) for row in range(len(rows.tile_id))]

    def _jpegs(self, source: TileSource, slide: int, tile_id: Int64Array) -> list[bytes]:
        """Return the stored JPEGs of some tiles; nothing if none are read."""
        if self._plan.pixels == "none" or not len(tile_id):
            return []
        return [bytes(jpeg) for jpeg in source.jpegs(slide, tile_id)]

    def _sample(
        self,
        rows: Rows,
        row: int,
        slide: int,
        url: str,
        jpegs: list[bytes],
    ) -> Sample:
        key = int(rows.tile_id[row])
        sample: Sample = {"__key__": member_name(key).partition(".")[0], "__url__": url}
        if jpegs:
            sample[JPEG] = jpegs[row]
        # copies: a view would keep all rows that were read with it, as long as it is shuffled
        features = {name: array[row].copy() for name, array in rows.by_teacher.items()}
        slide_id = self._plan.selection.slide_ids[slide]
        place = {"slide_id": slide_id, "x": int(rows.x[row]), "y": int(rows.y[row])}
        return {**sample, **features, "tile_id": key, **place}


class TileDecoder:
    """The stage that decodes the JPEGs of samples, after the shuffle, which holds small bytes.

    Args:
        plan: the slides.
    """

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples with uint8 RGB [H, W, 3] under `jpg`.

        Raises:
            DamageError: a tile is no JPEG of the lake's size; it is named.
        """
        source = self._plan.source()
        for sample in samples:
            keys = np.array([sample["tile_id"]])
            pixels_1HWC = source.decoded([memoryview(sample[JPEG])], keys)
            yield {**sample, JPEG: pixels_1HWC[0]}


def in_turns(parts: Iterator[Iterator[list[Sample]]], rng: random.Random) -> Iterator[Sample]:
    """Yield the samples of some parts, several of which are open and take turns by chance."""
    opened: list[Iterator[list[Sample]]] = []
    while True:
        opened += itertools.islice(parts, OPEN_SLIDES - len(opened))
        if not opened:
            return
        turn = rng.randrange(len(opened))
        block = next(opened[turn], None)
        if block is None:
            opened.pop(turn)
        else:
            yield from block


class TilePipeline(wds.DataPipeline, wds.FluidInterface):  # type: ignore[misc] # untyped bases
    """A webdataset pipeline of a lake's tiles; `.map`, `.batched` and the others add stages.

    In a `DataLoader` or `wds.WebLoader` use `batch_size=None` and, with workers,
    `multiprocessing_context="spawn"`.

    Args:
        plan: slides, teachers and pixels.
        shuffle: whether shards and tiles are shuffled.
        buffer_tiles: number of tiles that are mixed with each other.
        seed: seed of the order.
        rank: rank of this process; None for the rank of torch.distributed or the environment.
        world: number of processes.

    Attributes:
        plan: slides, teachers and pixels, and the tiles that are left out.
    """

    def __init__(
        self,
        plan: ShardPlan,
        *,
        shuffle: bool,
        buffer_tiles: int,
        seed: int,
        rank: int | None,
        world: int | None,
    ) -> None:
        shards = len(plan.selection)
        order_seed, turn_seed, tile_seed = _seeds(seed) if shuffle else (None, None, None)
        if shuffle and buffer_tiles < 1:
            msg = f"buffer_tiles={buffer_tiles} given; it is at least 1"
            raise LakeError(msg)
        super().__init__(
            ShardList(plan, by_size=shuffle),
            RankSplit(shards, rank, world),
            wds.split_by_worker,
            wds.detshuffle(shards, shards, order_seed) if shuffle else None,
            TileReader(plan, turn_seed),
            wds.detshuffle(buffer_tiles, buffer_tiles, tile_seed) if shuffle else None,
            TileDecoder(plan) if plan.pixels == "uint8" else None,
        )
        self.plan = plan

    @property
    def slides(self) -> list[str]:
        """Return the names of the slides."""
        return list(self.plan.selection.slide_ids)

    @property
    def urls(self) -> list[str]:
        """Return the URLs of the slides' shards, which `wds.WebDataset` reads too."""
        return [self.plan.url(slide) for slide in range(len(self.plan.selection))]

    @property
    def left_out(self) -> dict[str, int]:
        """Return the numbers of tiles that are left out, by reason."""
        return dict(self.plan.left_out)

    @property
    def tiles(self) -> int:
        """Return the number of tiles of an epoch of all ranks, or more: see `count`."""
        return self.plan.tiles

    def count(self) -> int:
        """Return the exact number of tiles of an epoch of all ranks.

        It is below `tiles` only if a teacher was run on some of a slide's tiles (`extract --where`,
        `--share`); the features are read for it.
        """
        source, plan = self.plan.source(), self.plan
        parts = (
            plan.rows(source, slide, np.arange(plan.selection.place(slide)[2]))
            for slide in range(len(plan.selection))
        )
        return sum(len(rows.tile_id) for rows in parts)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch, which decides its order together with the seed.

        An iteration in this process, and a worker that persists, count by themselves.
        """
        for stage in self.pipeline:
            if hasattr(stage, "epoch"):
                stage.epoch = epoch - 1

    def decode(self, *handlers: Any, partial: bool = True, **options: Any) -> "TilePipeline":  # noqa: ANN401
        """Decode pictures as webdataset does; features are decoded already."""
        decoded: TilePipeline = super().decode(*handlers, partial=partial, **options)
        return decoded

    def __repr__(self) -> str:
        plan = self.plan
        place = f"{plan.lake.uri} at mpp {mpp_name(plan.selection.mpp)}"
        return (
            f"TilePipeline({place}: {counted(len(plan.selection), 'shard')}, "
            f"{counted(plan.tiles, 'tile')})"
        )


def _seeds(seed: int) -> tuple[int, int, int]:
    """Return a seed for each purpose; webdataset adds the epoch to it."""
    rng = random.Random(f"slidelake {seed}")
    return rng.getrandbits(60), rng.getrandbits(60), rng.getrandbits(60)
