"""A cell of a MIL run beside the bare training step on bags in memory.

    python -m benchmarks.cells [--epochs 2] [--device cuda]

The run has 45 cells: 5 folds x 3 feature sets x 3 seeds, of 500 slides x 1,000 tiles x 256 dims. A
cell reads its patients' bags (the first of a feature set; later ones find them in memory), takes
statistics of the training tiles, trains gated ABMIL with validation after each epoch, predicts
validation and test patients and writes its files. The bare step is the same model, loss, clipping
and optimiser on float32 bags in memory, as many steps as the cell makes and nothing else.

Of each feature set the first cell and some of the 14 others are run; the run's time is theirs for
all 45. Epochs are few so that it takes minutes: with more, what a cell does once weighs less.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.report import Line, write_report
from benchmarks.store_lake import MPP, add_teacher, make_lake, random_features
from downstream import MilSettings, nested_folds
from downstream.mil.bag_sequence import floats
from downstream.mil.build import build_model
from downstream.mil.losses import BagTask
from downstream.mil.objective import LabelObjective
from downstream.run.cells import run_cell
from downstream.run.study import Cell, Patient, Study
from featurestore import Lake

SETS = ("a", "b", "c")
DIM, FOLDS, SEEDS = 256, 5, 3
CELLS_OF_SET = FOLDS * SEEDS


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Seconds of one feature set.

    Attributes:
        first: its first cell, which reads the bags.
        later: cells after it.
        bare: steps alone, as many as a cell makes.
    """

    first: float
    later: tuple[float, ...]
    bare: float

    @property
    def cells(self) -> float:
        """Return the seconds of all cells of the set."""
        return self.first + (CELLS_OF_SET - 1) * median(self.later)


def make_study(lake: Lake, epochs: int) -> Study:
    """Return the run, of patients with one slide each and labels that nothing tells."""
    names = sorted(lake.slides().select("slide_id").collect()["slide_id"].to_list())
    label = [at % 2 for at in range(len(names))]
    patients = tuple(
        Patient(patient_id=f"p-{name}", slide_ids=(name,), outcome=(float(y),))
        for name, y in zip(names, label, strict=True)
    )
    ids = [patient.patient_id for patient in patients]
    return Study(
        kind="mil",
        task="binary",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=SETS,
        models=("abmil",),
        mpps=(MPP,),
        splits=tuple(nested_folds(ids, label, folds=FOLDS, inner=1, seed=0)),
        seeds=SEEDS,
        seed=0,
        columns=("label",),
        classes=("0", "1"),
        head="",
        reference=SETS[0],
        margin=None,
        tune=0,
        accuracy=0.95,
        labels_sha256="",
        identities={},
        settings=MilSettings(epochs=epochs, patience=epochs),
        pooled=None,
        patients=patients,
    )


def bare_seconds(lake: Lake, cell: Cell, device: torch.device) -> float:
    """Return the seconds of a cell's training steps on bags in memory of the device."""
    settings, split = cell.study.settings, cell.splits[0]
    row = {patient.patient_id: patient for patient in cell.study.patients}
    bags = lake.bags(cell.arm.features, mpp=MPP)
    at = {name: number for number, name in enumerate(bags.ids)}
    held: list[tuple[Tensor, Tensor]] = []
    for one in split.train:
        features = bags[at[row[one].slide_ids[0]]].features.numpy()
        target = torch.tensor([row[one].outcome[0]]).to(device)
        held.append((floats(features)[None].to(device), target))
    labels = np.array([row[one].outcome[0] for one in split.train])
    objective = LabelObjective.fit(BagTask(kind="multiclass", outputs=2), labels, weighted=True)
    torch.manual_seed(0)
    model = build_model(
        cell.arm.model, objective.task, settings, widths=(DIM,), ratios=(),
        mean_D=np.zeros(DIM), std_D=np.ones(DIM),
    ).to(device).train()  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    begun = time.perf_counter()
    for _ in range(settings.epochs):
        for x_BND, target in held:
            loss = objective.loss(model(x_BND).logits, target).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimiser.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def timed_set(lake: Lake, cells: list[Cell], later: int, device: torch.device) -> Timed:
    """Return the seconds of some cells of a feature set, and of the bare steps between them."""
    first = run_cell(cells[0])
    cell_seconds, bare = [], []
    for cell in cells[1 : 1 + later]:
        bare.append(bare_seconds(lake, cell, device))
        cell_seconds.append(run_cell(cell))
    return Timed(first=first, later=tuple(cell_seconds), bare=median(bare))


def main(
    slides: int = 500,
    tiles: int = 1000,
    epochs: int = 2,
    later: Annotated[int, typer.Option(help="cells of each set besides the first")] = 2,
    device: Annotated[str, typer.Option(help="cpu, or cuda where there is one")] = "cpu",
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path(__file__).parent
    / "results",
) -> None:
    """Print the lines and write them as JSON, with machine and versions."""
    if (device == "cuda") != torch.cuda.is_available():
        msg = f"--device {device}, but cells run on a GPU where torch has one: hide it, or get one"
        raise typer.BadParameter(msg)
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        sizes = [tiles] * slides
        lake = make_lake(Path(name) / "lake", sizes, with_pixels=0, seed=0)
        for seed, features in enumerate(SETS):
            add_teacher(lake.refreshed(), features, random_features(sizes, DIM, seed))
        lake = lake.refreshed()
        study = make_study(lake, epochs)
        sets = [
            timed_set(lake, [c for c in study.cells() if c.arm.features == f], later,
                      torch.device(device))
            for f in SETS
        ]  # fmt: skip
    lines = _lines(sets, study)
    for line in lines:
        typer.echo(line.text())
    settings = {"slides": slides, "tiles": tiles, "dim": DIM, "epochs": epochs, "later": later}
    typer.echo(f"-> {write_report(out, lines, {**settings, 'device': device}, name='cells')}")


def _lines(sets: list[Timed], study: Study) -> list[Line]:
    """Return the time of the bare steps over that of cells: at least 0.8."""
    peer = "its training steps alone, bags in memory"
    cells = f"a cell, over all {len(study.cells())}"
    seconds = {
        cells: [one.cells / CELLS_OF_SET for one in sets],
        "the first cell of a feature set, which reads the bags": [one.first for one in sets],
        "a later cell": [median(one.later) for one in sets],
        peer: [one.bare for one in sets],
    }
    return [
        Line.of(title, peer, seconds, (title, peer), 0.8 if title == cells else None)
        for title in seconds
        if title != peer
    ]


if __name__ == "__main__":
    typer.run(main)
