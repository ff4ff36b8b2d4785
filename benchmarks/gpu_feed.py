"""How busy a GPU is kept by the pipeline of an extract: a GPU and decoders of stated speeds.

    python -m benchmarks.gpu_feed

Simulated are the GPU, which sleeps for so many milliseconds a tile, one part of a batch after the
other, and the CPU's work on a tile: decoding, and resizing with normalising, which sleep as long as
one core took for them here, on as many simulated cores as there are decoders. Real are all else of
a unit: shards read, threads, queues, checks, float16, checksums, written columns.
Busy is the GPU's time over the unit's time, from its first shard to its finished file; the bound is
what these decoders could feed at best. The last rows decode and resize in earnest on two threads.
"""

import pickle
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import typer

from benchmarks.report import table, write_report
from featurestore import (
    GridCut,
    Lake,
    LakeConfig,
    ShardWriter,
    SlideCut,
    create_lake,
    tile_ids,
    tiles_table,
)
from ingest.teachers.cards.card import Card, Engine, Precision
from ingest.teachers.encoder import RunningBatch, cropped, one_thread_each, preprocess, resized
from ingest.teachers.extract_plan import plan
from ingest.teachers.extractor import Extractor
from ingest.teachers.find_teacher import Teacher
from ingest.teachers.outputs import Output
from ingest.teachers.views import region_tiles
from ingest.teachers.work.units import Outcome, Unit
from ingest.tile_jpeg import decode_tiles

MPP, TILE_PX, INPUT_PX, DIM, SLIDES = 0.5, 256, 224, 1536, 4
PART_TILES = 64
NAME = "sleeper"
CARD = Card(
    name=NAME,
    architecture=NAME,
    dim=DIM,
    input_px=INPUT_PX,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    licence="none",
    source="none",
)


