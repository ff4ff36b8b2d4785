"""Costs and savings of the store: ratios in one run, against peers written on the same data.

    python -m benchmarks.store --rounds 7

Everything is made in a temporary folder from a seed: a lake of 12 slides (lognormal around 6,000
tiles) with teachers of 768, 1536 and 2560 dims by the real writers, and the peers' files beside it.
The arms of a row take turns; a ratio is the median over rounds of the ratio inside a round.

Left out of the clock: making the data, importing, opening the lake (once a process) and the first
round. The page cache is warm for all arms; nothing is on a network.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

from benchmarks.report import Line, write_report
from benchmarks.store_lake import (
    MPP,
    TILE_PX,
    add_teacher,
    make_lake,
    random_features,
    slide_sizes,
)
from benchmarks.store_peers import (
    Float16Array,
    decode_all,
    read_h5,
    take_h5,
    write_chunked,
    write_raw,
    write_trident,
)
from featurestore import Lake
from featurestore.tables.schema import features_table

DIMS = {"small": 768, "middle": 1536, "large": 2560}
TEACHERS = list(DIMS)
MIDDLE = "middle"
BATCH = 256
RANDOM_BATCHES = 16  # so that what is read ahead in vain counts little
THREADS = 2
PIXEL_SLIDES = 2
HEAD_TILES = 10_000
HEAD_ROUNDS = 3  # the peer takes seconds

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Data:
    """The lake, its copies and the tiles that all arms read.

    Attributes:
        folder: folder of the lake and the peers' files.
        lake: the open lake, after a first read.
        features: features of each slide [N, D], by teacher.
    """

    folder: Path
    lake: Lake
    features: dict[str, list[Float16Array]]

    @property
    def tiles(self) -> int:
        """Return the number of tiles of all slides."""
        return sum(len(slide_features) for slide_features in self.features[MIDDLE])


def race(arms: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round; arms alternate, after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, work in arms.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def make_data(folder: Path, *, slides: int, tiles: int, seed: int) -> Data:
    """Return a lake with features of all teachers; the first slides have pixels too."""
    sizes = slide_sizes(slides, tiles, seed)
    lake = make_lake(folder / "lake", sizes, with_pixels=PIXEL_SLIDES, seed=seed)
    features = {}
    for number, (teacher, dim) in enumerate(DIMS.items()):
        features[teacher] = random_features(sizes, dim, seed + number)
        add_teacher(lake, teacher, features[teacher])
    return Data(folder=folder, lake=lake.refreshed(), features=features)


def bags(store_data: Data, rounds: int) -> list[Line]:
    """Read all bags of the 1536-d teacher, one after the other."""
    slide_features = store_data.features[MIDDLE]
    h5 = write_trident(store_data.folder / "trident", slide_features)
    raw = write_raw(store_data.folder / "raw", slide_features)
    names = [f"s{slide:02d}" for slide in range(len(slide_features))]
    looked_up = store_data.lake.bags(MIDDLE, mpp=MPP)

    # Each arm drops an array before it reads the next, as training does.
    def one_by_one() -> None:
        for name in names:
            store_data.lake.bag(name, MIDDLE, mpp=MPP)

    def from_bags() -> None:
        for index in range(len(names)):
            looked_up[index]

    def from_files() -> None:
        for path, array in zip(raw, slide_features, strict=True):
            np.fromfile(path, np.float16).reshape(array.shape)

    def from_h5() -> None:
        for path in h5:
            read_h5(path)

    seconds = race(
        {
            "lake.bag": one_by_one,
            "lake.bags": from_bags,
            "h5": from_h5,
            "raw": from_files,
        },
        rounds,
    )
    trident = "TRIDENT's h5 layout (float32, a chunk a row)"
    lines = [
        Line.of("lake.bag", trident, seconds, ("lake.bag", "h5"), 2.0),
        Line.of("lake.bags, looked up once", trident, seconds, ("lake.bags", "h5")),
        Line.of("lake.bag", "np.fromfile", seconds, ("lake.bag", "raw"), 0.4),
        Line.of("lake.bags, looked up once", "np.fromfile", seconds, ("lake.bags", "raw"), 0.6),
    ]
    return [line.at(values_bytes(slide_features), "MB", 1e-6) for line in lines]


def values_bytes(slide_features: Sequence[Float16Array]) -> int:
    """Return the bytes of float16 features."""
    return sum(array.nbytes for array in slide_features)


def shuffled(store_data: Data, rounds: int) -> list[Line]:
    """Compare batches of 256 tiles with three teachers; all arms read as many, in one thread."""
    h5 = write_chunked(store_data.folder / "chunked", store_data.features)
    sizes = [len(slide_features) for slide_features in store_data.features[MIDDLE]]
    slide = np.repeat(np.arange(len(sizes)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    rng = np.random.default_rng(0)
    single = store_data.lake.stream(
        TEACHERS, mpp=MPP, batch_tiles=BATCH, block_tiles=1, buffer_tiles=BATCH, threads=1
    )
    blocks = store_data.lake.stream(TEACHERS, mpp=MPP, batch_tiles=BATCH, threads=1)
    epochs = itertools.count()

    def from_h5() -> None:
        for _ in range(RANDOM_BATCHES):
            which = rng.choice(len(slide), BATCH, replace=False)
            take_h5(h5, TEACHERS, np.stack([slide[which], row[which]], axis=1))

    def one_by_one() -> None:
        single.set_epoch(next(epochs))
        for _ in itertools.islice(single, RANDOM_BATCHES):
            pass

    def whole_epoch() -> None:
        for _ in blocks:
            pass

    seconds = race({"single": one_by_one, "blocks": whole_epoch, "h5": from_h5}, rounds)
    # The stream is timed over its epoch, so that reading ahead is paid for, and given per batch.
    share = RANDOM_BATCHES / blocks.steps
    seconds["blocks"] = [share * value for value in seconds["blocks"]]
    peer = "h5 in chunks of 256 rows, each slide's file opened per batch"
    subject = "256 shuffled tiles x 3 teachers"
    lines = [
        Line.of(f"{subject}, one by one", peer, seconds, ("single", "h5"), 10.0),
        Line.of(f"{subject}, lake.stream in blocks", peer, seconds, ("blocks", "h5"), 25.0),
    ]
    return [line.at(RANDOM_BATCHES * BATCH, "tiles") for line in lines]


def add_a_teacher(store_data: Data, rounds: int) -> list[Line]:
    """Add a further 1536-d teacher each round, written, checked, summed and committed."""
    slide_features = store_data.features[MIDDLE]
    number = itertools.count()
    before = folder_bytes(store_data.folder / "lake")
    seconds = race(
        {
            "lake": lambda: add_teacher(store_data.lake, f"more{next(number)}", slide_features),
            "raw": lambda: write_raw(store_data.folder / f"raw{next(number)}", slide_features),
        },
        rounds,
    )
    written = folder_bytes(store_data.folder / "lake") - before
    ratio = written / (values_bytes(slide_features) * (rounds + 1))
    return [
        Line(
            title="add a 1536-d teacher: bytes written",
            peer="its own bytes",
            ratio=ratio,
            target=1.01,
            met=ratio <= 1.01,
        ),
        Line.of("add a 1536-d teacher", "ndarray.tofile of the same", seconds, ("lake", "raw")).at(
            values_bytes(slide_features), "MB", 1e-6
        ),
    ]


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stream_features(store_data: Data, rounds: int) -> list[Line]:
    """Compare an epoch of features with Lance's own scan of the same columns, batch by batch."""
    stream = store_data.lake.stream(TEACHERS, mpp=MPP, batch_tiles=BATCH, threads=THREADS)
    table = store_data.lake.table(features_table(MPP))

    def epoch() -> None:
        for _ in stream:
            pass

    def scan() -> None:
        for _ in table.scanner(columns=["tile_id", "x", "y", *TEACHERS]).to_batches():
            pass

    seconds = race({"stream": epoch, "scan": scan}, rounds)
    line = Line.of(
        "lake.stream, features of 3 teachers", "Lance scan", seconds, ("stream", "scan"), 0.7
    )
    return [line.at(store_data.tiles, "tiles")]


