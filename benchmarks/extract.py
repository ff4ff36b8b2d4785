"""Teachers over a lake's tiles, against the bare networks on pixels that are ready: in one run.

    python -m benchmarks.extract --rounds 3

Our arm is what an actor of `slidelake extract` does with a fragment: read shards, decode, resize,
normalise, run the network, check, write float16 columns with checksums. The peer has normalised
pixels in memory and does nothing but run the network, in the same parts and on as many threads.
Ray's start, and the commit at the end, are in neither. On a GPU (`--device cuda`) a ViT-B and a
ViT-L with random weights are run in bfloat16 beside.
"""

import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from benchmarks.report import Line, write_report
from featurestore import Lake, LakeConfig, create_lake, open_lake
from ingest import CARDS, Teacher, find_teachers
from ingest.cut import cut_slide
from ingest.select.sources import fingerprint
from ingest.teachers.encoder import preprocess, resized
from ingest.teachers.extract_plan import plan
from ingest.teachers.extractor import Extractor
from ingest.teachers.find_teacher import load_encoder
from ingest.teachers.work.units import Outcome, Unit
from ingest.tile_jpeg import decode_tile
from tests.conftest import shard_samples
from tests.worlds.wide_slide import write_wide_slide

Device = Literal["cuda", "cpu"]

TEACHERS = ("efficientnet_lite0", "efficientnet_lite1")
MPP = 0.5
GPU_NETWORKS = ("vit_base_patch16_224", "vit_large_patch16_224")
OWN = """
import timm, torch
from slidelake import Card
CARD = Card(name="{name}", architecture="{name}", dim={dim}, input_px=224, mean=(0.5,) * 3,
            std=(0.5,) * 3, poolings=("cls",), prefix_tokens=1, patch_px=16, precision="bfloat16")
def build():
    torch.manual_seed(0)
    return timm.create_model("{name}", num_classes=0)
"""


def make_lake(folder: Path, *, columns: int, rows: int) -> Lake:
    """Return a lake of the real slide, repeated, in tiles of 256 px."""
    slide = str(write_wide_slide(folder / "wide.svs", columns=columns, rows=rows))
    config = LakeConfig(mpps=(MPP,))
    lake = create_lake(folder / "lake", config)
    size, mark = fingerprint(slide)
    row = {"slide_id": "wide", "uri": slide, "bytes": size, "fingerprint": mark}
    slide_cut = cut_slide(lake.store, config, lake.committer.register([row])[0])
    lake.committer.commit_slides([slide_cut])
    return open_lake(lake.uri)


class Ours:
    """Repeats the work of one actor, with networks that are loaded once."""

    def __init__(self, lake: Lake, threads: int, device: Device) -> None:
        self.lake, self.threads, self.device = lake, threads, device
        self._extractor = Extractor()

    def __call__(self, teachers: Sequence[Teacher], units: Sequence[Unit]) -> float:
        """Return the seconds for all columns of some teachers; their files are not committed."""
        start = time.perf_counter()
        for unit in units:
            settings = {
                "store": self.lake.uri,
                "threads": self.threads,
                "device": self.device,
            }
            item = {
                "unit": pickle.dumps(unit),
                "teachers": pickle.dumps(list(teachers)),
                **settings,
            }
            outcome: Outcome = pickle.loads(self._extractor(item)["outcome"])
            if outcome.reason:
                raise RuntimeError(outcome.reason)
        return time.perf_counter() - start


def bare(lake: Lake, teacher: Teacher, threads: int, device: Device) -> Callable[[], float]:
    """Return a function that measures the seconds of the network over all pixels in memory."""
    gpu = device == "cuda"
    encoder = load_encoder(
        lake.store, teacher, device=device, precision=teacher.card.precision if gpu else "float32"
    )
    shard = str(lake.tiles_of(mpp=MPP)["shard"][0])
    jpegs = [sample["jpg"] for sample in shard_samples(lake.store.path(shard)).values()]
    card = teacher.card
    pixels = resized(
        np.stack([decode_tile(jpeg) for jpeg in jpegs]), card.input_px, card.interpolation
    )
    ready = preprocess(pixels, card.mean, card.std).to(device)
    parts = torch.split(ready, encoder.part_tiles)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    keys = np.zeros(len(parts[0]), np.int64)

    def run() -> float:
        start = time.perf_counter()
        for _ in pool.map(lambda x: encoder._embed(x, keys, teacher.outputs), parts):
            pass
        return time.perf_counter() - start

    return run


