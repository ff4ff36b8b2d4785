"""How often two feature sets of equal worth are called different, and unequal ones found.

    python -m benchmarks.null_cohorts --work /tmp/null --cohorts 1000

A null cohort has two feature sets that hold the same signal under noise of their own. Each goes
through the studies' own folds, models and comparisons (no lake and no Ray: features are in memory).
`p < 0.05` should come out in 5 of 100: more is a test that finds what is not there. Beside it stand
cohorts of the same size in which one set holds more of the signal: the share that is found is the
power. Cohorts that are done are kept in `--work`, so that a run that was cut off goes on.

`corrected` is the test that pages, `--json`, Holm and non-inferiority use; `fitted models` is the
bootstrap over patients, which does not train anew.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray

from benchmarks.report import RESULTS, table, write_report
from downstream.cells.cell_models import fit_member
from downstream.cells.cell_patients import CellPatients
from downstream.cells.prediction_rows import rows_of
from downstream.measures.arm_comparisons import compare_arms
from downstream.measures.fold_test import overlap_of
from downstream.probes.probe_folds import scored, tile_splits
from downstream.probes.probe_result import compare_probes
from downstream.probes.probe_spec import ProbeOptions
from downstream.run.fit_settings import MilSettings, SurvivalSettings
from downstream.run.run_result import predictions_table
from downstream.run.study import Cell, Patient, Study
from downstream.splits.folds import nested_folds

Kind = Literal["class", "class, 5 repeats", "survival", "probe"]
Floats = NDArray[np.float64]
Row = dict[str, Any]

PATIENTS, WIDTH, FOLDS = 80, 64, 5
TILES = 12
#: Strength of the signal in both sets of a null cohort, and in the weaker set of a planted one.
SIGNAL, WEAKER = 0.2, 0.05


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients with a hidden signal, and two feature sets.

    Attributes:
        signal: [P] the hidden signal of each patient.
        features: name -> [P, D].
    """

    signal: Floats
    features: dict[str, Floats] = field(default_factory=dict)


def draw_cohort(rng: np.random.Generator, strengths: dict[str, float], repeats: int = 1) -> Cohort:
    """Return a cohort; a feature set holds the signal in one random direction, under noise.

    Args:
        rng: source of randomness.
        strengths: feature set -> strength of the signal; noise has a deviation of 1 per channel.
        repeats: rows of each patient (tiles), which share half of their noise.
    """
    signal = rng.standard_normal(PATIENTS)
    features = {}
    for name, strength in strengths.items():
        direction = rng.standard_normal(WIDTH)
        direction *= strength * math.sqrt(WIDTH) / np.linalg.norm(direction)
        own = rng.standard_normal((PATIENTS, WIDTH))
        if repeats == 1:
            features[name] = np.outer(signal, direction) + own
            continue
        each = rng.standard_normal((PATIENTS * repeats, WIDTH))
        both = (np.repeat(own, repeats, axis=0) + each) / math.sqrt(2)
        features[name] = np.outer(np.repeat(signal, repeats), direction) + both
    return Cohort(signal=signal, features=features)


class KnownPatients(CellPatients):
    """Patients of a cell whose pooled features are known, without a lake."""

    def __init__(self, cell: Cell, pooled_PD: Floats) -> None:
        self.cell, self.settings = cell, cell.study.settings
        self.patients = cell.study.patients
        ids = [patient.patient_id for patient in self.patients]
        self._row = {one: at for at, one in enumerate(ids)}
        self._pooled = dict(zip(ids, pooled_PD, strict=True))
        self._soft = {}


def study_row(kind: Kind, rng: np.random.Generator, strengths: dict[str, float], seed: int) -> Row:
    """Return the comparison of the two sets of one cohort, through a study's own path."""
    cohort = draw_cohort(rng, strengths)
    if kind.startswith("class"):
        outcome = (cohort.signal + rng.logistic(size=PATIENTS) > 0).astype(np.float64)[:, None]
        strata: list[float] = outcome[:, 0].tolist()
    else:
        death = rng.exponential(np.exp(-cohort.signal))
        follow = rng.exponential(1.5, PATIENTS)
        outcome = np.stack([np.minimum(death, follow), death <= follow], axis=1)
        strata = outcome[:, 1].tolist()
    study = _study(kind, list(strengths), outcome, strata, seed)
    rows = []
    for cell in study.cells():
        patients = KnownPatients(cell, cohort.features[cell.arm.features])
        members = [fit_member(patients, split) for split in cell.splits]
        rows += rows_of(cell, patients, members)
    tested = predictions_table(study, rows).filter(pl.col("part") == "test")
    return compare_arms(study, tested)[0]


