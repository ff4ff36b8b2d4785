"""Vectors of slides as features: studies, predictions and searches read them by their names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from downstream import (
    BagError,
    LabelledSearchOptions,
    MilSettings,
    RobustnessError,
    SearchOptions,
    evaluate_search,
    search_lake,
)
from downstream.kept.predict_patients import predict_patients
from downstream.mil.bag_sequence import floats
from downstream.retrieval.search_query import RetrievalError
from downstream.robustness.robustness_samples import Samples, features_of_samples
from downstream.run.feature_bags import (
    feature_identity,
    is_of_slides,
    pooled_bag,
    read_patient,
    slides_with_features,
)
from downstream.run.run_study import run_mil, run_survival
from downstream.splits.fold_plan import Plan
from featurestore import Lake, LakeError, open_lake
from ingest.slide_encoders import encode
from tests.downstream.test_downstream_bags import MPP, PATIENTS, build, planted
from tests.worlds.examples_folder import without_ray

QUICK = Plan(folds=2, inner=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with mean and maximum of each slide, the mean of each patient, and labels."""
    folder = tmp_path_factory.mktemp("slide-features")
    lake = build(folder / "lake", planted())
    for encoder, column in (("mean", "good"), ("max", "good"), ("mean", "noise")):
        encode(lake.uri, encoder, features=[column])
    encode(lake.uri, "mean", features=["good"], by="patient")
    patients = np.arange(PATIENTS)
    pl.DataFrame(
        {
            "patient_id": [f"p{n:02d}" for n in patients],
            "grade": ["high" if n % 2 else "low" for n in patients],
            "months": (patients * 7 % 60 + 3.0),
            "dead": (patients % 3 > 0).astype(int),
        }
    ).write_csv(folder / "labels.csv")
    return folder


@pytest.fixture
def lake(folder: Path) -> Lake:
    return open_lake(folder / "lake")


def mean_of(slide: str, teacher: str = "good") -> NDArray[np.float64]:
    """Return the mean of a slide's tiles [D]."""
    tiles: NDArray[np.float64] = planted()[teacher][slide].astype(np.float64)
    mean: NDArray[np.float64] = tiles.mean(axis=0)
    return mean


def test_a_bag_has_one_row_a_slide(lake: Lake) -> None:
    bag = read_patient(lake, ["s03a", "s03b"], "mean.good+mean.noise", [MPP])
    wanted = [np.concatenate([mean_of(s), mean_of(s, "noise")]) for s in ("s03a", "s03b")]
    assert np.allclose(bag.features, wanted, atol=1e-6)
    assert bag.slide.tolist() == [0, 1]
    patient = read_patient(lake, ["s03a", "s03b"], "mean.good.patient", [MPP])
    of_tiles = read_patient(lake, ["s03a", "s03b"], "good", [MPP]).features.astype(np.float64)
    assert np.allclose(patient.features, [of_tiles.mean(axis=0)], atol=1e-6)
    assert np.allclose(pooled_bag(patient), of_tiles.mean(axis=0), atol=1e-6)
    slides = slides_with_features(lake, "mean.good.patient", mpp=MPP)
    assert slides - {"s00c"} == set(planted()["good"])  # s00c has no tissue


def test_vectors_and_tiles_are_not_joined(lake: Lake) -> None:
    with pytest.raises(BagError, match="joins vectors of slides"):
        is_of_slides("mean.good+good")
    with pytest.raises(BagError, match="vectors of slides are of one mpp"):
        read_patient(lake, ["s03a"], "mean.good", [MPP, 2.0])
    with pytest.raises(BagError, match="have not the same number of vectors"):
        read_patient(lake, ["s03a", "s03b"], "mean.good+mean.good.patient", [MPP])
    with pytest.raises(LakeError, match="names vectors of slides"):
        lake.bag("s03a", "mean.good")


def test_identity_is_of_the_vectors(lake: Lake) -> None:
    identities = {
        feature_identity(lake, slides, name, mpp=MPP)
        for slides in (["s03a"], ["s03a", "s03b"])
        for name in ("mean.good", "max.good")
    }
    assert len(identities) == 4


