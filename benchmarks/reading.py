"""Reading from Python: means of slides, and tiles for webdataset's loaders beside `lake.stream`.

    python -m benchmarks.reading --rounds 5

The lake is that of `store.py`: 12 slides of random features, four of them with pixels (real crops),
in a temporary folder. Arms take turns; a ratio is the median over rounds of the ratio in a round.

Left out of the clock: making the data, opening, the first round with its comparisons of checksums,
and the start of spawned workers (they persist). The page cache is warm; nothing is on a network.
webdataset's own arm reads pixels alone: it has no features to read.
"""

import gc
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
import webdataset as wds

from benchmarks.report import Line, write_report
from benchmarks.store import race
from benchmarks.store_lake import MPP, add_teacher, make_lake, random_features, slide_sizes
from featurestore import Lake

TEACHER, DIM = "middle", 1536
BATCH = 256
WORKERS = 2
PIXEL_SLIDES = 4


def drained(batches: Iterable[Any]) -> None:
    """Read all batches."""
    for _ in batches:
        pass


def means(lake: Lake, rounds: int) -> list[Line]:
    """Compare `lake.slide_means` with a Polars group_by, and with a loop over bags."""
    names = lake.slides().select("slide_id").collect()["slide_id"].to_list()

    def by_group() -> None:
        mean = pl.concat_arr(pl.col(TEACHER).arr.get(i).cast(pl.Float32).mean() for i in range(DIM))
        lake.features(TEACHER, mpp=MPP).group_by("slide_id").agg(mean).collect()

    def by_bag() -> None:
        for name in names:
            lake.bag(name, TEACHER, mpp=MPP).features.mean(axis=0, dtype=np.float32)

    seconds = race(
        {"means": lambda: lake.slide_means(TEACHER, mpp=MPP), "group": by_group, "bag": by_bag},
        rounds,
    )
    lines = [
        Line.of(
            "lake.slide_means",
            "Polars group_by, number by number",
            seconds,
            ("means", "group"),
            1.0,
        ),
        Line.of("lake.slide_means", "bag after bag, numpy", seconds, ("means", "bag")),
    ]
    tiles = int(lake.tiles_of(mpp=MPP)["tiles"].sum())
    return [line.at(tiles * DIM * 2, "MB", 1e-6) for line in lines]


def loaders(lake: Lake, rounds: int) -> list[Line]:
    """Compare an epoch of decoded tiles with a teacher by webdataset's loaders and the stream."""
    names = [f"s{slide:02d}" for slide in range(PIXEL_SLIDES)]
    stream = lake.stream(
        TEACHER, mpp=MPP, slide_ids=names, pixels="uint8", batch_tiles=BATCH, threads=WORKERS
    )
    tiles = lake.webdataset(TEACHER, mpp=MPP, slide_ids=names, pixels="uint8")
    walk = wds.WebDataset(tiles.urls, shardshuffle=PIXEL_SLIDES).shuffle(4096).decode("rgb8")
    walk = walk.to_tuple("jpg")
    spawned = {
        "batch_size": None,
        "num_workers": WORKERS,
        "multiprocessing_context": "spawn",
        "persistent_workers": True,
    }
    workers = wds.WebLoader(tiles.batched(BATCH), **spawned)
    walkers = wds.WebLoader(walk.batched(BATCH), **spawned)
    seconds = race(
        {
            "stream": lambda: drained(stream),
            "one": lambda: drained(tiles.batched(BATCH)),
            "workers": lambda: drained(workers),
            "walk": lambda: drained(walk.batched(BATCH)),
            "walkers": lambda: drained(walkers),
        },
        rounds,
    )
    one, several = "lake.webdataset, one process", f"lake.webdataset, {WORKERS} workers"
    plain = "wds.WebDataset of the shards, pixels alone"
    beside = f"lake.stream, {WORKERS} threads"
    lines = [
        Line.of(one, plain, seconds, ("one", "walk")),
        Line.of(several, f"{plain}, {WORKERS} workers", seconds, ("workers", "walkers")),
        Line.of(one, beside, seconds, ("one", "stream")),
        Line.of(several, beside, seconds, ("workers", "stream")),
        Line.of(beside, plain, seconds, ("stream", "walk")),
    ]
    return [line.at(tiles.tiles, "tiles") for line in lines]


def features_alone(lake: Lake, rounds: int) -> list[Line]:
    """Compare an epoch of a teacher's features without pixels."""
    stream = lake.stream(TEACHER, mpp=MPP, batch_tiles=BATCH, threads=WORKERS)
    tiles = lake.webdataset(TEACHER, mpp=MPP, pixels="none")
    seconds = race(
        {"stream": lambda: drained(stream), "one": lambda: drained(tiles.batched(BATCH))}, rounds
    )
    line = Line.of(
        "lake.webdataset, features alone, one process",
        f"lake.stream, {WORKERS} threads",
        seconds,
        ("one", "stream"),
    )
    return [line.at(tiles.count(), "tiles")]


def main(
    rounds: Annotated[int, typer.Option(help="of each row")] = 5,
    slides: int = 12,
    tiles: int = 2000,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON, with machine and versions."""
    # webdataset 1.0.2 leaves tars open until they are collected
    warnings.simplefilter("ignore", ResourceWarning)
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        sizes = slide_sizes(slides, tiles, seed)
        lake = make_lake(Path(folder) / "lake", sizes, with_pixels=PIXEL_SLIDES, seed=seed)
        add_teacher(lake, TEACHER, random_features(sizes, DIM, seed))
        lines = []
        for part in (means, features_alone, loaders):
            for line in part(lake.refreshed(), rounds):
                typer.echo(line.text())
                lines.append(line)
        gc.collect()
    settings = {"rounds": rounds, "slides": slides, "tiles": sum(sizes), "dim": DIM, "seed": seed}
    settings |= {"pixel_slides": PIXEL_SLIDES, "workers": WORKERS, "batch": BATCH}
    typer.echo(f"-> {write_report(out, lines, settings, name='reading')}")


if __name__ == "__main__":
    typer.run(main)
