"""MIL on cohorts whose truth is known: it finds what was planted, and nothing where nothing is."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from downstream import MilSettings, nested_folds
from downstream.run.cells import fit_and_store
from downstream.run.run_result import collect
from downstream.run.study import Patient, Study
from featurestore import Lake
from tests.downstream.test_downstream_bags import WIDTH, Features, build
from tests.downstream.test_downstream_runs import COHORT, study
from tests.worlds.one_thread import one_thread

PEOPLE, TILES, KEYS = 40, 60, 2
RUNS = 20


__all__ = ["one_thread"]  # the fixture


def name(number: int) -> str:
    return f"s{number:02d}a"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Odd patients have a few tiles off the rest, which move their mean by less than its noise."""
    rng = np.random.default_rng(0)
    made: Features = {"good": {}, "noise": {}}
    for number in range(PEOPLE):
        for teacher in made:
            x = rng.standard_normal((TILES, WIDTH))
            if teacher == "good" and number % 2:
                x[:KEYS, 0] += 5.0
            made[teacher][name(number)] = x.astype(np.float16)
    return build(tmp_path_factory.mktemp("truth") / "lake", made)


def cohort(lake: Lake, label: list[int], **changes: object) -> Study:
    patients = tuple(
        Patient(patient_id=f"p{at:02d}", slide_ids=(name(at),), outcome=(float(y),))
        for at, y in enumerate(label)
    )
    ids = [patient.patient_id for patient in patients]
    splits = tuple(
        nested_folds(ids, label, folds=5, inner=1, seed=int(str(changes.get("seed", 0))))
    )
    made = study(lake, patients=patients, splits=splits, features=("good",))
    return replace(made, **changes)  # type: ignore[arg-type]


def finish(lake: Lake, made: Study) -> dict[str, dict[str, Any]]:
    for cell in made.cells():
        fit_and_store(lake, cell)
    metrics: dict[str, dict[str, Any]] = collect(lake, made, COHORT)["metrics"]
    return metrics


@pytest.mark.slow
def test_planted_tiles_are_found_and_attention_beats_the_mean(lake: Lake) -> None:
    label = [at % 2 for at in range(PEOPLE)]
    made = cohort(
        lake,
        label,
        models=("abmil", "linear"),
        reference="good / abmil",
        settings=MilSettings(hidden=32, epochs=40, learning_rate=2e-3),
    )
    metrics = finish(lake, made)
    assert metrics["good / abmil"]["estimate"] > 0.85
    pooled = {arm: found["measures"]["auroc"] for arm, found in metrics.items()}
    assert pooled["good / abmil"]["low"] > pooled["good / linear"]["estimate"]
    areas = []
    for cell in made.cells()[:5]:
        tiles = pl.read_parquet(io.BytesIO(lake.read_bytes(cell.attention_path)))
        for slide in cell.splits[0].test:
            if int(slide[1:]) % 2:
                arm_rows = tiles.filter(pl.col("slide_id") == f"s{slide[1:]}a").sort("tile_id")
                areas.append(roc_auc_score(np.arange(TILES) < KEYS, arm_rows["attention"]))
    assert len(areas) == PEOPLE // 2
    assert np.mean(areas) > 0.85


@pytest.mark.slow
def test_without_a_signal_intervals_cover_chance_about_as_often_as_they_claim(
    lake: Lake,
) -> None:
    """Twenty runs on shuffled labels: fewer than 16 of 20 would be one chance in 400."""
    covered, estimates = 0, []
    for seed in range(RUNS):
        label = np.random.default_rng(seed).permutation(np.arange(PEOPLE) % 2).tolist()
        settings = MilSettings(hidden=16, epochs=4, learning_rate=2e-3)
        made = cohort(
            lake, label, features=("noise",), reference="noise", seed=seed, settings=settings
        )
        metrics = finish(lake, made)["noise"]
        estimates.append(metrics["estimate"])
        covered += metrics["low"] <= 0.5 <= metrics["high"]
    assert covered >= 16
    assert 0.4 < np.mean(estimates) < 0.6
