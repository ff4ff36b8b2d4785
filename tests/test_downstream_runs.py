"""Runs on a real lake: what a fold may see, what is stored, what a killed run does again.

Cells run in this process, without Ray.
"""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import downstream
from downstream import (
    AbmilSettings,
    Cohort,
    CohortError,
    CoxSettings,
    LeakageError,
    StudyError,
    run_mil,
)
from downstream.cells import FITS, fit_and_store
from downstream.runs import execute
from downstream.splits import patient_folds
from downstream.study import Cell, Kind, Patient, Study, check_features
from featurestore import Lake, LakeError
from tests.test_downstream_bags import MPP, PATIENTS, build, planted


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    rows = [f"p{p:02d},{p % 2},{20 - 10 * (p % 2) + p / 10},{int(p > 1)}" for p in range(PATIENTS)]
    path.write_text("\n".join(["patient_id,tumour,months,dead", *rows, "p99,1,3,1\n"]))
    return path


def study(lake: Lake, kind: Kind = "mil", **changes: Any) -> Study:  # noqa: ANN401
    label = np.arange(PATIENTS) % 2
    outcomes = [
        (float(y),) if kind == "mil" else (20.0 - 10 * y + p, 1.0) for p, y in enumerate(label)
    ]
    patients = [
        Patient(
            patient_id=f"p{p:02d}", slide_ids=(f"s{p:02d}a", f"s{p:02d}b"), fold=int(k), outcome=o
        )
        for p, (k, o) in enumerate(zip(patient_folds(label, 3, 0), outcomes, strict=True))
    ]
    made = Study(
        kind=kind,
        lake_uri=lake.uri,
        lake_version=lake.version,
        features=("good", "noise", "good+noise"),
        mpp=MPP,
        folds=3,
        seed=0,
        columns=("tumour",) if kind == "mil" else ("months", "dead"),
        classes=("0", "1") if kind == "mil" else (),
        labels_sha256="0",
        identities={},
        settings=AbmilSettings(hidden=16, attention=8, epochs=10, learning_rate=3e-3)
        if kind == "mil"
        else CoxSettings(components=4),
        patients=tuple(patients),
    )
    return replace(made, **changes)


COHORT = Cohort(patients=pl.DataFrame(), missing=["p99"], surplus=[])


class Inline:
    """Runs cells here, and stops as a killed run does after `most` of them."""

    def __init__(self, lake: Lake, most: int = 99) -> None:
        self.lake, self.most = lake, most
        self.calls: list[tuple[int, int]] = []

    def __call__(self, cells: Sequence[Cell], *, finished: int) -> None:
        self.calls.append((len(cells), finished))
        for cell in cells[: self.most]:
            fit_and_store(self.lake, cell)
        if self.most < len(cells):
            raise KeyboardInterrupt


def table(lake: Lake, run: str, name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(lake.read_bytes(f"runs/{run}/{name}.parquet")))


@pytest.mark.parametrize("kind", ["mil", "survival"])
def test_a_test_patient_changes_nobody_elses_prediction(
    lake: Lake, tmp_path: Path, kind: Kind
) -> None:
    cell = study(lake, kind).cells()[0]
    victim = cell.test[0]
    features = planted()
    for slide in victim.slide_ids:
        features["good"][slide][:] = 6e4
    poisoned = build(tmp_path / "lake", features)
    clean_rows, rows = (FITS[kind](where, cell).rows for where in (lake, poisoned))
    assert [row for row in rows if row["patient_id"] != victim.patient_id] == [
        row for row in clean_rows if row["patient_id"] != victim.patient_id
    ]
    assert rows != clean_rows


@pytest.mark.parametrize("share", ["patient_id", "slide_ids"])
def test_a_leaking_study_is_refused(lake: Lake, share: str) -> None:
    made = study(lake)
    first = made.patients[0]
    other = next(patient for patient in made.patients if patient.fold != first.fold)
    leaking = replace(other, **{share: getattr(first, share)})
    with pytest.raises(LeakageError, match="are both in fold"):
        replace(made, patients=(first, leaking, *made.patients[2:])).cells()


