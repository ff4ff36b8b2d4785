"""What comparing every bag with its checksum costs a whole `mil` run.

    python -m benchmarks.first_reads [--bags 24]

The cells of a run (folds of gated ABMIL on one feature set) are run one after the other, each on a
lake that it opens itself, as Ray tasks do: so every cell compares all bags that it reads. CPU time
is counted, not the clock, and the share of what is spent in comparing; other work on the machine
moves both alike. A second line is of reading alone.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.store_lake import MPP, add_teacher, make_lake, random_features, slide_sizes
from downstream import MilSettings, nested_folds
from downstream.run.cells import fit_and_store
from downstream.run.study import Patient, Study
from featurestore import Lake, open_lake
from featurestore.read.first_reads import FirstReads

SPENT = {"comparing": 0.0}
DEPTH = [0]


def counted(method: Callable[..., None]) -> Callable[..., None]:
    """Return a method with its CPU time summed; calls within another call are counted once."""

    def counting(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the method takes them
        start = time.process_time()
        DEPTH[0] += 1
        try:
            method(*args, **kwargs)
        finally:
            DEPTH[0] -= 1
            SPENT["comparing"] += 0.0 if DEPTH[0] else time.process_time() - start

    return counting


def study_of(lake: Lake, bags: int, epochs: int) -> Study:
    """Return a study of three folds of ABMIL on one feature set."""
    label = [at % 2 for at in range(bags)]
    patients = tuple(
        Patient(patient_id=f"p{at:02d}", slide_ids=(f"s{at:02d}",), outcome=(float(y),))
        for at, y in enumerate(label)
    )
    ids = [patient.patient_id for patient in patients]
    return Study(
        kind="mil",
        task="binary",
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=("big",),
        models=("abmil",),
        mpps=(MPP,),
        splits=tuple(nested_folds(ids, label, folds=3, inner=1, seed=0)),
        seeds=1,
        seed=0,
        columns=("label",),
        classes=("0", "1"),
        head="",
        reference="big",
        margin=None,
        tune=0,
        accuracy=0.95,
        labels_sha256="",
        identities={},
        settings=MilSettings(epochs=epochs, patience=epochs),
        pooled=None,
        patients=patients,
    )


def share_of_run(lake: Lake, bags: int, epochs: int) -> dict[str, float]:
    """Return the CPU seconds of a run's cells, and the part that compares checksums."""
    SPENT["comparing"] = 0.0
    start = time.process_time()
    for cell in study_of(lake, bags, epochs).cells():
        fit_and_store(open_lake(lake.uri), cell)
    whole = time.process_time() - start
    return {"cpu_s": whole, "comparing_s": SPENT["comparing"], "share": SPENT["comparing"] / whole}


def share_of_reading(lake: Lake, bags: int) -> dict[str, float]:
    """Return the CPU seconds of reading every bag once, and the part that compares checksums."""
    SPENT["comparing"] = 0.0
    fresh, start = open_lake(lake.uri), time.process_time()
    for at in range(bags):
        fresh.bag(f"s{at:02d}", "big", mpp=MPP)
    whole = time.process_time() - start
    return {"cpu_s": whole, "comparing_s": SPENT["comparing"], "share": SPENT["comparing"] / whole}


def main(
    bags: Annotated[int, typer.Option(help="slides, a bag each")] = 24,
    tiles: Annotated[int, typer.Option(help="median tiles of a bag")] = 2000,
    width: Annotated[int, typer.Option(help="of a feature")] = 1280,
    epochs: Annotated[int, typer.Option(help="of each training")] = 10,
) -> None:
    """Print the shares."""
    torch.set_num_threads(1)
    for name in ("compare", "compare_read"):
        setattr(FirstReads, name, counted(getattr(FirstReads, name)))
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as name:
        sizes = slide_sizes(bags, tiles, seed=0)
        lake = make_lake(Path(name) / "lake", sizes, with_pixels=0, seed=0)
        add_teacher(lake, "big", random_features(sizes, width, seed=0))
        lake = lake.refreshed()
        share_of_reading(lake, bags)  # imports and the page cache
        figures = {
            "bags": bags,
            "tiles": sum(sizes),
            "width": width,
            "epochs": epochs,
            "reading": share_of_reading(lake, bags),
            "run": share_of_run(lake, bags, epochs),
        }
    typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