def measure(
    lake: Lake, names: Sequence[str], rounds: int, threads: int, device: Device
) -> list[Line]:
    """Measure each teacher against its bare network, and all in one run against one run each."""
    teachers = find_teachers(lake.store, names)
    gpus = device == "cuda"
    units = {t.card.name: plan(lake, [t], [MPP], engine="torch", device=device) for t in teachers}
    together = plan(lake, teachers, [MPP], engine="torch", device=device)
    by_onnx = [] if gpus else _by_onnx(lake, names[0])
    ours = Ours(lake, threads, device)
    clocks = {t.card.name: bare(lake, t, threads, device) for t in teachers}
    seconds: dict[str, list[float]] = {"together": [], "apart": []}
    for turn in range(rounds + 1):  # the first one warms up
        apart = 0.0
        for teacher in teachers:
            name = teacher.card.name
            our_seconds, bare_seconds = ours([teacher], units[name]), clocks[name]()
            apart += our_seconds
            if turn:
                seconds.setdefault(name, []).append(our_seconds)
                seconds.setdefault(f"bare {name}", []).append(bare_seconds)
        both = ours(teachers, together)
        for teacher, work in by_onnx:
            our_seconds = ours([teacher], work)
            if turn:
                seconds.setdefault("onnx", []).append(our_seconds)
        if turn:
            seconds["together"].append(both)
            seconds["apart"].append(apart)
    tiles = sum(unit.tiles for unit in together)
    lines = [
        Line.of(
            f"{name}, {tiles:,} tiles", "its bare network", seconds, (name, f"bare {name}"), 0.9
        )
        for name in units
    ]
    title = f"{len(names)} teachers in one run"
    lines.append(Line.of(title, "a run each", seconds, ("together", "apart"), 1.0))
    if by_onnx:
        title = f"{names[0]} by ONNX Runtime"
        lines.append(Line.of(title, "by torch", seconds, ("onnx", names[0])))
    return [line.at(tiles, "tiles") for line in lines]


def _by_onnx(lake: Lake, name: str) -> list[tuple[Teacher, list[Unit]]]:
    """Return the same network in ONNX Runtime, under the name of a copy of its card."""
    copy = replace(CARDS[name], name=f"{name}-onnx")
    CARDS[copy.name] = copy
    (teacher,) = find_teachers(lake.store, [copy.name])
    return [(teacher, plan(lake, [teacher], [MPP], engine="onnxruntime"))]


def main(
    rounds: int = 3,
    threads: int = 2,
    columns: Annotated[int, typer.Option(help="Copies of the real slide side by side.")] = 3,
    rows: Annotated[int, typer.Option(help="And one below the other.")] = 2,
    device: Annotated[Device, typer.Option(help="cpu, or cuda for a GPU.")] = "cpu",
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as folder:
        lake = make_lake(Path(folder), columns=columns, rows=rows)
        names = list(TEACHERS)
        if device == "cuda":
            names = []
            for name, dim in zip(GPU_NETWORKS, (768, 1024), strict=True):
                path = Path(folder) / f"{name}.py"
                path.write_text(OWN.format(name=name, dim=dim))
                names.append(str(path))
        lines = measure(lake, names, rounds, threads, device)
    for line in lines:
        typer.echo(line.text())
    settings: dict[str, str | int] = {"rounds": rounds, "threads": threads, "device": device}
    if device == "cuda":
        settings["gpu"] = torch.cuda.get_device_name()
    typer.echo(f"-> {write_report(out, lines, settings, name=f'extract-{device}')}")


if __name__ == "__main__":
    typer.run(main)