def test_mil_of_mean_vectors_is_that_of_pooled_tiles(folder: Path) -> None:
    names, labels = ["good", "mean.good"], folder / "labels.csv"
    with without_ray():
        run = run_mil(
            str(folder / "lake"), labels, "grade", names, mpps=[MPP], models=["linear"], plan=QUICK
        )
    lake = open_lake(folder / "lake")
    path = f"runs/{run['run']}/predictions.parquet"
    rows = pl.read_parquet(lake.read_bytes(path)).sort("arm", "patient_id", "fold", "score")
    arms = {name: rows.filter(pl.col("arm") == name) for name in names}
    assert arms["good"]["patient_id"].n_unique() == PATIENTS
    assert np.allclose(arms["good"]["score"], arms["mean.good"]["score"], atol=1e-4)
    predictions = predict_patients(lake.uri, run["run"], arm="mean.good")
    assert predictions.rows.height == PATIENTS


@pytest.mark.slow
def test_aggregators_take_bags_of_one_row(folder: Path) -> None:
    with without_ray():
        run = run_mil(
            str(folder / "lake"),
            folder / "labels.csv",
            "grade",
            ["good", "mean.good.patient"],
            mpps=[MPP],
            models=["abmil", "transmil"],
            plan=QUICK,
            settings=MilSettings(epochs=1),
        )
    lake = open_lake(folder / "lake")
    with_attention = {name[:5] for name in lake.store.names(f"runs/{run['run']}/attention")}
    assert with_attention == {"good_"}  # a slide's one row says nothing by its weight
    arm = "mean.good.patient / abmil"
    assert predict_patients(lake.uri, run["run"], arm=arm).rows.height == PATIENTS


def test_survival_reads_vectors(folder: Path) -> None:
    labels = folder / "labels.csv"
    with without_ray():
        run = run_survival(
            str(folder / "lake"), labels, "months", "dead", ["max.good"], mpps=[MPP], plan=QUICK
        )
    assert 0 <= run["metrics"]["max.good"]["estimate"] <= 1


def test_search_compares_vectors(folder: Path) -> None:
    lake = str(folder / "lake")
    found = search_lake(lake, SearchOptions(like="s03a", features="mean.good", k=4))
    of_tiles = search_lake(lake, SearchOptions(like="s03a", features="good", k=4))
    assert [row["slide_id"] for row in found["results"]] == [
        row["slide_id"] for row in of_tiles["results"]
    ]
    measured = evaluate_search(
        lake,
        LabelledSearchOptions(
            labels=str(folder / "labels.csv"), target="grade", features=("mean.good", "good")
        ),
    )
    mean, tiles = measured["columns"]["mean.good"], measured["columns"]["good"]
    assert mean["measures"] == tiles["measures"]
    assert mean["tile_bytes_per_slide"] == tiles["tile_bytes_per_slide"]


def test_robustness_takes_slides_vectors_as_samples(lake: Lake) -> None:
    slides = sorted(planted()["good"])
    rows = pl.DataFrame(
        {"slide_id": slides, "patient_id": slides, "label": 0, "site": "n", "tile_id": None}
    )
    samples = Samples(
        rows=rows, classes=(), unit="slide", missing=[], surplus=[], notes=(), sha256=""
    )
    of_tiles, of_slides = (
        features_of_samples(lake, samples, name, mpp=MPP) for name in ("good", "mean.good")
    )
    assert np.allclose(of_tiles, of_slides, atol=1e-3)
    with pytest.raises(RobustnessError, match="has vectors of slides, and the samples are tiles"):
        features_of_samples(lake, replace(samples, unit="tile"), "mean.good", mpp=MPP)


def test_search_refuses_what_vectors_have_not(folder: Path) -> None:
    lake = str(folder / "lake")
    for options, message in (
        (SearchOptions(like="s03a:0,0", features="mean.good"), "leave the place out"),
        (SearchOptions(like="s03a", features="mean.good", build_index=True), "without an index"),
        (SearchOptions(like="s03a", features="mean.good.patient"), "a search compares slides"),
    ):
        with pytest.raises(RetrievalError, match=message):
            search_lake(lake, options)


def test_what_a_model_does_to_its_inputs_does_not_reach_the_lakes_vectors(lake: Lake) -> None:
    bag = read_patient(lake, ["s03a"], "mean.good", [MPP])
    before = bag.features.copy()
    tensor = floats(bag.features)
    tensor.add_(1)
    assert np.array_equal(bag.features, before)
    assert np.array_equal(lake.encoded("mean.good", mpp=MPP).rows_of(["s03a"])[0], before)
