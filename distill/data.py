"""Tiles with cached features for the training loop: a stream per mpp, taken in turns."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from distill.recipes import Recipe
from featurestore import Lake, TileBatch
from featurestore.stream import Stream

BLOCK_TILES = 16
BUFFER_TILES = 2048
MEASURE_TILES = 64


def training_streams(
    lake: Lake, recipe: Recipe, slide_ids: Sequence[str], *, rank: int = 0, world: int = 1
) -> list[Stream]:
    """One rank's shuffled tiles at each mpp where the slides have any.

    Steps are whole: tiles that fill none are left to another epoch. An mpp with too few tiles for
    one step makes a small one of all.
    """
    streams = []
    for mpp in recipe.mpps_of(lake.config.mpps):
        tiles = int(lake.tiles_of(mpp=mpp, slide_ids=slide_ids)["tiles"].sum())
        batch = max(1, recipe.batch_tiles // world)
        block = max(1, min(BLOCK_TILES, tiles // (8 * world)))
        whole = tiles >= world * (batch + block)
        if tiles:
            stream = lake.stream(
                recipe.teachers,
                mpp=mpp,
                slide_ids=slide_ids,
                pixels="uint8",
                batch_tiles=batch if whole else tiles // world + block,
                block_tiles=block,
                buffer_tiles=BUFFER_TILES,
                seed=recipe.seed,
                rank=rank,
                world=world,
                drop_last=whole,
            )
            streams.append(stream)
    return streams


def held_out_streams(lake: Lake, recipe: Recipe, slide_ids: Sequence[str]) -> list[Stream]:
    """All tiles at each mpp where the slides have any, in their own order."""
    return [
        lake.stream(
            recipe.teachers,
            mpp=mpp,
            slide_ids=slide_ids,
            pixels="uint8",
            batch_tiles=MEASURE_TILES,
            buffer_tiles=BUFFER_TILES,
            shuffle=False,
        )
        for mpp in recipe.mpps_of(lake.config.mpps)
        if lake.tiles_of(mpp=mpp, slide_ids=slide_ids)["tiles"].sum()
    ]


def mixed(streams: Sequence[Stream], *, epoch: int, seed: int) -> Iterator[TileBatch]:
    """An epoch of all streams, their batches in an order that all ranks share."""
    order = np.repeat(np.arange(len(streams)), [stream.steps for stream in streams])
    with contextlib.ExitStack() as stack:
        batches = []
        for stream in streams:
            stream.set_epoch(epoch)
            batches.append(stack.enter_context(contextlib.closing(iter(stream))))
        for index in np.random.default_rng([seed, epoch]).permutation(order):
            yield next(batches[index])
