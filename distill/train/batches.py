"""Tiles with cached features for the training loop: a stream per mpp, read in turns."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.recipes.recipe import Recipe
from distill.recipes.recipe_columns import columns_of
from distill.recipes.student_settings import TileStudent
from distill.train.mosaics import MosaicStream
from distill.train.tile_choice import rows_of_neighbours
from featurestore import Lake, TileBatch
from featurestore.read import Stream

BLOCK_TILES = 16
BUFFER_TILES = 2048
MEASURE_TILES = 64


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The tiles and features of a lake that a recipe reads.

    Attributes:
        lake: the lake at the run's version.
        recipe: the recipe, which determines mpps and columns.
        slide_ids: slides of the tiles.
        rows: row numbers of the tiles that are seen, by mpp, where not all are.
        cache_pixels_gb: greatest size of the files in which training keeps decoded tiles on a disk
            of this machine; 0 for none.
    """

    lake: Lake
    recipe: Recipe
    slide_ids: Sequence[str]
    rows: Mapping[float, npt.NDArray[np.int64]] = field(default_factory=dict)
    cache_pixels_gb: float = 0.0

    def training(self, *, rank: int = 0, world: int = 1) -> list[Stream | MosaicStream]:
        """Return one rank's streams of shuffled tiles, one for each mpp at which slides have tiles.

        A batch is a part of an optimiser step. All batches are whole: tiles that fill no batch are
        left to another epoch. An mpp with too few tiles for a batch has one small batch of all.

        Raises:
            DistillError: the workers can't share a step equally.
        """
        batch = self.recipe.schedule.tiles_of_worker(world)
        streams: list[Stream | MosaicStream] = []
        for mpp in self._mpps():
            tiles = self._tiles(mpp)
            block = max(1, min(BLOCK_TILES, tiles // (8 * world)))
            is_whole = tiles >= world * (batch + block)
            settings = {
                "batch_tiles": batch if is_whole else tiles // world + block,
                "block_tiles": block,
                "seed": self.recipe.seed,
                "rank": rank,
                "world": world,
                "drop_last": is_whole,
                **self._decoding(tiles),
            }
            stream = self._stream(mpp, **settings)
            if self.recipe.views.neighbours:
                streams.append(MosaicStream([stream, *self._neighbours(mpp, settings)]))
            else:
                streams.append(stream)
        return streams

    def _neighbours(self, mpp: float, settings: dict[str, Any]) -> list[Stream]:
        """Return the streams of the tiles' neighbours, with the patch tokens that are targets."""
        rows = rows_of_neighbours(self.lake, mpp, self.slide_ids, self.rows[mpp])
        columns = columns_of(self.lake, self.recipe)
        whole = [column.name for column in columns if column.tokens and not column.places]
        return [
            self._stream(mpp, rows=part, teachers=whole or [columns[0].name], **settings)
            for part in rows.T
        ]

    def _decoding(self, tiles: int) -> dict[str, Any]:
        """Return how a training stream of so many tiles makes the student's input of them.

        Held-out tiles are always decoded in full: so does `extract`, and fidelity is of that.
        """
        student = self.recipe.student
        if not isinstance(student, TileStudent):
            return {}
        all_tiles = sum(self._tiles(mpp) for mpp in self._mpps())
        cache_gb = self.cache_pixels_gb * tiles / all_tiles
        # Smaller sides are made of the largest one by the device that trains.
        side_px = min(student.all_sizes[-1], self.lake.config.tile_px)
        # Pixels that are neither scaled nor kept are resized by the device that trains.
        sized = {"input_px": side_px} if student.decode == "scaled" or cache_gb else {}
        return {**sized, "decode": student.decode, "cache_pixels_gb": cache_gb}

    def measuring(self, *, mixed_up: bool = False) -> list[Stream]:
        """Return streams of all tiles at each mpp, in their own order or shuffled once."""
        return [
            self._stream(mpp, batch_tiles=MEASURE_TILES, block_tiles=BLOCK_TILES, shuffle=mixed_up)
            for mpp in self._mpps()
        ]

    def _mpps(self) -> list[float]:
        read, _ = self.recipe.levels_of(self.lake.config.mpps)
        return [mpp for mpp in read if self._tiles(mpp)]

    def _tiles(self, mpp: float) -> int:
        if mpp in self.rows:
            return len(self.rows[mpp])
        return int(self.lake.tiles_of(mpp=mpp, slide_ids=self.slide_ids)["tiles"].sum())

    def _stream(
        self,
        mpp: float,
        *,
        rows: npt.NDArray[np.int64] | None = None,
        teachers: Sequence[str] = (),
        **settings: Any,  # noqa: ANN401 - of `Lake.stream`
    ) -> Stream:
        places = [c.places for c in columns_of(self.lake, self.recipe) if c.places]
        _, under = self.recipe.levels_of(self.lake.config.mpps)
        teachers_by_mpp: dict[float, list[str]] = {level: [] for level in (mpp, *under)}
        for teacher, level in self.recipe.needs(self.lake.config.mpps):
            if level in teachers_by_mpp:
                teachers_by_mpp[level].append(teacher)
        # A region has many rows, so fewer regions than single tiles fit into the buffer.
        held = 1 if self.recipe.levels == 1 else sum(self._ratio(mpp, fine) ** 2 for fine in under)
        own_teachers = teachers_by_mpp.pop(mpp)
        return self.lake.stream(
            teachers or [*own_teachers, *places],
            mpp=mpp,
            slide_ids=self.slide_ids,
            pixels="uint8" if self.recipe.pixels else "none",
            buffer_tiles=max(BUFFER_TILES // held, 4 * settings["batch_tiles"]),
            under=teachers_by_mpp,
            rows=self.rows.get(mpp) if rows is None else np.ascontiguousarray(rows),
            **settings,
        )

    @staticmethod
    def _ratio(coarse: float, fine: float) -> int:
        return round(coarse / fine)


def stream_order(
    streams: Sequence[Stream | MosaicStream], *, epoch: int, seed: int
) -> npt.NDArray[np.int64]:
    """Draw the order of streams over the batches of an epoch, the same on all ranks."""
    order = np.repeat(np.arange(len(streams)), [stream.steps for stream in streams])
    return np.random.default_rng([seed, epoch]).permutation(order)


def mixed(
    streams: Sequence[Stream | MosaicStream], *, epoch: int, seed: int, first: int = 0
) -> Iterator[TileBatch]:
    """Yield the batches of an epoch from `first` on, as if the earlier batches had been read."""
    turns = stream_order(streams, epoch=epoch, seed=seed)
    with contextlib.ExitStack() as stack:
        batches = []
        for number, stream in enumerate(streams):
            batches_before = int((turns[:first] == number).sum())
            stream.load_state_dict({**stream.state_dict(), "epoch": epoch, "given": batches_before})
            batches.append(stack.enter_context(contextlib.closing(iter(stream))))
        for turn in turns[first:]:
            yield next(batches[turn])
