"""The sentence on a student says what the report's numbers say."""

from typing import Any

import pytest

from cluster import Placement
from commands.students.distill import next_step
from distill.evaluate.cost import kept_seconds
from distill.evaluate.evaluation import runs_of_students
from distill.evaluate.student_verdict import student_verdicts
from featurestore import Lake
from ingest.estimate.extract_record import keep_rates
from tests.worlds.run_folders import write_run


def spread(number: float) -> dict[str, float]:
    return {"mean": number, "min": number, "max": number}


def entry(
    name: str, kind: str, *, centred: float, probe: float, rate: float, size: float
) -> dict[str, Any]:
    numbers = {"centred": centred, "cosine": 0.7 + 0.3 * centred, "baseline": 0.7}
    at = {name: spread(number) for name, number in numbers.items()}
    return {
        "name": name,
        "kind": kind,
        "fidelity": {"uni2_h": {"0.5": at, "all": at}},
        "probe": {"0.5": {"linear": {"balanced_accuracy": spread(probe)}}},
        "throughput": {
            "0.5": {"network_tiles_s": spread(rate), "parameters": spread(size)},
        },
    }


def report(student: float = 0.94, *, untrained: float = 0.3) -> dict[str, Any]:
    """A student of a teacher that has 0.9 in a probe of two classes, beside its untrained twin."""
    return {
        "classes": ["a", "b"],
        "embeddings": [
            entry("small", "student", centred=student, probe=0.86, rate=380.0, size=5e6),
            entry("twin", "undistilled", centred=untrained, probe=0.6, rate=380.0, size=5e6),
            entry("uni2_h", "teacher", centred=1.0, probe=0.9, rate=10.0, size=60e6),
        ],
    }


def test_a_useful_student_is_told_by_its_shares_its_speed_and_its_size() -> None:
    (verdict,) = student_verdicts(report())
    assert verdict["text"] == (
        "small keeps 90% of uni2_h's accuracy above chance (linear probe at 0.5 mpp) and 94% of "
        "its features (centred cosine) on held-out patients, at 38 x its speed, 12 x smaller"
    )
    assert verdict["is_useful"]
    assert verdict["kept_probe"] == {"0.5": pytest.approx((0.86 - 0.5) / (0.9 - 0.5))}


def test_what_was_not_measured_is_not_told() -> None:
    numbers = report()
    teacher = numbers["embeddings"][2]
    teacher["throughput"], numbers["classes"] = None, []
    for embedding in numbers["embeddings"]:
        embedding["probe"] = {}
    (verdict,) = student_verdicts(numbers)
    assert verdict["text"] == "small keeps 94% of uni2_h (centred cosine) on held-out patients"
    assert (verdict["speed"], verdict["smaller"]) == (None, None)


def test_a_teacher_without_weights_is_timed_by_its_extract() -> None:
    numbers = report()
    numbers["embeddings"][2]["throughput"] = None
    seconds = {"uni2_h": 0.1}
    numbers["amortisation"] = {"kept_at_extract": ["uni2_h"], "teacher_seconds_per_tile": seconds}
    (verdict,) = student_verdicts(numbers)
    assert verdict["text"].endswith("at 38 x its speed (by the times of its extract)")
    assert verdict["smaller"] is None


def test_times_of_an_extract_are_those_of_the_same_device(small: Lake) -> None:
    placement = Placement(device="cuda", workers=2, cpus_per_worker=1.0, gpus_per_worker=1.0)
    counts = {"uni2_h": {"tiles": 100, "seconds": 2.0, "stall": 0.2}}
    assert kept_seconds(small.store, ["uni2_h"], "cuda") == {}
    keep_rates(small.store, counts, placement)
    assert kept_seconds(small.store, ["uni2_h", "other"], "cuda:0") == {"uni2_h": 1 / 40}
    assert kept_seconds(small.store, ["uni2_h"], "cpu") == {}


def test_a_student_that_has_learnt_nothing_is_not_recommended() -> None:
    (worse,) = student_verdicts(report(-0.1))
    assert not worse["is_useful"]
    assert worse["text"].startswith(
        "small is no better than the mean feature of uni2_h on held-out patients (cosine 0.670 "
        "against 0.700): train longer (--epochs) or on more slides"
    )
    (untrained,) = student_verdicts(report(0.2))
    assert not untrained["is_useful"]
    assert "no more of uni2_h than the same network untrained" in untrained["text"]
    assert "centred cosine 0.20 against 0.30" in untrained["text"]


def test_a_larger_student_is_said_to_be_larger() -> None:
    numbers = report()
    numbers["embeddings"][0]["throughput"]["0.5"]["parameters"] = spread(120e6)
    (verdict,) = student_verdicts(numbers)
    assert verdict["text"].endswith("2.0 x larger")


def test_distill_sends_nobody_on_with_a_student_that_has_learnt_nothing() -> None:
    nothing = {"a": {"cosine": 0.457, "baseline": 0.713}, "b": {"cosine": 0.7, "baseline": 0.7}}
    assert next_step(nothing, "small").startswith("next: distill again under another --name")
    some = {**nothing, "b": {"cosine": 0.8, "baseline": 0.7}}
    assert next_step(some, "small") == "next: slidelake extract LAKE --teacher small"


def test_runs_on_a_students_features_stand_beside_it(small: Lake) -> None:
    run = write_run(small, arms=("tiny / abmil", "tiny+noise / mean", "noise / mean"), attention=())
    rows = list(runs_of_students(small, ["tiny", "other"]))
    assert [(row["run"], row["student"], row["arm"]) for row in rows] == [
        (run, "tiny", "tiny / abmil"),
        (run, "tiny", "tiny+noise / mean"),
    ]
    assert all(row["low"] <= row["estimate"] <= row["high"] for row in rows)
