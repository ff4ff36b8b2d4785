"""MIL from the lake against h5 files, against torchmil, and folds side by side on Ray.

    python -m benchmarks.downstream [--bags 64]

Arms take turns within a round, and train gated ABMIL of the same widths and dropout with AdamW.
"Bags kept" is what a run does (they stay in memory up to a limit), "anew" reads every bag in every
epoch. The peers read a file a slide as TRIDENT lays it out: with our own step, which shows what
reading is worth, and with torchmil's model, which is what people run.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torchmil.models import ABMIL

from benchmarks.report import Line, write_report
from benchmarks.store_lake import MPP, add_teacher, make_lake, random_features, slide_sizes
from benchmarks.store_peers import read_h5, write_trident
from cluster import ray_map, ray_session
from downstream import MilSettings, nested_folds
from downstream.mil.aggregators.pooling import Abmil
from downstream.mil.bag_sequence import floats
from downstream.mil.losses import BagTask
from downstream.mil.model import MilModel
from downstream.run.cells import fit_and_store, run_cell
from downstream.run.feature_bags import PatientBags
from downstream.run.study import Cell, Patient, Study
from featurestore import Lake

HIDDEN, ATTENTION = (512, 256), 256
SAME, SAME_HALF = "the same step on TRIDENT's h5", "the same bfloat16 step on TRIDENT's h5"
TORCHMIL = "torchmil's ABMIL on TRIDENT's h5"
PAIRS = (
    ("bags kept", TORCHMIL, 2.0),
    ("bags kept", SAME, 2.0),
    ("bags kept, bfloat16", SAME_HALF, 2.0),
    ("bags kept, bfloat16", TORCHMIL, None),
    ("bags read anew", TORCHMIL, None),
    ("bags read anew", SAME, None),
)
Read = Callable[[int], Tensor]
Step = Callable[[Tensor, int], Tensor]


def epoch(step: Step, read: Read, bags: int, optimiser: torch.optim.Optimizer) -> float:
    """Return the seconds of a pass over all bags."""
    start = time.perf_counter()
    for at in range(bags):
        loss = step(read(at), at % 2)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return time.perf_counter() - start


def turns(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round, after a round to warm up."""
    seconds_of_arm: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            seconds = arm()
            if turn:
                seconds_of_arm[name].append(seconds)
    return seconds_of_arm


