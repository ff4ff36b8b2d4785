"""The rate of `lake.stream` with pixels: against decoding alone, other loaders, and itself.

    python -m benchmarks.stream --rounds 5 [--litdata ENVIRONMENT/bin/python]

The lake is that of `store.py`: slides with tiles of 256 px (real crops) and a teacher of 768 dims,
in a temporary folder. Arms take turns; a ratio is the median over rounds of the ratio in a round.

Left out of the clock: making the data, opening, the first round, and the start of other loaders'
workers, which persist. The page cache is warm; nothing is on a network. webdataset and litdata read
pixels alone, `lake.stream` a teacher's features with them.
"""

import contextlib
import gc
import itertools
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import webdataset as wds
from torch import Tensor, nn

import slidelake
from benchmarks.report import Line, write_report
from benchmarks.store import Work, race
from benchmarks.store_lake import (
    MPP,
    TILE_PX,
    add_teacher,
    make_lake,
    random_features,
    slide_sizes,
)
from benchmarks.store_peers import decode_all
from distill.students.task import Batch, FeaturePrediction, TrainingTask
from distill.train.batches import Feed, mixed
from distill.train.loop import Loop, State
from featurestore import Lake

TEACHER, DIM = "small", 768
BATCH = 256
WORKERS = 2
INPUT_PX = 128


def drained(batches: Any) -> None:  # noqa: ANN401 - of any loader
    """Read all batches."""
    for _ in batches:
        pass


def stored_tiles(lake: Lake) -> list[bytes]:
    """Return the JPEGs of all tiles."""
    stream = lake.stream(TEACHER, mpp=MPP, pixels="jpeg", batch_tiles=BATCH)
    return [jpeg for batch in stream for jpeg in batch.jpeg or ()]


def against_memory(lake: Lake, rounds: int, jpegs: Sequence[bytes]) -> Iterator[Line]:
    """Compare an epoch with simplejpeg from memory, on as many threads."""
    for threads in sorted({1, 2, os.cpu_count() or 1}):
        stream = lake.stream(TEACHER, mpp=MPP, pixels="uint8", batch_tiles=BATCH, threads=threads)
        seconds = race(
            {
                "stream": lambda stream=stream: drained(stream),  # type: ignore[misc]
                "memory": lambda threads=threads: decode_all(  # type: ignore[misc]
                    jpegs, batch=BATCH, threads=threads, side_px=TILE_PX
                ),
            },
            rounds,
        )
        title = f"lake.stream, pixels and a teacher, threads={threads}"
        line = Line.of(title, "simplejpeg from memory", seconds, ("stream", "memory"), 0.95)
        yield line.at(len(jpegs), "tiles")


