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
from featurestore import Lake, ShardReader, Store
from ingest import decode_tile, read_rates_of

PASSES = (1, 2, 5, 10, 20, 50, 100, 200)
MOST_TILES = 1024

Numbers = dict[str, float]


def machine_facts(device: str, threads: int) -> dict[str, Any]:
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
        lake: the lake that holds the slides.
        runner: the network.
        mpp: mpp of the tiles.
        slides: slides that are read in order, at most 1,024 tiles in all.
        alone_s: seconds that the network alone needs for a tile.

    Returns:
        `parameters`; `network_tiles_s`, resizing and network on decoded tiles;
        `end_to_end_tiles_s`, reading of shards and JPEG decoding too; `slides_min`,
        slides in a minute by the mean number of tiles of a slide, `tiles_per_slide`; `tiles`, the
        number of tiles that were run. Tissue detection and tiling are not included.
    """
    mean = float(lake.tiles_of(mpp=mpp, slide_ids=slides)["tiles"].to_numpy().mean())
    start, tiles_done = time.perf_counter(), 0
    for keys, pixels in _decoded_batches(lake, mpp, slides, runner.threads):
        runner(pixels, keys)
        tiles_done += len(keys)
    tiles_s = tiles_done / (time.perf_counter() - start)
    return {
        "parameters": float(runner.parameters),
        "network_tiles_s": 1 / alone_s,
        "end_to_end_tiles_s": tiles_s,
        "slides_min": 60 * tiles_s / mean,
        "tiles_per_slide": mean,
        "tiles": float(tiles_done),
    }


def _decoded_batches(
    lake: Lake, mpp: float, slides: Sequence[str], threads: int
) -> Iterator[tuple[Int64Array, RgbArray]]:
    """Yield keys and pixels of 64 tiles at a time; the next batches are decoded meanwhile."""

    def decoded_batch(reader: ShardReader, keys: Int64Array) -> tuple[Int64Array, RgbArray]:
        return keys, np.stack([decode_tile(bytes(jpeg)) for jpeg in reader.jpegs(keys)])

    pending_batches: deque[Future[tuple[Int64Array, RgbArray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for reader, keys in itertools.islice(
            _key_batches(lake, mpp, slides), MOST_TILES // BATCH_TILES
        ):
            pending_batches.append(pool.submit(decoded_batch, reader, keys))
            if len(pending_batches) > threads:
                yield pending_batches.popleft().result()
        while pending_batches:
            yield pending_batches.popleft().result()


def _key_batches(
    lake: Lake, mpp: float, slides: Sequence[str]
) -> Iterator[tuple[ShardReader, Int64Array]]:
    shard_rows = lake.tiles_of(mpp=mpp, slide_ids=slides).drop_nulls("shard").sort("shard")
    for shard_row in shard_rows.iter_rows(named=True):
        reader = ShardReader.of(lake.store, shard_row)
        for at in range(0, len(reader), BATCH_TILES):
            yield reader, reader.tile_id[at : at + BATCH_TILES]


def read_seconds(tiles: SampledTiles) -> float:
    """Measure the seconds to decode a tile, in one thread."""
    start = time.perf_counter()
    jpegs = tiles.jpeg[:BATCH_TILES]
    for jpeg in jpegs:
        decode_tile(jpeg)
    return (time.perf_counter() - start) / len(jpegs)


def training_numbers(
    lake: Lake, student: StudentRecord, split: EvaluationSplit, mpps: Sequence[float]
) -> Numbers | None:
    """Return the numbers of a student's training from its report; None if it lacks them.

    Returns:
        `epochs`; `tiles`, the number of tiles of an epoch, as the lake has them now;
        `seconds_per_tile`, seconds of a step for each tile, the wait for data included.
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


def kept_seconds(store: Store, teachers: Sequence[str], device: str) -> Numbers:
    """Return seconds for a tile by teacher, as the extract that wrote its column measured them.

    Those of one worker on the same kind of device, decoding and all; none for another device, or
    where no extract was recorded.
    """
    records = read_rates_of(store)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    rates = {
        name: float(records.get(name, {}).get(kind, {}).get("tiles_per_s_per_worker", 0))
        for name in teachers
    }
    return {name: 1 / rate for name, rate in rates.items() if rate > 0}


def amortisation(
    trained: Numbers, teacher_s: Mapping[str, float], decode_s: float
) -> dict[str, Any]:
    """Compute seconds of training with cached and with recomputed teachers, by epochs x students.

    Both costs depend on the product alone, the number of passes over the tiles. Cached: teachers
    run over all tiles once, with a pass of decoding of their own; then every pass is a student's
    step. Recomputed: every pass is a step with all teachers in it. The student's own backward pass
    and decoding are in the step.

    Args:
        trained: numbers of the training, from `training_numbers`.
        teacher_s: seconds for a tile, by name of each teacher, measured here or by its extract.
        decode_s: seconds to decode a tile.

    Returns:
        `passes`, `cached_s`, `recomputed_s` side by side; `break_even_passes`, the number of passes
        from which caching is cheaper: `1 + decode_s / teachers' s`; `most_saved`, the ratio of both
        costs in the limit of many passes; and the numbers from which they were computed.
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