def _study(
    kind: Kind, features: list[str], outcome_PK: Floats, strata: list[float], seed: int
) -> Study:
    """Return a study of two arms with one model each, the defaults of the commands."""
    ids = [f"p{at:03d}" for at in range(PATIENTS)]
    survival, repeats = kind.startswith("survival"), 5 if "5 repeats" in kind else 1
    return Study(
        kind="survival" if survival else "mil",
        task="survival" if survival else "binary",
        lake_uri="none",
        lake_version=1,
        features=tuple(features),
        models=("cox",) if survival else ("linear",),
        mpps=(1.0,),
        splits=tuple(nested_folds(ids, strata, folds=FOLDS, inner=1, repeats=repeats, seed=seed)),
        seeds=1,
        seed=seed,
        columns=("time", "event") if survival else ("label",),
        classes=() if survival else ("0", "1"),
        head="",
        reference=features[1],
        margin=None,
        tune=0,
        accuracy=1.0,
        labels_sha256="",
        identities={},
        settings=MilSettings(),
        pooled=SurvivalSettings() if survival else None,
        patients=tuple(
            Patient(patient_id=one, slide_ids=(one,), outcome=tuple(row))
            for one, row in zip(ids, outcome_PK.tolist(), strict=True)
        ),
    )


def probe_row(kind: Kind, rng: np.random.Generator, strengths: dict[str, float], seed: int) -> Row:
    """Return the comparison of two sets of tiles, by linear probes over folds of patients."""
    del kind
    cohort = draw_cohort(rng, strengths, repeats=TILES)
    odds = np.repeat(cohort.signal, TILES) + rng.logistic(size=PATIENTS * TILES)
    rows = pl.DataFrame(
        {
            "patient_id": np.repeat([f"p{at:03d}" for at in range(PATIENTS)], TILES),
            "label": (odds > 0).astype(np.int64),
        }
    )
    options = ProbeOptions(folds=FOLDS, models=("linear",), seed=seed)
    splits = tile_splits(rows, options)
    scores = {
        name: scored(x_ND.astype(np.float32), rows, splits, "linear", 2, options)
        for name, x_ND in cohort.features.items()
    }
    one, other = strengths
    return compare_probes(
        rows["label"].to_numpy(),
        scores[one].fold,
        {name: part.scores for name, part in scores.items()},
        rows["patient_id"].to_list(),
        reference=other,
        overlap=overlap_of(splits),
        margin=None,
        seed=seed,
    )[0]


COMPARED: dict[Kind, Callable[[Kind, np.random.Generator, dict[str, float], int], Row]] = {
    "class": study_row,
    "class, 5 repeats": study_row,
    "survival": study_row,
    "probe": probe_row,
}


def p_values(kind: Kind, cohorts: int, work: Path, *, planted: bool) -> list[tuple[float, float]]:
    """Return (corrected, fitted models) p values of cohorts; those in `work` are not run again."""
    path = work / f"{kind.replace(', ', '-')}-{'planted' if planted else 'null'}.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a") as file:
        for number in range(len(known), cohorts):
            rng = np.random.default_rng([number, int(planted), list(COMPARED).index(kind)])
            strengths = {"one": SIGNAL, "other": WEAKER if planted else SIGNAL}
            row = COMPARED[kind](kind, rng, strengths, number)
            known.append([row["p_value"], row["fitted_models"]["p_value"], row["estimate"]])
            file.write(json.dumps(known[-1]) + "\n")
            file.flush()
    return [(corrected, fitted) for corrected, fitted, _ in known[:cohorts]]


def main(
    work: Annotated[Path, typer.Option(help="Folder for cohorts that are done.")],
    cohorts: Annotated[int, typer.Option(help="Null cohorts of each kind.")] = 1000,
    planted: Annotated[int, typer.Option(help="Cohorts with a planted difference.")] = 300,
    repeated: Annotated[int, typer.Option(help="Cohorts of kinds with 5 repetitions.")] = 400,
) -> None:
    """Run all kinds; print the table and write it to `benchmarks/results/`."""
    work.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind in COMPARED:
        most = repeated if "repeats" in kind else cohorts
        null = np.array(p_values(kind, most, work, planted=False), dtype=np.float64)
        found = np.array(p_values(kind, min(planted, most), work, planted=True), dtype=np.float64)
        for at, name in enumerate(("corrected", "fitted models")):
            tested, power = null[:, at], found[:, at]
            share = float((tested < 0.05).mean())
            lines.append(
                {
                    "kind": kind,
                    "test": name,
                    "null cohorts": len(tested),
                    "p < 0.05, null": round(share, 4),
                    "standard error": round(math.sqrt(share * (1 - share) / len(tested)), 4),
                    "planted cohorts": len(power),
                    "p < 0.05, planted": round(float((power < 0.05).mean()), 4),
                }
            )
    typer.echo(table(lines))
    settings = {
        "patients": PATIENTS,
        "width": WIDTH,
        "folds": FOLDS,
        "tiles": TILES,
        "signal": SIGNAL,
        "weaker": WEAKER,
    }
    typer.echo(write_report(RESULTS, lines, settings, name="null-cohorts"))


if __name__ == "__main__":
    typer.run(main)
