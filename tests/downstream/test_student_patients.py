"""Students that were trained on patients who are tested: it is said, and can be avoided."""

from pathlib import Path
from typing import Any

import pytest

from downstream.cohorts.student_patients import seen_patients, student_notes, unseen_splits
from downstream.probes.probe_folds import tile_splits
from downstream.probes.probe_labels import read_tile_labels
from downstream.probes.probe_spec import ProbeOptions, ProbeSpec
from downstream.probes.tile_probe import run_tile_probe
from downstream.run.study_spec import FeatureOptions, LabelOptions
from downstream.splits.split import SplitError
from featurestore import Lake
from tests.downstream.test_downstream_bags import MPP, PATIENTS, build
from tests.downstream.test_probe_tiles import tile_features, truth_of

OPTIONS = ProbeOptions(models=("linear",), folds=3)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", tile_features())


@pytest.fixture(scope="module")
def table(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "tiles.csv"
    truth_of(lake).select("slide_id", "tile_id", "tissue").write_csv(path)
    return path


def write_report(lake: Lake, name: str, **fields: Any) -> None:  # noqa: ANN401
    lake.write_json(f"students/{name}/report.json", {"run": f"distill-{name}", **fields})


def probe(lake: Lake, table: Path, *, unseen: bool = False) -> dict[str, Any]:
    spec = ProbeSpec(
        labels=LabelOptions(table=str(table), target=("tissue",)),
        features=FeatureOptions(names=("good", "noise"), mpps=(MPP,), unseen_students=unseen),
        probe=OPTIONS,
    )
    return run_tile_probe(lake.uri, spec)


@pytest.mark.slow
def test_a_run_says_how_many_tested_patients_its_students_know(lake: Lake, table: Path) -> None:
    labels = read_tile_labels(lake, table, "tissue", mpp=MPP)
    splits = tile_splits(labels.rows, OPTIONS)
    known = splits[0].test  # the patients of one fold, by a slide each
    write_report(lake, "good", train_slide_ids=[f"s{patient[1:]}a" for patient in known])
    slides_of = {f"p{n:02d}": [f"s{n:02d}a", f"s{n:02d}b"] for n in range(PATIENTS)}
    seen = seen_patients(lake, ["good:mean+noise", "noise"], slides_of)
    assert seen == {"good": frozenset(known)}
    # Codes of a student's features know whom the student knows.
    assert seen_patients(lake, ["good:mean~int8", "good~pq16+noise"], slides_of) == seen

    said = probe(lake, table)
    assert said["students"] == {"good": {"tested": PATIENTS, "trained_on": len(known)}}
    (note,) = said["notes"]
    assert f"student 'good' was trained on {len(known)} of the {PATIENTS} patients" in note
    page = lake.read_bytes(f"runs/{said['run']}/report.html").decode()
    assert f"was trained on {len(known)} of the {PATIENTS} patients" in page

    unseen = probe(lake, table, unseen=True)
    assert unseen["run"] != said["run"]
    assert unseen["students"]["good"]["trained_on"] == 0
    assert unseen["patients"] == PATIENTS - len(known)
    assert unseen["notes"] == []


def test_the_training_run_tells_where_the_report_does_not(lake: Lake) -> None:
    write_report(lake, "noise")
    lake.write_json("runs/distill-noise/config.json", {"train": ["s01b", "s02a"]})
    slides_of = {f"p{n:02d}": [f"s{n:02d}a", f"s{n:02d}b"] for n in range(PATIENTS)}
    assert seen_patients(lake, ["noise"], slides_of) == {"noise": frozenset({"p01", "p02"})}
    # by patient, as where the student comes from another lake with other slides
    write_report(lake, "noise", train_patients=["p05", "elsewhere"])
    lake.write_json("runs/distill-noise/config.json", {"train": []})
    assert seen_patients(lake, ["noise"], slides_of) == {"noise": frozenset({"p05"})}


def test_where_nothing_is_known_or_nobody_is_left_it_refuses(lake: Lake, table: Path) -> None:
    labels = read_tile_labels(lake, table, "tissue", mpp=MPP)
    splits = tile_splits(labels.rows, OPTIONS)
    (note,) = student_notes({"old": {"tested": 5, "trained_on": None}})
    assert note == "student 'old': nothing says which patients it was trained on"
    with pytest.raises(SplitError, match="which patients old were trained on"):
        unseen_splits(splits, {"old": None})
    everywhere = frozenset(split.test[0] for split in splits)
    with pytest.raises(SplitError, match=r"each fold tests patients that good was trained on \(3"):
        unseen_splits(splits, {"good": everywhere})
    assert unseen_splits(splits, {}) == tuple(splits)
