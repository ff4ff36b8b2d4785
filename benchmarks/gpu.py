"""A GPU fed by the lake: decoding on CPU threads and on the device, and whether results agree.

    python -m benchmarks.gpu [--device cpu]

One script of under eight minutes with one JSON. First the rates: a ViT-S student in bfloat16 on
batches that lie on the device (the bare step), and on batches of `lake.stream`: pixels decoded by
CPU threads, or JPEGs that the device decodes (torchvision; nvImageCodec where it is installed). A
thread prepares batches ahead in pinned memory and copies them on a stream of its own; a step waits
for the device every tenth time only. Then the agreement: extract, distill, mil and predict run on
the device and on the CPU, and must give the same to a cosine above 0.999. What a row can't measure
here is named in it. Left out of the clock: making the lake and the first epoch.
"""

import contextlib
import importlib
import queue
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import timm
import torch
import torch.nn.functional as F
import torchvision.io
import typer
from torch import Tensor, nn

import slidelake
from benchmarks.recipes import LITE0
from benchmarks.report import write_report
from benchmarks.store_lake import (
    MPP,
    TILE_PX,
    add_teacher,
    make_lake,
    random_features,
    slide_sizes,
)
from cluster import WorkerSettings
from distill.train.views import normalised, sized
from downstream import MilSettings, Plan
from examples.cohort import make_cohort
from featurestore import Lake, TileBatch, open_lake

TEACHER, DIM = "small", 768
AHEAD = 3
LOOK_EVERY = 10
AGREE = 0.999
NAME = "student"

