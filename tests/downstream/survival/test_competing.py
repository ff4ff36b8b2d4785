"""Competing events: read from the table, fitted by cause, told by cumulative incidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from sksurv.datasets import load_bmt
from sksurv.metrics import concordance_index_censored
from sksurv.nonparametric import kaplan_meier_estimator

from downstream.cohorts.cohort_errors import CohortError
from downstream.cohorts.competing import competing_labels
from downstream.kept.measured import measured_predictions
from downstream.kept.predict_patients import predict_patients
from downstream.report.finished_run import read_run
from downstream.report.plots.plots_incidence import incidence_svg
from downstream.report.views.run_views import sections
from downstream.run.fit_settings import MilSettings
from downstream.run.outcome_text import outcome_text
from downstream.run.study import Study
from downstream.survival.group_incidence import incidence_of_groups
from downstream.survival.incidence import cumulative_incidence
from featurestore import Lake
from tests.downstream.test_covariates import finished
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import study
from tests.downstream.test_predict import rows_of_test
from tests.worlds.one_thread import one_thread

__all__ = ["one_thread"]  # the fixture

Floats = NDArray[np.float64]
CAUSES = ("progression", "death")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


def by_hand(time: Floats, cause: NDArray[np.int64], of: int, at: float) -> float:
    """Aalen-Johansen: the sum over event times of S(t-) times the hazard of one cause."""
    alive, total = 1.0, 0.0
    for t in np.unique(time[time <= at]):
        at_risk = (time >= t).sum()
        total += alive * ((time == t) & (cause == of)).sum() / at_risk
        alive *= 1 - ((time == t) & (cause > 0)).sum() / at_risk
    return total


def cohort(patients: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Times with ties, three causes, some censored."""
    rng = np.random.default_rng(seed)
    return np.ceil(rng.exponential(9, patients)), rng.integers(0, 4, patients)


def test_incidence_is_aalen_and_johansens() -> None:
    time, cause = cohort(120)
    incidence = cumulative_incidence(time, cause, 3)
    for at in (0.5, 4.0, 11.0, 1000.0):
        for of in (1, 2, 3):
            estimate, low, high = incidence.at(at, of)
            assert estimate == pytest.approx(by_hand(time, cause, of, at))
            assert low <= estimate <= high
    times, survival = kaplan_meier_estimator(cause > 0, time)
    np.testing.assert_allclose(incidence.estimate.sum(axis=0), 1 - survival)
    assert incidence.times.tolist() == times.tolist()


def test_one_cause_is_kaplan_meier_and_a_missing_one_stays_at_0() -> None:
    time, cause = cohort(80)
    only = np.where(cause == 2, 2, 0)
    incidence = cumulative_incidence(time, only, 3)
    _, survival = kaplan_meier_estimator(only == 2, time)
    np.testing.assert_allclose(incidence.estimate, [survival * 0, 1 - survival, survival * 0])
    assert np.isfinite(incidence.low).all()
    nobody = cumulative_incidence(time, cause * 0, 3)
    assert (nobody.high == 0).all()


def test_one_minus_kaplan_meier_is_too_high_on_bone_marrow_transplants() -> None:
    _, outcome = load_bmt()
    time, cause = outcome["ftime"].astype(float), outcome["status"].astype(int)
    incidence = cumulative_incidence(time, cause, 2)
    last = incidence.estimate[0, -1]
    assert last == pytest.approx(by_hand(time, cause, 1, time.max()))
    _, survival = kaplan_meier_estimator(cause == 1, time)
    assert 1 - survival[-1] > last + 0.05


def table_of(event: list[Any]) -> pl.DataFrame:
    patients = [f"p{at}" for at in range(len(event))]
    return pl.DataFrame({"patient_id": patients, "t": np.arange(1.0, len(event) + 1), "e": event})