def stream_pixels(store_data: Data, rounds: int) -> list[Line]:
    """Compare an epoch of decoded pixels with one teacher with decoding alone."""
    names = [f"s{slide:02d}" for slide in range(PIXEL_SLIDES)]
    settings = {"mpp": MPP, "slide_ids": names, "batch_tiles": BATCH, "threads": THREADS}
    stream = store_data.lake.stream(MIDDLE, pixels="uint8", **settings)  # type: ignore[arg-type]
    stored = store_data.lake.stream(MIDDLE, pixels="jpeg", **settings)  # type: ignore[arg-type]
    jpegs = [jpeg for batch in stored for jpeg in batch.jpeg or ()]

    def epoch() -> None:
        for _ in stream:
            pass

    def memory() -> None:
        decode_all(jpegs, batch=BATCH, threads=THREADS, side_px=TILE_PX)

    seconds = race({"stream": epoch, "memory": memory}, rounds)
    line = Line.of(
        "lake.stream, pixels and a teacher",
        f"simplejpeg from memory, {THREADS} threads too",
        seconds,
        ("stream", "memory"),
        0.8,
    )
    return [line.at(len(jpegs), "tiles")]


def first_rows(folder: Path, rounds: int, *, slides: int, seed: int) -> list[Line]:
    """Measure the read of the first rows of a million, with their features."""
    one = random_features([HEAD_TILES], DIMS[MIDDLE], seed)
    lake = make_lake(folder / "head", [HEAD_TILES] * slides, with_pixels=0, seed=seed)
    add_teacher(lake, MIDDLE, one * slides)
    lake = lake.refreshed()
    table = lake.table(features_table(MPP))
    seconds = race(
        {
            "lake": lambda: lake.features(MIDDLE, mpp=MPP).head(5).collect(),
            "pyarrow": lambda: pl.scan_pyarrow_dataset(table).head(5).collect(),
        },
        rounds,
    )
    subject = f"lake.features(...).head(5) of {slides * HEAD_TILES:,} rows"
    return [Line.of(subject, "pl.scan_pyarrow_dataset", seconds, ("lake", "pyarrow"), 50.0)]


def main(
    rounds: Annotated[int, typer.Option(help="of each row")] = 7,
    slides: int = 12,
    tiles: int = 6000,
    seed: int = 0,
    head_slides: Annotated[int, typer.Option(help="of 10,000 tiles, for `head`")] = 100,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON, with machine and versions."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        store_data = make_data(Path(folder), slides=slides, tiles=tiles, seed=seed)
        lines = []
        for part in (bags, shuffled, add_a_teacher, stream_features, stream_pixels):
            for line in part(store_data, rounds):
                typer.echo(line.text())
                lines.append(line)
        for line in first_rows(Path(folder), HEAD_ROUNDS, slides=head_slides, seed=seed):
            typer.echo(line.text())
            lines.append(line)
    settings = {
        "rounds": rounds,
        "slides": slides,
        "tiles": store_data.tiles,
        "dims": DIMS,
        "seed": seed,
    }
    typer.echo(f"-> {write_report(out, lines, {**settings, 'threads': THREADS}, name='store')}")


if __name__ == "__main__":
    typer.run(main)
