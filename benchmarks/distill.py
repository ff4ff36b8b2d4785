"""A step with cached teachers against the student alone, and against teachers run in the step.

    python -m benchmarks.distill [--device cuda] [--lake LAKE]

Arms take turns within a round, so that a slow machine slows all of them. "Student alone" trains on
batches that are in memory; "cached" reads, decodes and trains, as `slidelake distill` does; "live"
trains on the same batches in memory and runs the teachers on their pixels first.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import slidelake
from benchmarks.recipes import LITE0, LITE1, make_lake
from benchmarks.report import Line, write_report
from cluster import WorkerSettings, ray_session
from distill.recipes.recipe import Recipe
from distill.students.student_table import make_task
from distill.targets.missing_stats import fit_missing, split_slides
from distill.targets.norms import fit_norms, read_norms
from distill.train.batches import Feed, mixed
from distill.train.loop import Loop, State
from featurestore import Lake, TileBatch, open_lake
from ingest import find_teachers, load_encoder

TEACHERS = (LITE0, LITE1)
HELD = 8
WAIT_MOST = 0.05
COST_LEAST = 1 / 1.15
Arm = Iterator[TileBatch]


class Live:
    """Yields batches with features that the teachers compute now.

    Args:
        lake: the lake that names the teachers.
        batches: batches with pixels.
        device: device of the teachers.
    """

    def __init__(self, lake: Lake, batches: Arm, *, device: str) -> None:
        self._batches = batches
        self._teachers = find_teachers(lake.store, TEACHERS)
        threads = torch.get_num_threads()
        self._encoders = [
            load_encoder(lake.store, teacher, threads=threads, device=device)
            for teacher in self._teachers
        ]

    def __iter__(self) -> Arm:
        return self

    def __next__(self) -> TileBatch:
        batch = next(self._batches)
        features: dict[str, Any] = {}
        for encoder, teacher in zip(self._encoders, self._teachers, strict=True):
            assert batch.pixels is not None
            made = encoder(batch.pixels, batch.tile_id, teacher.outputs)
            features |= {name: x.astype(np.float16) for name, x in made.items()}
        return replace(batch, features=features)


def forever(loop: Loop, feed: Feed) -> Arm:
    """Yield the batches of a run, epoch after epoch."""
    streams = feed.training()
    for epoch in itertools.count():
        with contextlib.closing(mixed(streams, epoch=epoch, seed=0)) as batches:  # type: ignore[type-var]
            yield from batches


def measure(
    lake: Lake, recipe: Recipe, *, rounds: int, steps: int, device: str
) -> tuple[list[Line], float]:
    """Measure all arms; return the lines and the cached arm's share of time waiting for data."""
    train, _ = split_slides(lake, holdout=recipe.holdout, seed=0)
    needs = recipe.needs(lake.config.mpps)
    fit_missing(lake, needs, train)
    kept = read_norms(fit_norms(lake, recipe.targets, needs, train))
    task = make_task(lake, recipe, {key: norm.to(device) for key, norm in kept.items()}).to(device)
    feed = Feed(lake=lake, recipe=recipe, slide_ids=train)
    loop = Loop(recipe, State.fresh(task, recipe.schedule), feed.training(), device=device)
    held = list(itertools.islice(forever(loop, feed), HELD))
    arms: dict[str, Arm] = {
        "student": itertools.cycle(held),
        "cached": forever(loop, feed),
        "live": Live(lake, itertools.cycle(held), device=device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    waits: list[float] = []
    for turn in range(rounds + 1):
        for name, batches in arms.items():
            taken_s, waited = timed(loop, batches, steps)
            if turn:  # the first round warms up
                seconds[name].append(taken_s)
                waits += [waited / taken_s] if name == "cached" else []
    tiles = steps * recipe.schedule.batch_tiles
    step_name = "step with cached teachers"
    lines = [
        Line.of(step_name, "the student alone", seconds, ("cached", "student"), COST_LEAST),
        Line.of(step_name, "two teachers run in it", seconds, ("cached", "live")),
    ]
    return [line.at(tiles, "tiles") for line in lines], sum(waits) / len(waits)


def timed(loop: Loop, batches: Arm, steps: int) -> tuple[float, float]:
    """Return the seconds of `steps` steps, and the seconds of them that waited for data."""
    start, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        # A benchmark needs the step alone, without the run around it.
        waited += loop._step(batches).waited_s
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, waited


def workers(lake: str, epochs: int) -> dict[str, Any]:
    """Compare two workers with one, for a student of features."""
    speeds = {}
    for count in (1, 2):
        recipe = slidelake.make_recipe("shazam", TEACHERS, mpps=(0.5,), epochs=epochs)
        report = slidelake.distill(
            lake, recipe, name=f"bench-workers{count}", workers=WorkerSettings(workers=count)
        )
        speeds[count] = report["tiles_per_s"]
    return {
        "what": "two workers / one, student of features",
        "ratio": round(speeds[2] / speeds[1], 3),
        "tiles_per_s": speeds,
    }


def main(
    lake: Annotated[Path | None, typer.Option(help="made and thrown away if not given")] = None,
    architecture: Annotated[str, typer.Option(help="of the student")] = "efficientnet_b0",
    input_px: int = 128,
    batch_tiles: int = 64,
    precision: str = "float32",
    rounds: int = 3,
    steps: int = 12,
    epochs: Annotated[int, typer.Option(help="of the feature-only student")] = 20,
    device: Annotated[str, typer.Option(help="cpu, or cuda for a GPU")] = "cpu",
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder, ray_session():
        where = lake or Path(folder) / "lake"
        if not (where / "lake.json").exists():
            make_lake(where, patients=24, slides=32)
        recipe = slidelake.make_recipe(
            "agglomerate",
            TEACHERS,
            mpps=(0.5,),
            architecture=architecture,
            input_px=input_px,
            batch_tiles=batch_tiles,
            precision=precision,
            weighting="static",
        )
        lines, wait = measure(open_lake(where), recipe, rounds=rounds, steps=steps, device=device)
        both = workers(str(where), epochs)
    for line in lines:
        typer.echo(line.text())
    typer.echo(f"{wait:.4f} of the step waits for data (aim: {WAIT_MOST}, {wait < WAIT_MOST})")
    typer.echo(f"{both['ratio']:.3f} x {both['what']}: {both['tiles_per_s']} tiles/s")
    waiting = {"what": "share of the step waiting for data", "ratio": round(wait, 5)}
    settings = {"architecture": architecture, "input_px": input_px, "device": device}
    path = write_report(out, [*lines, waiting, both], settings, name=f"distill-{device}")
    typer.echo(f"-> {path}")


if __name__ == "__main__":
    typer.run(main)
