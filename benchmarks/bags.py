"""Bags of one teacher from a lake against `np.fromfile` of the same bytes, interleaved, warm.

    python benchmarks/bags.py LAKE --teacher efficientnet_lite0

The clock leaves out opening the lake and reading its catalog (once per process) and writing the
plain files. Both arms end with a float16 array [N, D] per slide.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from featurestore import open_lake

ROUNDS = 7


def seconds(work: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(
    lake: str, teacher: Annotated[str, typer.Option()], mpp: Annotated[float, typer.Option()] = 0.5
) -> None:
    """Print both medians in MB/s, and their ratio."""
    opened = open_lake(lake)
    slides = opened.tiles_of(mpp=mpp)["slide_id"].to_list()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for slide in slides:
            features = opened.bag(slide, teacher, mpp=mpp).features
            features.tofile(Path(folder) / slide)
            sizes[slide] = features.shape

        def from_lake() -> None:
            for slide in slides:
                opened.bag(slide, teacher, mpp=mpp)

        def from_files() -> None:
            for slide, shape in sizes.items():
                np.fromfile(Path(folder) / slide, np.float16).reshape(shape)

        rounds = [(seconds(from_lake), seconds(from_files)) for _ in range(ROUNDS)]
    total = sum(2 * n * d for n, d in sizes.values()) / 1e6
    ours, limit = (statistics.median(times) for times in zip(*rounds, strict=True))
    typer.echo(f"{len(slides)} bags, {total:.1f} MB")
    typer.echo(f"lake.bag      {total / ours:8.0f} MB/s")
    typer.echo(f"np.fromfile   {total / limit:8.0f} MB/s   lake is {limit / ours:.2f} of it")


if __name__ == "__main__":
    typer.run(main)
