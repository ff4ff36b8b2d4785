"""Bags of a run beside `np.fromfile`, and the look-up of their places.

    python -m benchmarks.bags --rounds 7

Two lakes are made from a seed in a temporary folder: 12 slides of about 6,000 tiles with 1,536
dims, whose bags are read as large pieces, and 2,400 slides of 1,000 tiles with 256 dims, where what
a bag costs besides its bytes is felt. The arms of a row take turns; each drops a bag before it
reads the next, as training does. `np.fromfile` reads the same bytes from a file a slide.

Left out of the clock: making the data, importing, and the first round, in which each slide is
compared with its checksum. The page cache is warm for all arms.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.report import Line, write_report
from benchmarks.store import race
from benchmarks.store_lake import MPP, add_teacher, make_lake, random_features, slide_sizes
from benchmarks.store_peers import write_raw
from downstream.run.feature_bags import PatientBags
from featurestore import Lake
from featurestore.read.select_slides import BagPlaces, look_up

TEACHER = "t"
LARGE_DIM, SMALL_DIM = 1536, 256
SMALL_TILES = 1000
SOME = 40  # slides that are looked up one by one
READ = 400  # bags of the many slides that a round reads

Read = Callable[[int], object]


def drained(read: Read, numbers: Iterable[int]) -> Callable[[], None]:
    """Return a function that reads bags one after the other and drops each."""

    def work() -> None:
        for number in numbers:
            read(number)

    return work


def made(folder: Path, sizes: list[int], dim: int, seed: int) -> tuple[Lake, list[Path]]:
    """Return a lake with one teacher, and a file of raw features for each slide."""
    lake = make_lake(folder / "lake", sizes, with_pixels=0, seed=seed)
    features = random_features(sizes, dim, seed)
    add_teacher(lake, TEACHER, features)
    return lake.refreshed(), write_raw(folder / "raw", features)


def raw_reader(paths: list[Path], dim: int) -> Read:
    """Return the peer: the features of a slide from its file."""
    return lambda number: np.fromfile(paths[number], np.float16).reshape(-1, dim)


def large_bags(folder: Path, slides: int, tiles: int, rounds: int, seed: int) -> list[Line]:
    """Compare bags of thousands of tiles with reading their bytes alone."""
    sizes = slide_sizes(slides, tiles, seed)
    lake, paths = made(folder, sizes, LARGE_DIM, seed)
    names, every = [f"s{number:02d}" for number in range(slides)], range(slides)
    bags, raw = lake.bags(TEACHER, mpp=MPP), raw_reader(paths, LARGE_DIM)
    patients = PatientBags(lake, [(name,) for name in names], TEACHER, mpps=(MPP,), cache_bytes=0)

    def anew() -> None:
        lake.__dict__["_places"] = BagPlaces(lake)  # all that it has looked up is forgotten
        for name in names:
            lake.bag(name, TEACHER, mpp=MPP)

    seconds = race(
        {
            "anew": anew,
            "bag": drained(lambda at: lake.bag(names[at], TEACHER, mpp=MPP), every),
            "bags": drained(lambda at: bags[at], every),
            "run": drained(lambda at: patients[at], every),
            "raw": drained(raw, every),
        },
        rounds,
    )
    peer, mb = "np.fromfile of the same bytes", 2e-6 * LARGE_DIM * sum(sizes)
    lines = [
        Line.of(f"lake.bag, {slides} with their look-up", peer, seconds, ("anew", "raw"), 0.4),
        Line.of("lake.bag, places known", peer, seconds, ("bag", "raw"), 0.6),
        Line.of("lake.bags, looked up once", peer, seconds, ("bags", "raw"), 0.6),
        Line.of("bags of a run", peer, seconds, ("run", "raw")),
        Line.of("bags of a run", "lake.bags, looked up once", seconds, ("run", "bags"), 0.8),
    ]
    return [line.at(mb, "MB") for line in lines]


def many_bags(folder: Path, slides: int, rounds: int, seed: int) -> list[Line]:
    """Compare the bags of a run of many slides with bags that were looked up once."""
    lake, paths = made(folder, [SMALL_TILES] * slides, SMALL_DIM, seed)
    names = [f"s{number:02d}" for number in range(slides)]
    drawn = np.random.default_rng(seed).permutation(slides)[: min(READ, slides)].tolist()
    bags, raw = lake.bags(TEACHER, mpp=MPP), raw_reader(paths, SMALL_DIM)
    patients = PatientBags(lake, [(name,) for name in names], TEACHER, mpps=(MPP,), cache_bytes=0)
    some = [names[number] for number in drawn[:SOME]]
    row = {name: number for number, name in enumerate(bags.ids)}
    seconds = race(
        {
            "bags": drained(lambda at: bags[row[names[at]]], drawn),
            "run": drained(lambda at: patients[at], drawn),
            "raw": drained(raw, drawn),
            "once": lambda: lake.places_of([TEACHER], mpp=MPP),
            "each": lambda: [look_up(lake, name, [TEACHER], MPP) for name in some],
        },
        rounds,
    )
    seconds["each"] = [value * slides / len(some) for value in seconds["each"]]
    title = f"bags of a run of {slides:,} slides"
    lines = [
        Line.of(title, "lake.bags, looked up once", seconds, ("run", "bags"), 0.8),
        Line.of(title, "np.fromfile of the same bytes", seconds, ("run", "raw")),
    ]
    places = Line.of(
        f"places of {slides:,} slides in one scan", "slide by slide", seconds, ("once", "each")
    )
    return [*(line.at(len(drawn), "bags") for line in lines), places.at(slides, "slides")]


def main(
    rounds: Annotated[int, typer.Option(help="of each row")] = 7,
    slides: int = 12,
    tiles: int = 6000,
    many: Annotated[int, typer.Option(help="slides of the second lake")] = 2400,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON, with machine and versions."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        folder = Path(name)
        lines = large_bags(folder / "large", slides, tiles, rounds, seed)
        lines += many_bags(folder / "many", many, rounds, seed)
    for line in lines:
        typer.echo(line.text())
    settings = {"rounds": rounds, "slides": slides, "tiles": tiles, "many": many, "seed": seed}
    typer.echo(f"-> {write_report(out, lines, settings, name='bags')}")


if __name__ == "__main__":
    typer.run(main)