class Litdata:
    """litdata's loader in a child process of an environment of its own.

    Args:
        python: the Python of the environment.
        folder: folder for the tiles, which litdata copies into its chunks.
        jpegs: the tiles.
    """

    def __init__(self, python: Path, folder: Path, jpegs: Sequence[bytes]) -> None:
        folder.mkdir()
        (folder / "tiles.bin").write_bytes(b"".join(jpegs))
        np.savetxt(folder / "sizes.txt", [len(jpeg) for jpeg in jpegs], fmt="%d")
        script = Path(__file__).parent / "stream_litdata.py"
        # The environment's packages alone, without those of this process.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._child = subprocess.Popen(
            [python, script, folder, str(BATCH), str(WORKERS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        while self._line() != "ready":
            pass

    def _line(self) -> str:
        assert self._child.stdout is not None
        if not (line := self._child.stdout.readline()):
            msg = "litdata's process ended"
            raise RuntimeError(msg)
        return line.strip()

    def epoch(self) -> None:
        """Read an epoch."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()
        while not self._line().replace(".", "").replace("e-", "").isdigit():
            pass

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def against_loaders(
    lake: Lake, rounds: int, jpegs: Sequence[bytes], *, litdata: Path | None, folder: Path
) -> Iterator[Line]:
    """Compare an epoch with other loaders of two workers on the same tiles."""
    stream = lake.stream(TEACHER, mpp=MPP, pixels="uint8", batch_tiles=BATCH, threads=WORKERS)
    urls = lake.webdataset(TEACHER, mpp=MPP, pixels="uint8").urls
    walk = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(4096).decode("rgb8")
    walkers = wds.WebLoader(
        walk.to_tuple("jpg").batched(BATCH),
        batch_size=None,
        num_workers=WORKERS,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    arms: dict[str, Work] = {
        "stream": lambda: drained(stream),
        "webdataset": lambda: drained(walkers),
    }
    targets = {"webdataset": 2.5, "litdata": 2.0}
    with contextlib.ExitStack() as stack:
        if litdata:
            peer = Litdata(litdata, folder / "litdata", jpegs)
            stack.callback(peer.close)
            arms["litdata"] = peer.epoch
        seconds = race(arms, rounds)
    for name in list(arms)[1:]:
        peer_title = f"{name}, {WORKERS} workers, pixels alone"
        title = f"lake.stream, pixels and a teacher, threads={WORKERS}"
        line = Line.of(title, peer_title, seconds, ("stream", name), targets[name])
        yield line.at(len(jpegs), "tiles")


def smaller_inputs(lake: Lake, rounds: int, tiles: int, folder: Path) -> Iterator[Line]:
    """Compare ways to 128 px of 256: full decode and resize, scaled decode, decoded tiles."""
    settings: dict[str, Any] = {"mpp": MPP, "pixels": "uint8", "batch_tiles": BATCH}
    settings |= {"input_px": INPUT_PX, "threads": WORKERS}
    keep: dict[str, Any] = {"cache_pixels_gb": 100.0, "cache_folder": str(folder / "pixels")}
    streams = {
        "full": lake.stream(TEACHER, **settings),
        "scaled": lake.stream(TEACHER, **settings, decode="scaled"),
        "kept": lake.stream(TEACHER, **settings, **keep),
    }
    arms: dict[str, Work] = {
        name: lambda stream=stream: drained(stream)  # type: ignore[misc]
        for name, stream in streams.items()
    }
    seconds = race(arms, rounds)
    peer = f"full decode and resize to {INPUT_PX} px"
    for title, arm, target in (
        ("lake.stream, decode='scaled'", "scaled", 1.8),
        ("lake.stream, second epoch with cache_pixels_gb", "kept", 4.0),
    ):
        yield Line.of(title, peer, seconds, (arm, "full"), target).at(tiles, "tiles")


def difference(lake: Lake) -> dict[str, Any]:
    """Return by how many grey levels a scaled decode differs from a full one and a resize."""
    settings: dict[str, Any] = {"mpp": MPP, "pixels": "uint8", "batch_tiles": BATCH}
    pairs = zip(
        lake.stream(TEACHER, **settings, input_px=INPUT_PX),
        lake.stream(TEACHER, **settings, input_px=INPUT_PX, decode="scaled"),
        strict=True,
    )
    absolute = np.concatenate(
        [
            np.abs(full.pixels.astype(np.int16) - scaled.pixels).ravel()  # type: ignore[union-attr, operator]
            for full, scaled in itertools.islice(pairs, 4)
        ]
    )
    return {
        "title": "grey levels between scaled and full decode",
        "mean": round(float(absolute.mean()), 3),
        "p99": float(np.quantile(absolute, 0.99)),
        "most": int(absolute.max()),
    }


class NoNetwork(TrainingTask):
    """A student that computes nothing, so that a loop's rate is that of its feed."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Linear(1, 1)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return a loss that does not depend on the batch."""
        one_B1 = torch.ones(len(batch.tile_id), 1)
        return {"nothing": self.number(one_B1)[:, 0]}

    def predict(self, batch: Batch) -> dict[str, FeaturePrediction]:
        """Return nothing."""
        return {}

    @property
    def student(self) -> nn.Module:
        """Return the one number."""
        return self.number

    @property
    def dim(self) -> int:
        """Return the width of the embedding."""
        return 1


def ceiling(lake: Lake, rounds: int, tiles: int) -> Iterator[Line]:
    """Compare an epoch of a student that computes nothing with the stream's own epoch."""
    recipe = slidelake.make_recipe("agglomerate", (TEACHER,), batch_tiles=BATCH, epochs=1000)
    names = lake.slides().select("slide_id").collect()["slide_id"].to_list()
    feed = Feed(lake=lake, recipe=recipe, slide_ids=names)
    streams = feed.training()
    loop = Loop(recipe, State.fresh(NoNetwork(), recipe.schedule), feed.training())
    epochs = itertools.count()

    def train() -> None:
        with contextlib.closing(mixed(streams, epoch=next(epochs), seed=0)) as batches:  # type: ignore[type-var]
            for _ in range(loop.epoch_steps):
                loop._step(batches)

    def read() -> None:
        drained(mixed(streams, epoch=next(epochs), seed=0))

    seconds = race({"loop": train, "stream": read}, rounds)
    title = "training loop of a student that computes nothing"
    line = Line.of(title, "its stream alone", seconds, ("loop", "stream"), 0.9)
    yield line.at(tiles // BATCH * BATCH, "tiles")


def main(
    rounds: Annotated[int, typer.Option(help="of each row")] = 5,
    slides: int = 4,
    tiles: int = 2000,
    seed: int = 0,
    litdata: Annotated[
        Path | None, typer.Option(help="Python of an environment with litdata; None: no such row")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON, with machine and versions."""
    # webdataset 1.0.2 leaves tars open until they are collected
    warnings.simplefilter("ignore", ResourceWarning)
    start = time.perf_counter()
    lines: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        folder = Path(name)
        sizes = slide_sizes(slides, tiles, seed)
        lake = make_lake(folder / "lake", sizes, with_pixels=slides, seed=seed)
        add_teacher(lake, TEACHER, random_features(sizes, DIM, seed))
        lake = lake.refreshed()
        jpegs = stored_tiles(lake)
        for part in (
            against_memory(lake, rounds, jpegs),
            smaller_inputs(lake, rounds, len(jpegs), folder),
            ceiling(lake, rounds, len(jpegs)),
            against_loaders(lake, rounds, jpegs, litdata=litdata, folder=folder),
        ):
            for line in part:
                typer.echo(line.text())
                lines.append(line)
        lines.append(difference(lake))
        typer.echo(str(lines[-1]))
        gc.collect()
    settings: dict[str, Any] = {
        "rounds": rounds,
        "slides": slides,
        "tiles": sum(sizes),
        "dim": DIM,
        "seed": seed,
    }
    settings |= {"batch": BATCH, "workers": WORKERS, "input_px": INPUT_PX}
    settings |= {"jpeg_bytes": round(sum(map(len, jpegs)) / len(jpegs))}
    settings |= {"litdata": "0.2.76 with simplejpeg" if litdata else None}
    typer.echo(f"-> {write_report(out, lines, settings, name='stream')}")
    typer.echo(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