def test_causes_are_read() -> None:
    found = competing_labels(table_of([0, 2, 1, 3, 1]), "t", "e", cause="1")
    assert found.cause.tolist() == [0, 2, 1, 3, 1]
    assert found.names == ("1", "2", "3")
    assert found.times.tolist() == [1, 2, 3, 4, 5]
    words = ["alive", "death", "progression"]
    found = competing_labels(table_of(words), "t", "e", cause="progression", censored="alive")
    assert (found.cause.tolist(), found.names) == ([0, 2, 1], ("progression", "death"))
    again = competing_labels(table_of([0.0, 2.0, 1.0]), "t", "e", cause="2")
    assert again.cause.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("event", "options"),
    [
        ([0, 1, 0], {"cause": "1"}),
        ([0, 1, 2], {"cause": "3"}),
        ([0, 1, 2], {"cause": "1", "censored": "1"}),
        ([1, 2, 2], {"cause": "1", "censored": "2"}),
    ],
)
def test_events_that_do_not_compete_are_refused(event: list[Any], options: dict[str, str]) -> None:
    with pytest.raises(CohortError, match="name by --cause the event of interest"):
        competing_labels(table_of(event), "t", "e", **options)


def competing(lake: Lake, **changes: Any) -> Study:  # noqa: ANN401
    """Odd patients progress early, even ones die of something else or are alive."""
    made = study(lake, "survival", features=("good",), causes=CAUSES, reference="good / cox",
                 models=("cox", "abmil"))  # fmt: skip
    cause = [1 if at % 2 else (2, 0)[at // 2 % 2] for at in range(PATIENTS)]
    patients = tuple(
        replace(one, outcome=(one.outcome[0], float(cause[at] == 1), float(cause[at])))
        for at, one in enumerate(made.patients)
    )
    settings = MilSettings(hidden=16, epochs=4, learning_rate=3e-3, bins=2)
    return replace(made, patients=patients, settings=settings, **changes)


def test_a_run_tells_the_incidence_of_each_cause(lake: Lake, tmp_path: Path) -> None:
    result = finished(lake, competing(lake))
    assert result["outcomes"]["competing"] == {"death": 3}
    assert outcome_text(result["outcomes"], 12).startswith("6 events (3 of other kinds) of 12")
    assert any("under which a patient with another event is censored" in note
               for note in result["notes"])  # fmt: skip
    rows = rows_of_test(lake, result["run"], "good / cox")
    # competing events are censored in the measure, as in the fit
    expected = [
        concordance_index_censored(part["event"].to_numpy(), part["time"].to_numpy(),
                                   part["risk"].to_numpy())[1:4]
        for part in rows.partition_by("fold")
    ]  # fmt: skip
    concordant, discordant, tied = np.sum(expected, axis=0)
    area = (concordant + tied / 2) / (concordant + discordant + tied)
    assert result["metrics"]["good / cox"]["estimate"] == pytest.approx(area)
    told = result["incidence"]["good / cox"]
    assert told == incidence_of_groups(rows, CAUSES)
    high = rows.filter("high")
    time, cause = high["time"].to_numpy(), high["cause"].to_numpy()
    for number, name in enumerate(CAUSES, start=1):
        assert told["high risk"][name]["estimate"] == pytest.approx(
            by_hand(time, cause, number, told["at"])
        )
    (groups, *_) = sections(read_run(lake, result["run"]))
    assert groups.title == "Cumulative incidence in the predicted risk groups"
    assert len(groups.pictures) == 2
    labels = tmp_path / "labels.csv"
    patients = competing(lake).patients
    names = ("alive", *CAUSES)
    lines = [f"{one.patient_id},{one.outcome[0]},{names[int(one.outcome[2])]}" for one in patients]
    labels.write_text("\n".join(["patient_id,months,dead", *lines]))
    found = predict_patients(lake.uri, result["run"], arm="good / cox")
    measured = measured_predictions(
        lake, found, labels, ["months", "dead"], classes=[], event_means="event",
        cause="progression", censored="alive",
    )  # fmt: skip
    assert measured["seen"]["measures"]["harrell_c"]["estimate"] > 0.6
    assert "causes" not in study(lake, "survival").config


def test_groups_without_an_event_are_drawn() -> None:
    time, cause = cohort(40)
    high = cause == 1
    assert incidence_svg(time, cause, high, ["a", "b", "c"]).startswith(b"<?xml")
    assert incidence_svg(time, cause * 0, high | True, ["a", "b", "c"]).startswith(b"<?xml")
    rows = pl.DataFrame({"patient_id": ["p"], "event": [False], "time": [1.0], "high": [True],
                         "cause": [0]})  # fmt: skip
    assert incidence_of_groups(rows, CAUSES) == {}