def make_lake(folder: Path, tiles: int) -> tuple[Lake, Teacher, list[bytes]]:
    """Return a lake of some slides with so many tiles together, its teacher, and its JPEGs."""
    lake = create_lake(folder, LakeConfig(tile_px=TILE_PX, mpps=(MPP,)))
    names = [{"slide_id": f"s{n}", "uri": f"s{n}.svs"} for n in range(SLIDES)]
    chance = np.random.default_rng(0)
    jpegs = [_jpeg(chance) for _ in range(32)]
    cuts = [_cut(lake, row, tiles // SLIDES, jpegs) for row in lake.committer.register(names)]
    lake.committer.commit_slides(cuts)
    pooled = Output(column=NAME, pooling="cls", sample=None, layer=None, stain=None, dim=DIM)
    return lake.refreshed(), Teacher(card=CARD, outputs=(pooled,), sha256="0"), jpegs


def _jpeg(chance: np.random.Generator) -> bytes:
    """Return a tile of about 18 kB, as tissue has at this quality."""
    coarse = chance.integers(60, 220, (64, 64, 3), np.uint8)
    pixels = cv2.resize(coarse, (TILE_PX, TILE_PX), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _cut(lake: Lake, row: dict[str, Any], tiles: int, jpegs: Sequence[bytes]) -> SlideCut:
    at = np.arange(tiles)
    y, x = at // 128, at % 128
    ids = tile_ids(row["slide"], MPP, y, x)
    with ShardWriter(lake.store, f"tiles/mpp0.5/{row['slide']:06d}-0.tar") as shard:
        for n, key in enumerate(ids.tolist()):
            shard.add(key, jpegs[n % len(jpegs)], {})
    assert shard.shard is not None
    columns = {
        "tile_id": ids,
        "slide": np.full(tiles, row["slide"]),
        "slide_id": [row["slide_id"]] * tiles,
        "grid_y": y,
        "grid_x": x,
        "y": y * TILE_PX,
        "x": x * TILE_PX,
        "tissue": np.ones(tiles),
    }
    grid = GridCut(
        tiles=tiles_table(MPP, TILE_PX, columns),
        shard=shard.shard,
        effective_mpp=MPP,
        tile_px_level0=TILE_PX,
        grid_px_level0=TILE_PX,
        grid_width=128,
        grid_height=int(y.max()) + 1,
    )
    return SlideCut(row={**row, "mpp": MPP}, grids={MPP: grid})


@dataclass(kw_only=True)
class Machine:
    """A GPU and CPU cores of stated speeds, which sleep; zero milliseconds are done in earnest.

    Attributes:
        gpu_ms: milliseconds a tile on the GPU.
        decode_ms: milliseconds a tile of decoding; 0 decodes.
        prepare_ms: milliseconds a tile of resizing and normalising; 0 resizes and normalises.
        decoders: number of cores, and of threads of the worker.
        gpu_s: seconds in which the GPU was busy.
    """

    gpu_ms: float
    decode_ms: float
    prepare_ms: float
    decoders: int
    gpu_s: float = 0.0

    def __post_init__(self) -> None:
        """Make the locks of the GPU and of the cores."""
        self._gpu = threading.Lock()
        self._cores = threading.Semaphore(self.decoders)
        self._pixels = np.zeros((256, TILE_PX, TILE_PX, 3), np.uint8)

    def decoded(self, jpegs: Sequence[memoryview]) -> npt.NDArray[np.uint8]:
        """Decode the JPEGs of a batch, or sleep as long as that takes."""
        if not self.decode_ms:
            return decode_tiles(jpegs)
        with self._cores:
            time.sleep(len(jpegs) * self.decode_ms / 1e3)
        return self._pixels[: len(jpegs)]  # what writing pixels costs is in decode_ms

    def embedded(
        self, tiles: npt.NDArray[np.uint8]
    ) -> tuple[dict[str, npt.NDArray[np.float32]], float]:
        """Return zeros for some tiles, after the time that the CPU and the GPU have to take."""
        at = time.perf_counter()
        if self.prepare_ms:
            with self._cores:
                time.sleep(len(tiles) * self.prepare_ms / 1e3)
        else:
            prepared(tiles)
        with self._gpu:
            began = time.perf_counter()
            time.sleep(len(tiles) * self.gpu_ms / 1e3)
            self.gpu_s += time.perf_counter() - began
        return {NAME: np.zeros((len(tiles), DIM), np.float32)}, time.perf_counter() - at

    @property
    def bound(self) -> float:
        """Return the share of its time that the GPU is busy if no other thing takes time."""
        fed_ms = (self.decode_ms + self.prepare_ms) / self.decoders
        return min(1.0, self.gpu_ms / fed_ms) if fed_ms else 1.0


def prepared(tiles: npt.NDArray[np.uint8]) -> object:
    """Resize and normalise tiles as an encoder does."""
    sized = cropped(resized(tiles, INPUT_PX, "bicubic"), INPUT_PX)
    return preprocess(sized, CARD.mean, CARD.std)


class Sleeper:
    """An encoder on a simulated machine."""

    part_tiles = PART_TILES

    def __init__(self, machine: Machine) -> None:
        self._machine, self._pool = machine, one_thread_each(machine.decoders)

    def start(self, tiles: npt.NDArray[np.uint8], _: object, __: Sequence[Output]) -> RunningBatch:
        """Start a batch in parts, each by a thread."""
        parts = [tiles[at : at + PART_TILES] for at in range(0, len(tiles), PART_TILES)]
        return RunningBatch(parts=[self._pool.submit(self._machine.embedded, x) for x in parts])


class SimulatedExtractor(Extractor):
    """The worker's pipeline, with an encoder that sleeps."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._sleeper = Sleeper(machine)

    def _encoder(self, teacher: Teacher, precision: Precision, engine: Engine) -> Any:  # noqa: ANN401 - it is no Encoder
        return self._sleeper


def busy(lake: Lake, teacher: Teacher, unit: Unit, machine: Machine) -> tuple[float, float]:
    """Run a unit as a worker with a GPU; return the GPU's share of its time, and tiles a second."""
    task_row = {
        "unit": pickle.dumps(unit),
        "teachers": pickle.dumps([teacher]),
        "store": lake.uri,
        "threads": machine.decoders,
        "device": "cuda",  # the sizes of batches; the encoder is simulated
    }
    with mock.patch.object(region_tiles, "decode_tiles", machine.decoded):
        answer = SimulatedExtractor(machine)(task_row)
    outcome: Outcome = pickle.loads(answer["outcome"])
    if outcome.reason:
        raise RuntimeError(outcome.reason)
    return machine.gpu_s / outcome.wall_s, outcome.tiles / outcome.wall_s


def cost_ms(jpegs: Sequence[bytes]) -> tuple[float, float]:
    """Return milliseconds a tile of decoding, and of resizing and normalising, on one core."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_cost_ms, jpegs).result()


def _cost_ms(jpegs: Sequence[bytes]) -> tuple[float, float]:
    one_thread_each(1).submit(lambda: None).result()
    some = [jpegs[n % len(jpegs)] for n in range(PART_TILES)]
    pixels = decode_tiles(some)
    times: list[tuple[float, float]] = []
    for _ in range(10):
        start = time.perf_counter()
        decode_tiles(some)
        middle = time.perf_counter()
        prepared(pixels)
        times.append((middle - start, time.perf_counter() - middle))
    decoding, preparing = (sorted(some)[5] for some in zip(*times, strict=True))
    return 1e3 * decoding / PART_TILES, 1e3 * preparing / PART_TILES


def main(
    tiles: Annotated[int, typer.Option(help="Tiles of the fragment.")] = 8192,
    seconds: Annotated[float, typer.Option(help="Longest time of the GPU in a cell.")] = 12.0,
    decode_ms: Annotated[float, typer.Option(help="Decoding a tile; 0 measures it.")] = 0.0,
    prepare_ms: Annotated[float, typer.Option(help="Resizing a tile; 0 measures it.")] = 0.0,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON."""
    lines = []
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        lake, teacher, jpegs = make_lake(Path(folder) / "lake", tiles)
        measured = cost_ms(jpegs)
        decode_ms, prepare_ms = decode_ms or measured[0], prepare_ms or measured[1]
        (whole,) = plan(lake, [teacher], [MPP], device="cuda")
        for gpu_ms in (0.1, 1.0, 10.0):
            unit = _shorter(whole, round(1e3 * seconds / gpu_ms))
            for decoders in (1, 4, 16):
                machine = Machine(
                    gpu_ms=gpu_ms, decode_ms=decode_ms, prepare_ms=prepare_ms, decoders=decoders
                )
                lines.append(_line(lake, teacher, unit, machine, "simulated"))
            real = Machine(gpu_ms=gpu_ms, decode_ms=0.0, prepare_ms=0.0, decoders=2)
            lines.append(_line(lake, teacher, unit, real, "real"))
    typer.echo(table(lines))
    settings = {
        "tiles": tiles,
        "decode_ms": round(decode_ms, 3),
        "prepare_ms": round(prepare_ms, 3),
        "measured_ms": [round(value, 3) for value in measured],
        "batch_tiles": 256,
        "part_tiles": PART_TILES,
    }
    typer.echo(f"{settings}\n-> {write_report(out, lines, settings, name='gpu-feed')}")


def _shorter(unit: Unit, tiles: int) -> Unit:
    """Return the first slides of a unit, with at least so many tiles if there are so many."""
    from dataclasses import replace

    count = max(1, -(-tiles // (unit.tiles // SLIDES)))
    slides = unit.slides[:count]
    stop = slides[-1]["row_start"] + slides[-1]["tiles"]
    return replace(unit, slides=slides, rows=stop)


def _line(
    lake: Lake, teacher: Teacher, unit: Unit, machine: Machine, kind: str
) -> dict[str, str | int | float | None]:
    share, rate = busy(lake, teacher, unit, machine)
    return {
        "GPU, ms a tile": machine.gpu_ms,
        "decoders": machine.decoders,
        "their work": kind,
        "tiles": unit.tiles,
        "GPU busy": round(share, 3),
        "at best": round(machine.bound, 3) if kind == "simulated" else None,
        "tiles/s": round(rate),
    }


if __name__ == "__main__":
    typer.run(main)