def test_mil_run(lake: Lake) -> None:
    made = study(lake)
    result = execute(lake, made, COHORT, Inline(lake))
    assert result["metrics"]["good"]["estimate"] > 0.9
    assert set(result["metrics"]) == {"good", "noise", "good+noise"}
    assert result["metrics"]["good"]["metric"] == "auroc"
    assert (result["patients"], result["slides"], result["missing"]) == (12, 24, ["p99"])
    assert json.loads(lake.read_bytes(f"runs/{made.run}/result.json")) == result
    predictions = table(lake, made.run, "predictions")
    assert predictions.height == 36
    assert predictions.select("features", "patient_id").is_duplicated().sum() == 0
    attention = table(lake, made.run, "attention")
    assert attention.height == 3 * PATIENTS * 11
    assert attention.columns == ["slide_id", "tile_id", "x", "y", "features", "attention"]
    sums = attention.with_columns(pl.col("slide_id").str.head(3)).group_by("slide_id", "features")
    assert np.allclose(sums.agg(pl.col("attention").sum())["attention"], 1, atol=1e-5)
    assert attention["x"].max() == 5 * 256


def test_survival_run(lake: Lake) -> None:
    made = study(lake, "survival")
    result = execute(lake, made, COHORT, Inline(lake))
    assert result["kind"] == "survival"
    assert result["metrics"]["good"]["estimate"] > 0.6
    predictions = table(lake, made.run, "predictions")
    good = predictions.filter(pl.col("features") == "good")
    # odd patients die early, and higher is worse
    odd = good.filter(pl.col("patient_id").str.tail(1).cast(pl.Int32) % 2 == 1)
    assert np.mean(odd["rank"].to_numpy()) > np.mean(good["rank"].to_numpy())
    assert good["high"].sum() == pytest.approx(6, abs=2)
    assert not lake.exists(f"runs/{made.run}/attention.parquet")


def test_a_killed_run_goes_on_and_a_finished_one_is_read(lake: Lake) -> None:
    made = study(lake, seed=1, features=("good",))
    with pytest.raises(KeyboardInterrupt):
        execute(lake, made, COHORT, Inline(lake, most=1))
    second, third = Inline(lake), Inline(lake)
    result = execute(lake, made, COHORT, second)
    assert second.calls == [(2, 1)]
    assert execute(lake, made, COHORT, third) == result
    assert third.calls == []
    unbroken = execute(lake, replace(made, labels_sha256="1"), COHORT, Inline(lake))
    assert unbroken["metrics"] == result["metrics"]
    assert unbroken["run"] != result["run"]


def test_everything_that_decides_a_result_is_in_the_name_of_the_run(lake: Lake) -> None:
    made = study(lake)
    patients = (replace(made.patients[0], slide_ids=("s00a",)), *made.patients[1:])
    others: list[dict[str, Any]] = [
        {"features": ("good",)},
        {"mpp": 1.0},
        {"seed": 1},
        {"labels_sha256": "1"},
        {"identities": {"good": "1"}},
        {"settings": AbmilSettings(epochs=3)},
        {"columns": ("grade",)},
        {"patients": patients},
    ]
    names = {made.run, *(replace(made, **change).run for change in others)}
    assert len(names) == 1 + len(others)
    assert replace(made, lake_uri="elsewhere").run == made.run


@pytest.mark.parametrize("features", [[], ["a", "a"], ["a+"], [""]])
def test_feature_sets_are_checked(features: list[str]) -> None:
    with pytest.raises(StudyError, match="feature set"):
        check_features(features)


def test_options_are_checked_before_ray_starts(
    lake: Lake, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.ray_session", None)
    with pytest.raises(CohortError, match="did you mean 'tumour'"):
        run_mil(lake.uri, labels, "tumor", ["good"], mpp=MPP)
    with pytest.raises(LakeError, match=r"no tiles at mpp 2\.0"):
        run_mil(lake.uri, labels, "tumour", ["good"], mpp=2.0)
    with pytest.raises(LakeError, match="no features of 'uni'"):
        run_mil(lake.uri, labels, "tumour", ["good", "uni"], mpp=MPP)


def test_the_door_is_sorted_and_light() -> None:
    assert downstream.__all__ == sorted(downstream.__all__)
    assert all(hasattr(downstream, name) for name in downstream.__all__)
    code = (
        "import sys, downstream; heavy = {'torch', 'ray', 'lance', 'sklearn', 'sksurv', "
        "'matplotlib', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(downstream.__path__[0]).parent
    )