Decode = Callable[[list[bytes]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch on the device: uint8 pixels [B, C, H, W] and features [B, D]."""

    pixels: Tensor
    features: Tensor
    ready: Any = None


class Feed:
    """Batches that a thread of its own prepares ahead.

    Args:
        batches: batches of a stream.
        device: device of the training.
        input_px: side of the student's input.
        decode: function that decodes JPEGs on the device; None where the stream has pixels.
    """

    def __init__(
        self,
        batches: Iterator[TileBatch],
        *,
        device: torch.device,
        input_px: int,
        decode: Decode | None = None,
    ) -> None:
        self._batches, self._device, self._input_px = batches, device, input_px
        self._decode = decode
        self._queue: queue.Queue[Prepared | BaseException | None] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            with self._own_stream() as stream:
                for batch in self._batches:
                    self._put(self._prepared(batch, stream))
                    if self._stop.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - it is raised where batches are taken
            last = error
        self._put(last)

    def _put(self, one: "Prepared | BaseException | None") -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(one, timeout=0.1)
                return

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[Any]:
        if self._device.type != "cuda":
            yield None
            return
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            yield stream

    def _prepared(self, batch: TileBatch, stream: Any) -> Prepared:  # noqa: ANN401 - of torch.cuda
        features = self._moved(torch.from_numpy(batch.features[TEACHER]))
        if self._decode is None:
            assert batch.pixels is not None
            pixels = sized(self._moved(torch.from_numpy(batch.pixels)), self._input_px)
        else:
            pixels = self._decode(batch.jpeg or [])
            pixels = sized(pixels.permute(0, 2, 3, 1), self._input_px)
        ready = None
        if stream is not None:
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(stream)
        return Prepared(pixels=pixels, features=features, ready=ready)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def __iter__(self) -> Iterator[Prepared]:
        while (one := self._queue.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            if one.ready is not None:
                torch.cuda.current_stream().wait_event(one.ready)
                for tensor in (one.pixels, one.features):
                    tensor.record_stream(torch.cuda.current_stream())
            yield one

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def decoders(device: torch.device) -> dict[str, Decode]:
    """Return the decoders of JPEGs on the device that are installed; on a CPU torchvision's."""

    def by_torchvision(jpegs: list[bytes]) -> Tensor:
        coded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
        rgb = torchvision.io.ImageReadMode.RGB
        with (
            warnings.catch_warnings()
        ):  # of 0.29 on torchvision says that TorchCodec comes after it
            warnings.simplefilter("ignore", DeprecationWarning)
            if device.type == "cpu":
                return torch.stack([torchvision.io.decode_jpeg(one, mode=rgb) for one in coded])
            return torch.stack(torchvision.io.decode_jpeg(coded, mode=rgb, device=device))

    found: dict[str, Decode] = {"torchvision": by_torchvision}
    if device.type == "cuda":
        with contextlib.suppress(ImportError):
            nvimgcodec = importlib.import_module("nvidia.nvimgcodec")
            decoder = nvimgcodec.Decoder()

            def by_nvimgcodec(jpegs: list[bytes]) -> Tensor:
                images = decoder.decode(jpegs)
                tiles = [torch.as_tensor(image.cuda(), device=device) for image in images]
                return torch.stack(tiles).permute(0, 3, 1, 2)

            found["nvImageCodec"] = by_nvimgcodec
    return found


class Student:
    """A timm network that is trained to match a teacher's features in bfloat16."""

    def __init__(self, architecture: str, input_px: int, device: torch.device) -> None:
        torch.manual_seed(0)
        is_sized = {"img_size": input_px} if architecture.startswith("vit") else {}
        self._device = device
        self._trunk = timm.create_model(architecture, num_classes=0, **is_sized).to(device)
        self._head = nn.Linear(self._trunk.num_features, DIM).to(device)
        trained = [*self._trunk.parameters(), *self._head.parameters()]
        self._optimiser = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
        self._steps = 0
        self.loss = 0.0

    def step(self, batch: Prepared) -> None:
        """Do a step; the loss is looked at, which waits for the device, every tenth time."""
        with torch.autocast(self._device.type, torch.bfloat16):
            predicted = self._head(self._trunk(normalised(batch.pixels)))
        loss = 1 - F.cosine_similarity(predicted.float(), batch.features.float()).mean()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._steps += 1
        if self._steps % LOOK_EVERY == 0:
            self.loss = float(loss.detach())


def waited(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(
    lake: Lake,
    *,
    device: torch.device,
    architecture: str,
    input_px: int,
    batch_tiles: int,
    steps: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """Return tiles/s of the bare step and of each feed, with its share of the bare rate."""
    student = Student(architecture, input_px, device)
    settings: dict[str, Any] = {"mpp": MPP, "batch_tiles": batch_tiles, "drop_last": True}
    scaled = {"input_px": input_px, "decode": "scaled"}
    feeds: dict[str, tuple[dict[str, Any], Decode | None]] = {
        "CPU threads decode": ({"pixels": "uint8"}, None),
        "CPU threads decode scaled": ({"pixels": "uint8", **scaled}, None),
        **{
            f"{name} decodes on {device.type}": ({"pixels": "jpeg"}, decode)
            for name, decode in decoders(device).items()
        },
    }
    streams = {name: lake.stream(TEACHER, **settings, **own) for name, (own, _) in feeds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ("bare step", *feeds)}
    for turn in range(rounds + 1):
        for name in seconds:
            taken_s = (
                _bare(student, device, input_px, batch_tiles, steps)
                if name == "bare step"
                else _fed(student, streams[name], feeds[name][1], device, input_px, steps)
            )
            if turn:
                seconds[name].append(taken_s)
    bare_s = float(np.median(seconds["bare step"]))
    tiles = steps * batch_tiles
    return [
        {
            "feed": name,
            "tiles_per_s": round(tiles / float(np.median(some))),
            "share of the bare step": round(bare_s / float(np.median(some)), 3),
        }
        for name, some in seconds.items()
    ]


def _bare(
    student: Student, device: torch.device, input_px: int, batch_tiles: int, steps: int
) -> float:
    shape = (batch_tiles, 3, input_px, input_px)
    batch = Prepared(
        pixels=torch.randint(0, 255, shape, dtype=torch.uint8, device=device),
        features=torch.randn(batch_tiles, DIM, device=device),
    )
    waited(device)
    start = time.perf_counter()
    for _ in range(steps):
        student.step(batch)
    waited(device)
    return time.perf_counter() - start


def _fed(
    student: Student,
    stream: Any,  # noqa: ANN401 - a Stream
    decode: Decode | None,
    device: torch.device,
    input_px: int,
    steps: int,
) -> float:
    def endless() -> Iterator[TileBatch]:
        while True:
            yield from stream

    batches = endless()
    feed = Feed(batches, device=device, input_px=input_px, decode=decode)
    waited(device)
    start = time.perf_counter()
    for done, batch in enumerate(feed, 1):
        student.step(batch)
        if done == steps:
            break
    waited(device)
    taken_s = time.perf_counter() - start
    feed.close()
    batches.close()  # type: ignore[attr-defined]
    return taken_s


def decoded_difference(lake: Lake, device: torch.device) -> dict[str, Any]:
    """Return by how many grey levels each decoder of the device differs from simplejpeg."""
    settings: dict[str, Any] = {"mpp": MPP, "batch_tiles": 64, "shuffle": False}
    full = next(iter(lake.stream(TEACHER, pixels="uint8", **settings))).pixels
    jpegs = next(iter(lake.stream(TEACHER, pixels="jpeg", **settings))).jpeg or []
    assert full is not None
    rows = {}
    for name, decode in decoders(device).items():
        pixels = decode(jpegs).permute(0, 2, 3, 1).cpu().numpy()
        apart = np.abs(pixels.astype(np.int16) - full)
        rows[name] = {"mean": round(float(apart.mean()), 3), "most": int(apart.max())}
    return {"grey levels from simplejpeg": rows}


# ---------------------------------------------------------------------- agreement


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the least cosine of the rows of two arrays [N, D]."""
    x, y = (np.asarray(one, np.float64) for one in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(((x * y).sum(axis=1) / norms).min())


def features_of(lake: Path, column: str) -> np.ndarray:
    """Return the features of all tiles [N, D], by key."""
    frame = open_lake(lake).features(column, mpp=MPP).sort("tile_id").collect()
    array: np.ndarray = frame[column].to_numpy()
    return array


def agreement(folder: Path, device: str, *, patients: int) -> list[dict[str, Any]]:
    """Run extract, distill, mil and predict on the device and on the CPU, and compare."""
    labels = make_cohort(
        folder / "cohort", patients=patients, slides=patients, width_px=1536, height_px=1280
    )
    config = slidelake.LakeConfig(tile_px=TILE_PX, mpps=(MPP,))
    slidelake.ingest(str(folder / "cpu"), [str(labels)], config)
    shutil.copytree(folder / "cpu", folder / "device")
    lakes = {"cpu": folder / "cpu", device if device != "cpu" else "device": folder / "device"}
    names = list(lakes)
    rows = []

    def extract(column: str) -> float:
        for name, lake in lakes.items():
            kind: Literal["cpu", "cuda"] = "cuda" if name == "cuda" else "cpu"
            workers = WorkerSettings(device=kind, workers=1)
            slidelake.extract(str(lake), column, workers=workers, precision="float32")
        return cosine(*(features_of(lake, column) for lake in lakes.values()))

    def note(step: str, value: float, **more: Any) -> None:  # noqa: ANN401
        rows.append({"step": step, "cosine": round(value, 6), "agrees": value > AGREE, **more})

    note("extract", extract(LITE0))
    recipe = slidelake.make_recipe(
        "agglomerate",
        (LITE0,),
        architecture="test_efficientnet",
        input_px=64,
        epochs=2,
        batch_tiles=32,
    )
    on_device = WorkerSettings(device="cpu" if device == "cpu" else "cuda", workers=1)
    report = slidelake.distill(str(lakes[names[1]]), recipe, name=NAME, workers=on_device)
    shutil.copytree(lakes[names[1]] / "students", lakes["cpu"] / "students")
    note("distill", extract(NAME), fidelity=report["fidelity"][LITE0]["cosine"])
    runs = {
        name: slidelake.run_mil(
            str(lake),
            labels,
            "label",
            [LITE0],
            mpps=[MPP],
            plan=Plan(folds=2),
            settings=MilSettings(epochs=3),
            gpus_per_worker=0.0 if name in ("cpu", "device") else 1.0,
        )["run"]
        for name, lake in lakes.items()
    }
    tables = [
        pl.read_parquet(lakes[name] / "runs" / run / "predictions.parquet")
        for name, run in runs.items()
    ]
    note("mil", _table_cosine(*tables))
    shutil.copytree(
        lakes[names[1]] / "runs" / runs[names[1]],
        lakes["cpu"] / "runs" / "of-device",
    )
    predictions = [
        slidelake.predict_patients(
            str(lakes[names[1]] if on else lakes["cpu"]),
            runs[names[1]],
            run_lake=str(lakes[names[1]]),
        ).rows
        for on in (True, False)
    ]
    note("predict", _table_cosine(*predictions))
    return rows


def _table_cosine(a: pl.DataFrame, b: pl.DataFrame) -> float:
    """Return the cosine of all numbers of two tables of predictions with the same rows."""
    names = [name for name, kind in a.schema.items() if kind.is_float()]
    keys = [name for name in ("arm", "repeat", "fold", "part", "patient_id") if name in a.columns]
    x, y = (one.sort(keys).select(names).to_numpy().ravel()[None] for one in (a, b))
    return cosine(np.nan_to_num(x), np.nan_to_num(y))


def main(
    device: Annotated[str, typer.Option(help="cuda, or cpu for a try")] = "cuda",
    architecture: Annotated[str, typer.Option(help="timm's name")] = "vit_small_patch16_224",
    input_px: int = 128,
    batch_tiles: int = 256,
    steps: Annotated[int, typer.Option(help="of an arm in a round")] = 40,
    rounds: int = 3,
    tiles: Annotated[int, typer.Option(help="of each of four slides, about")] = 4000,
    patients: Annotated[int, typer.Option(help="of the runs that are compared; 0: none")] = 8,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the rows and write one JSON; ends with 1 if a step does not agree with the CPU."""
    start = time.perf_counter()
    place = torch.device(device)
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        folder = Path(name)
        sizes = slide_sizes(4, tiles, 0)
        lake = make_lake(folder / "lake", sizes, with_pixels=4, seed=0)
        add_teacher(lake, TEACHER, random_features(sizes, DIM, 0))
        lake = lake.refreshed()
        lines: list[dict[str, Any]] = rates(
            lake,
            device=place,
            architecture=architecture,
            input_px=input_px,
            batch_tiles=batch_tiles,
            steps=steps,
            rounds=rounds,
        )
        lines.append(decoded_difference(lake, place))
        for line in lines:
            typer.echo(str(line))
        checks = agreement(folder / "agreement", device, patients=patients) if patients else []
        for line in checks:
            typer.echo(str(line))
    settings: dict[str, Any] = {"device": device, "architecture": architecture}
    settings |= {"input_px": input_px, "batch_tiles": batch_tiles, "steps": steps}
    settings |= {"rounds": rounds, "tiles": sum(sizes), "patients": patients}
    settings["device_name"] = torch.cuda.get_device_name() if place.type == "cuda" else "CPU"
    settings["seconds"] = round(time.perf_counter() - start, 1)
    typer.echo(f"-> {write_report(out, [*lines, *checks], settings, name=f'gpu-{device}')}")
    if not all(line["agrees"] for line in checks):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