def our_step(width: int, hidden: int, *, precision: str = "float32") -> tuple[nn.Module, Step]:
    """Return our ABMIL and the function of a bag's loss."""
    torch.manual_seed(0)
    model = MilModel(
        Abmil(width, hidden=hidden, attention=ATTENTION), BagTask(kind="binary")
    ).train()

    def step(x_ND: Tensor, label: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(x_ND)
        return model.loss(output, torch.tensor([float(label)])).mean()

    return model, step


def their_step(width: int, hidden: int) -> tuple[nn.Module, Step]:
    """Return torchmil's gated ABMIL, of the same widths and first layer, and its loss function."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.25))
    model = ABMIL(in_shape=(width,), att_dim=ATTENTION, gated=True, feat_ext=before).train()
    criterion = nn.BCEWithLogitsLoss()

    def step(x_ND: Tensor, label: int) -> Tensor:
        loss: Tensor = criterion(model(x_ND[None]), torch.tensor([float(label)]))
        return loss

    return model, step


def reading(lake: Lake, folder: Path, bags: int, width: int, rounds: int) -> list[Line]:
    """Compare an epoch from the lake with an epoch from h5 files, at two sizes of model."""
    slides = [(f"s{at:02d}",) for at in range(bags)]
    fresh = PatientBags(lake, slides, "big", mpps=(MPP,), cache_bytes=0)
    kept = PatientBags(lake, slides, "big", mpps=(MPP,))
    reads: dict[str, Read] = {
        "lake": lambda at: floats(fresh[at].features),
        "kept": lambda at: floats(kept[at].features),
        "h5": lambda at: torch.from_numpy(read_h5(folder / f"{at}.h5")),
    }
    lines = []
    for hidden in HIDDEN:
        ours, half = our_step(width, hidden), our_step(width, hidden, precision="bfloat16")
        torchmil_step = their_step(width, hidden)
        arms = {
            "bags kept": (*ours, reads["kept"]),
            "bags kept, bfloat16": (*half, reads["kept"]),
            "bags read anew": (*ours, reads["lake"]),
            SAME: (*ours, reads["h5"]),
            SAME_HALF: (*half, reads["h5"]),
            TORCHMIL: (*torchmil_step, reads["h5"]),
        }
        epochs = {
            name: _arm(*arm, bags, fused=name != TORCHMIL)  # how ours is set
            for name, arm in arms.items()
        }
        seconds = turns(epochs, rounds)
        for one, peer, target in PAIRS:
            title = f"an epoch of ABMIL {hidden}, {one}"
            lines.append(Line.of(title, peer, seconds, (one, peer), target).at(bags, "bags"))
    alone = {name: partial(sum_seconds, read, bags) for name, read in reads.items()}
    line = Line.of("bags read, lake", "TRIDENT's h5", turns(alone, rounds), ("lake", "h5"))
    return [*lines, line.at(bags, "bags")]


def _arm(
    model: nn.Module, step: Step, read: Read, bags: int, *, fused: bool
) -> Callable[[], float]:
    """Return an epoch with its own optimiser; ours is fused."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    return partial(epoch, step, read, bags, optimiser)


def sum_seconds(read: Read, bags: int) -> float:
    """Return the seconds of reading alone."""
    start = time.perf_counter()
    for at in range(bags):
        read(at)
    return time.perf_counter() - start


def against_torchmil(lake: Lake, bags: int, width: int, rounds: int) -> Line:
    """Compare forward and backward passes on the same bags in memory."""
    slides = [(f"s{at:02d}",) for at in range(bags)]
    kept = PatientBags(lake, slides, "big", mpps=(MPP,))
    held = [floats(kept[at].features) for at in range(bags)]
    arms = {}
    pairs = {"ours": our_step(width, HIDDEN[0]), "theirs": their_step(width, HIDDEN[0])}
    for name, (model, step) in pairs.items():
        optimiser = torch.optim.SGD(model.parameters(), lr=0.0)
        arms[name] = partial(epoch, step, held.__getitem__, bags, optimiser)
    seconds = turns(arms, rounds)
    line = Line.of("ABMIL, forward and backward", "torchmil's", seconds, ("ours", "theirs"), 1.0)
    return line.at(bags, "bags")


def folds_side_by_side(lake: Lake, bags: int, rounds: int) -> Line:
    """Compare 5 folds x 3 feature sets as Ray tasks on all cores with a loop in one process."""
    label = [at % 2 for at in range(bags)]
    patients = tuple(
        Patient(patient_id=f"p{at:02d}", slide_ids=(f"s{at:02d}",), outcome=(float(y),))
        for at, y in enumerate(label)
    )
    ids = [patient.patient_id for patient in patients]
    made = Study(
        kind="mil",
        task="binary",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=("a", "b", "a+b"),
        models=("abmil",),
        mpps=(MPP,),
        splits=tuple(nested_folds(ids, label, folds=5, inner=1, seed=0)),
        seeds=1,
        seed=0,
        columns=("label",),
        classes=("0", "1"),
        head="",
        reference="a",
        margin=None,
        tune=0,
        accuracy=0.95,
        labels_sha256="",
        identities={},
        settings=MilSettings(epochs=6, patience=6, max_tiles=256),
        pooled=None,
        patients=patients,
    )

    def loop(cells: list[Cell]) -> float:
        start = time.perf_counter()
        for cell in cells:
            fit_and_store(lake, cell)
        return time.perf_counter() - start

    def on_ray(cells: list[Cell]) -> float:
        start = time.perf_counter()
        for _ in ray_map(run_cell, cells):
            pass
        return time.perf_counter() - start

    turn = itertools.count()  # another run each time: nothing is found finished
    arms = {
        "ray": lambda: on_ray(replace(made, seed=next(turn)).cells()),
        "loop": lambda: loop(replace(made, seed=next(turn)).cells()),
    }
    with ray_session(ray_data=False):
        seconds = turns(arms, rounds)
    line = Line.of("5 folds x 3 feature sets on Ray", "a plain loop", seconds, ("ray", "loop"), 1.5)
    return line


def shown(lines: list[Line]) -> list[Line]:
    """Print lines as soon as they are known."""
    for line in lines:
        typer.echo(line.text())
    return lines


def main(
    bags: Annotated[int, typer.Option(help="slides, a bag each")] = 64,
    tiles: Annotated[int, typer.Option(help="median tiles of a bag")] = 4000,
    width: Annotated[int, typer.Option(help="of a feature")] = 1280,
    rounds: int = 3,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the table and write it as JSON."""
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        folder = Path(name)
        sizes = slide_sizes(bags, tiles, seed=0)
        lake = make_lake(folder / "lake", sizes, with_pixels=0, seed=0)
        features = random_features(sizes, width, seed=0)
        write_trident(folder / "h5", features)
        add_teacher(lake, "big", features)
        for teacher, seed in (("a", 1), ("b", 2)):
            add_teacher(lake.refreshed(), teacher, random_features(sizes, 64, seed))
        lake = lake.refreshed()
        lines = shown(reading(lake, folder / "h5", bags, width, rounds))
        lines += shown([against_torchmil(lake, min(bags, 16), width, rounds)])
        lines += shown([folds_side_by_side(lake, bags, rounds)])
    settings = {"bags": bags, "tiles": tiles, "width": width, "rounds": rounds}
    typer.echo(f"-> {write_report(out, lines, settings, name='downstream')}")


if __name__ == "__main__":
    typer.run(main)
