"""The cost of running a student, and the time that caching its teachers saved.

All times are wall clock on the machine that evaluates, apart from a training step's, which the
student's report holds.
"""

import itertools
import os
import platform
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.evaluate.compared_students import EvaluationSplit, StudentRecord
from distill.evaluate.embeddings import Runner
from distill.evaluate.sampled_tiles import BATCH_TILES, Int64Array, RgbArray, SampledTiles
from featurestore import Lake, ShardReader
from ingest import decode_tile

PASSES = (1, 2, 5, 10, 20, 50, 100, 200)
MOST_TILES = 1024

Numbers = dict[str, float]


def machine(device: str, threads: int) -> dict[str, Any]:
    """Describe the machine on which times are measured."""
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {"cpu": _cpu_name(), "cpus": os.cpu_count(), "threads": threads, "gpu": gpu}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def throughput(
    lake: Lake, runner: Runner, *, mpp: float, slides: Sequence[str], alone_s: float
) -> Numbers:
    """Measure the speed of a network, alone and with reading and decoding before it.

    Args:
        lake: where the slides are.
        runner: the network.
        mpp: of the tiles.
        slides: read in order, 1,024 tiles of them at most.
        alone_s: seconds of a tile in the network alone.

    Returns:
        `parameters`; `network_tiles_s`, resizing and network on decoded tiles;
        `end_to_end_tiles_s`, reading of shards and JPEG decoding too; `slides_min`, that by the
        mean number of tiles of a slide, `tiles_per_slide`; `tiles`, how many were run. Finding
        tissue and cutting slides are not in it.
    """
    mean = float(lake.tiles_of(mpp=mpp, slide_ids=slides)["tiles"].to_numpy().mean())
    start, done = time.perf_counter(), 0
    for keys, pixels in _decoded(lake, mpp, slides, runner.threads):
        runner(pixels, keys)
        done += len(keys)
    tiles_s = done / (time.perf_counter() - start)
    return {
        "parameters": float(runner.parameters),
        "network_tiles_s": 1 / alone_s,
        "end_to_end_tiles_s": tiles_s,
        "slides_min": 60 * tiles_s / mean,
        "tiles_per_slide": mean,
        "tiles": float(done),
    }


def _decoded(
    lake: Lake, mpp: float, slides: Sequence[str], threads: int
) -> Iterator[tuple[Int64Array, RgbArray]]:
    """Yield keys and pixels of 64 tiles at a time; the next ones are decoded meanwhile."""

    def work(reader: ShardReader, keys: Int64Array) -> tuple[Int64Array, RgbArray]:
        return keys, np.stack([decode_tile(bytes(jpeg)) for jpeg in reader.jpegs(keys)])

    waiting: deque[Future[tuple[Int64Array, RgbArray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for reader, keys in itertools.islice(_parts(lake, mpp, slides), MOST_TILES // BATCH_TILES):
            waiting.append(pool.submit(work, reader, keys))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _parts(
    lake: Lake, mpp: float, slides: Sequence[str]
) -> Iterator[tuple[ShardReader, Int64Array]]:
    places = lake.tiles_of(mpp=mpp, slide_ids=slides).drop_nulls("shard").sort("shard")
    for place in places.iter_rows(named=True):
        reader = ShardReader.of(lake.store, place)
        for at in range(0, len(reader), BATCH_TILES):
            yield reader, reader.tile_id[at : at + BATCH_TILES]


def read_seconds(tiles: SampledTiles) -> float:
    """Measure the seconds to decode a tile, in one thread."""
    start = time.perf_counter()
    some = tiles.jpeg[:BATCH_TILES]
    for jpeg in some:
        decode_tile(jpeg)
    return (time.perf_counter() - start) / len(some)


def training(
    lake: Lake, student: StudentRecord, split: EvaluationSplit, mpps: Sequence[float]
) -> Numbers | None:
    """Return the numbers of a student's training from its report; None if it lacks them.

    Returns:
        `epochs`; `tiles` of an epoch, as the lake has them now; `seconds_per_tile` of a step, which
        includes the wait for data.
    """
    epochs, batch = (_number(student.recipe, name) for name in ("epochs", "batch_tiles"))
    trained_tiles = float(student.report.get("steps", 0)) * (batch or 0)
    seconds = float(student.report.get("train_seconds", 0))
    if not epochs or not trained_tiles or not seconds:
        return None
    tiles = sum(int(lake.tiles_of(mpp=m, slide_ids=split.train)["tiles"].sum()) for m in mpps)
    return {"epochs": epochs, "tiles": float(tiles), "seconds_per_tile": seconds / trained_tiles}


def _number(recipe: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a recipe, or of its schedule."""
    number = recipe.get(name, (recipe.get("schedule") or {}).get(name))
    return None if number is None else float(number)


def amortisation(
    trained: Numbers, teacher_s: Mapping[str, float], decode_s: float
) -> dict[str, Any]:
    """Compute seconds of training with cached and with recomputed teachers, by epochs x students.

    Both costs depend on the product alone, the number of passes over the tiles. Cached: teachers
    run over all tiles once, with a pass of decoding of their own; then every pass is a student's
    step. Recomputed: every pass is a step with all teachers in it. The student's own backward pass
    and decoding are in the step.

    Args:
        trained: as `training` gives it.
        teacher_s: seconds of a tile, per teacher with weights on this machine.
        decode_s: seconds to decode a tile.

    Returns:
        `passes`, `cached_s`, `recomputed_s` side by side; `break_even_passes`, from which on
        caching is cheaper: `1 + decode_s / teachers' s`; `most_saved`, the ratio of both costs in
        the limit of many passes; and what they were made of.
    """
    tiles, step = trained["tiles"], trained["seconds_per_tile"]
    teachers = sum(teacher_s.values())
    return {
        "tiles": tiles,
        "epochs": trained["epochs"],
        "student_seconds_per_tile": step,
        "teacher_seconds_per_tile": dict(teacher_s),
        "decode_seconds_per_tile": decode_s,
        "passes": list(PASSES),
        "cached_s": [tiles * (teachers + decode_s + passes * step) for passes in PASSES],
        "recomputed_s": [tiles * passes * (teachers + step) for passes in PASSES],
        "break_even_passes": 1 + decode_s / teachers,
        "most_saved": (teachers + step) / step,
    }
