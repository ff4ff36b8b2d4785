"""Passports of a real lake's columns: samples, results, pages, the command, and what is refused."""

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from downstream.cohorts.cohort_errors import CohortError
from downstream.report.finished_run import RunError, read_run
from downstream.robustness.column_passport import SampleCodes, column_passport
from downstream.robustness.robustness_measures import MEASURES
from downstream.robustness.robustness_run import run_passport, run_robustness
from downstream.robustness.robustness_samples import (
    check_samples,
    draw_in_turn,
    features_of_samples,
    read_samples,
)
from downstream.robustness.robustness_spec import (
    RobustnessError,
    RobustnessOptions,
    RobustnessSpec,
)
from downstream.robustness.site_probe import probe_site
from downstream.run.run_table import run_table
from downstream.run.study_spec import FeatureOptions, LabelOptions
from featurestore import Lake
from tests.downstream.test_downstream_bags import (
    MPP,
    PATIENTS,
    WIDTH,
    Features,
    build,
    slide_names,
)
from tests.worlds.command_lines import CommandLine, Output, Places, command_line

QUICK = RobustnessOptions(trials=2, replicates=2, folds=3)
CLASS = [n % 2 for n in range(PATIENTS)]
SITE = ["north" if n < PATIENTS // 2 else "south" for n in range(PATIENTS)]


def columns() -> Features:
    """Column "good" knows the class, "stained" the site more than the class, "noise" nothing."""
    rng = np.random.default_rng(0)
    features: Features = {"good": {}, "stained": {}, "noise": {}}
    for name in slide_names():
        patient, tiles = int(name[1:3]), 5 + (name[-1] == "b")
        for column in features:
            x = rng.standard_normal((tiles, WIDTH))
            x[:, 0] += {"good": 4.0, "stained": 1.0, "noise": 0.0}[column] * CLASS[patient]
            x[:, 1] += 6.0 * (column == "stained") * (SITE[patient] == "south")
            features[column][name] = x.astype(np.float16)
    return features


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", columns())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of patients and of tiles, with classes and sites."""
    folder = tmp_path_factory.mktemp("tables")
    patients = [f"p{n:02d}" for n in range(PATIENTS)]
    grades = ["high" if one else "low" for one in CLASS]
    table = pl.DataFrame(
        {"patient_id": patients, "grade": grades, "hospital": SITE, "age": np.arange(12) + 0.5}
    )
    table.write_csv(folder / "labels.csv")
    tiles = [
        (name, 256 * at, "edge" if at % 2 else "middle", SITE[int(name[1:3])])
        for name in slide_names()
        for at in range(5)
    ]
    pl.DataFrame(
        {
            "slide_id": [slide for slide, *_ in tiles],
            "x": [x for _, x, *_ in tiles],
            "y": [x for _, x, *_ in tiles],
            "part": [part for *_, part, _ in tiles],
            "hospital": [site for *_, site in tiles],
        }
    ).write_csv(folder / "tiles.csv")
    return folder


@pytest.fixture(scope="module")
def spec(folder: Path) -> RobustnessSpec:
    return RobustnessSpec(
        labels=LabelOptions(table=str(folder / "labels.csv"), target=("grade",)),
        features=FeatureOptions(names=("good", "stained", "noise"), mpps=(MPP,)),
        sites="hospital",
        measures=QUICK,
    )


@pytest.fixture(scope="module")
def passport(lake: Lake, spec: RobustnessSpec) -> dict[str, Any]:
    return run_passport(lake.uri, spec)


def estimates(passport: dict[str, Any], measure: str) -> dict[str, Any]:
    return {
        column: metrics["measures"][measure]["estimate"]
        for column, metrics in passport["metrics"].items()
    }


def test_measures_tell_a_column_of_biology_from_one_of_the_site(passport: dict[str, Any]) -> None:
    for measure in ("croma", "croma_worst_tenth", "ri", "mari", "clustering_score"):
        found = estimates(passport, measure)
        assert found["good"] > found["stained"], measure
    assert estimates(passport, "croma")["good"] > 0 > estimates(passport, "croma")["stained"]
    assert estimates(passport, "croma_below_0")["stained"] > 0.6
    site = estimates(passport, "site_auroc")
    assert site["stained"] > site["good"]
    assert estimates(passport, "class_accuracy")["good"] > 0.9
    for metrics in passport["metrics"].values():
        assert list(metrics["measures"]) == list(MEASURES)
        for measure in metrics["measures"].values():
            if measure["estimate"] is not None:
                assert measure["low"] <= measure["estimate"] <= measure["high"]
    # three patients of each class at a site are too few for confounded probes
    assert "8 patients" in passport["metrics"]["good"]["measures"]["apd"]["undefined"]
    gaps = passport["differences"]["stained"]
    assert gaps["croma"]["high"] < 0  # on the same resamples of patients it is worse
    assert gaps["site_auroc"]["estimate"] == pytest.approx(site["good"] - site["stained"])
    assert passport["site"]["cramers_v"] == pytest.approx(0)
    assert (passport["patients"], passport["slides"], passport["samples"]) == (12, 24, 24)


def test_a_run_is_kept_found_again_and_listed(
    lake: Lake, spec: RobustnessSpec, passport: dict[str, Any]
) -> None:
    again = run_passport(lake.uri, spec)
    assert (again["run"], again["seconds"]) == (passport["run"], passport["seconds"])
    with pytest.raises(RunError, match="has no predictions"):
        read_run(lake, passport["run"])
    other = run_passport(lake.uri, replace(spec, measures=replace(QUICK, seed=1)))
    assert other["run"] != passport["run"]
    rows = run_table(lake).filter(pl.col("run") == passport["run"])
    assert rows.filter("main")["measure"].to_list() == ["croma"] * 3
    content = lake.read_bytes(f"runs/{passport['run']}/samples.parquet")
    samples = pl.read_parquet(io.BytesIO(content))
    assert samples["margin:good"].median() == pytest.approx(estimates(passport, "croma")["good"])
    assert Counter(samples["label"]) == {"low": 12, "high": 12}


def test_the_page_shows_every_measure_of_every_column(lake: Lake, passport: dict[str, Any]) -> None:
    page = lake.read_bytes(f"runs/{passport['run']}/report.html").decode()
    for measure in MEASURES.values():
        assert f">{measure.shown}" in page
    for column, metrics in passport["metrics"].items():
        assert f"{column}</th>" in page
        for measure in metrics["measures"].values():
            assert measure["estimate"] is None or f"{measure['estimate']:.3f}" in page
    assert "no two classes at two sites have 8 patients" in page
    assert page.count('<img src="data:image/svg+xml') >= 3


def test_tiles_of_labelled_slides_and_labelled_tiles_are_samples(
    lake: Lake, folder: Path, spec: RobustnessSpec
) -> None:
    tiles = replace(spec, measures=replace(QUICK, unit="tile", samples=60))
    drawn = read_samples(lake, tiles)
    assert (drawn.unit, drawn.rows.height) == ("tile", 60)
    assert set(Counter(zip(drawn.rows["label"], drawn.rows["site"], strict=True)).values()) == {15}
    assert set(drawn.rows["patient_id"].value_counts()["count"]) == {5}
    x = features_of_samples(lake, drawn, "good", mpp=MPP)
    bag = lake.bag(drawn.rows["slide_id"][0], "good", mpp=MPP)
    at = np.flatnonzero(bag.tile_id == drawn.rows["tile_id"][0])
    assert x[0] == pytest.approx(bag.features[at[0]].astype(np.float32))
    of_slides = read_samples(lake, spec)
    mean = lake.bag(of_slides.rows["slide_id"][3], "good", mpp=MPP).features
    x = features_of_samples(lake, of_slides, "good", mpp=MPP)
    assert x[3] == pytest.approx(mean.astype(np.float64).mean(axis=0), rel=1e-3)
    labelled = replace(spec, labels=LabelOptions(table=str(folder / "tiles.csv"), target=("part",)))
    samples = read_samples(lake, labelled)
    assert (samples.unit, samples.classes) == ("tile", ("edge", "middle"))
    assert samples.rows.height == 5 * len(slide_names())
    assert set(samples.rows.filter(pl.col("patient_id") == "p11")["site"]) == {"south"}
    found = run_passport(lake.uri, replace(labelled, measures=replace(QUICK, samples=48)))
    assert (found["unit"], found["samples"]) == ("tile", 48)
    assert any("48 of 120 tiles are used" in note for note in found["notes"])


def test_samples_are_drawn_in_turn_from_cells_and_patients() -> None:
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 20, 400)
    rows = pl.DataFrame(
        {"patient_id": [f"p{n}" for n in patient], "label": (patient % 2).tolist(),
         "site": ["a" if n < 15 else "b" for n in patient], "at": range(400)}
    )  # fmt: skip
    drawn = draw_in_turn(rows, 40, seed=3)
    assert drawn.equals(draw_in_turn(rows, 40, seed=3))
    assert set(drawn.group_by("label", "site").len()["len"]) == {10}
    for _, cell in drawn.group_by("label", "site"):
        counts = cell["patient_id"].value_counts()["count"].to_list()
        assert max(counts) - min(counts) <= 1
    assert sorted(draw_in_turn(rows, 1000, seed=0)["at"]) == list(range(400))


def test_the_site_probe_is_scikit_learns_auroc_and_holds_patients_out() -> None:
    rng = np.random.default_rng(0)
    site = np.repeat([0, 1, 2], 40)
    patients = [f"p{n // 2}" for n in range(120)]
    x = rng.standard_normal((120, 6)) + 1.5 * np.eye(3, 6)[site]
    names = ["a", "b", "c"]
    probed = probe_site(x, [names[n] for n in site], patients, folds=5, seed=0)
    assert probed.sites == ("a", "b", "c")
    assert 0.8 < probed.auroc.whole < 1
    alone = probe_site(x + 0, [names[n] for n in site], patients, folds=5, seed=0)
    assert alone.auroc.whole == probed.auroc.whole
    # each patient's own vector, without any site in it: a probe that had seen them would know it
    own = rng.standard_normal((60, 40))[np.arange(120) // 2]
    blind = probe_site(own, [names[n] for n in site], patients, folds=5, seed=0)
    assert abs(blind.auroc.whole - 0.5) < 0.15
    few = probe_site(x, [*(names[n] for n in site[:118]), "d", "d"], patients, folds=5, seed=0)
    assert few.left_out == ("d",)
    with pytest.raises(RobustnessError, match="1 site with 3 patients or more: a"):
        probe_site(x[:42], [names[n] for n in site[:42]], patients[:42])


def test_one_fold_of_the_site_probe_has_scikit_learns_auroc() -> None:
    from downstream.measures.weighted import auroc_folds

    rng = np.random.default_rng(1)
    site, score = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    ours = auroc_folds(np.ones((1, 50)), site, np.zeros(50, np.int64), score)[0]
    theirs = roc_auc_score(site, score, multi_class="ovr", average="macro")
    assert ours == pytest.approx(theirs)


def test_patients_are_apart_in_blocks_of_confounded_probes() -> None:
    """Tiles of two classes from the same patients: none trains in one cell and tests in another."""
    from downstream.robustness.confounded_probe import _largest_blocks

    patient = np.repeat(np.arange(40), 6)
    label, site = np.tile([0, 1, 0, 1, 0, 1], 40), (patient >= 20).astype(np.int64)
    (cells,) = _largest_blocks(label, site, patient, 0)
    owners = [[{patient[one[0]] for one in cell} for cell in of_site] for of_site in cells]
    assert [[len(cell) for cell in of_site] for of_site in owners] == [[10, 10], [10, 10]]
    assert not owners[0][0] & owners[0][1]
    assert {len(one) for of_site in cells for cell in of_site for one in cell} == {3}


@pytest.mark.slow
def test_confounded_probes_fall_where_a_column_leans_on_the_site() -> None:
    rng = np.random.default_rng(0)
    label, site = np.tile([0, 1], 30), np.repeat([0, 1], 30)
    labels, ids = label.tolist(), [f"p{n:02d}" for n in range(60)]
    codes = SampleCodes.of(labels, [f"h{n}" for n in site], ids)
    found = {}
    for name, strength in (("good", 0.0), ("stained", 4.0)):
        x = rng.standard_normal((60, 6))
        x[:, 0] += 2 * label
        x[:, 1] += strength * site
        found[name] = column_passport(x, codes, replace(QUICK, replicates=4, trials=1))
    for measure in ("apd", "nipd"):
        good, stained = (found[name].measures[measure] for name in ("good", "stained"))
        assert stained["estimate"] < min(good["estimate"], -0.1)
        assert stained["low"] < stained["estimate"] < stained["high"]
        assert good["method"] == "corrected resampled t"
    curve = found["stained"].details["confounding"]
    assert curve["cramers_v"] == [0, 0.25, 0.5, 0.75, 1]
    assert curve["accuracy"][0] > 0.75 > curve["accuracy"][-1]


@pytest.mark.parametrize(
    ("labels", "sites", "classes", "why"),
    [
        ([0, 1] * 5, ["a"] * 10, ["x", "y"], "one site by 'hospital': a"),
        ([0] * 10, ["a", "b"] * 5, ["x", "y"], "all samples are 'x'"),
        ([0, 1] * 5, ["a", "b"] * 5, ["x", "y"], "no class is at two sites"),
        ([0, 0, 1, 1] * 3, ["a", "b", "c", "d"] * 3, ["x", "y"], "no site has two classes"),
        ([0, 1], ["a", "b"], ["x", "y"], "2 samples; measures of robustness need 8"),
    ],
)
def test_samples_without_any_measure_are_refused(
    labels: list[int], sites: list[str], classes: list[str], why: str
) -> None:
    rows = pl.DataFrame(
        {"patient_id": [f"p{n}" for n in range(len(sites))], "label": labels, "site": sites}
    )
    with pytest.raises(RobustnessError, match=why):
        check_samples(rows, classes, "hospital")


def test_tables_that_say_too_little_are_refused(
    lake: Lake, folder: Path, spec: RobustnessSpec
) -> None:
    patients, tiles = str(folder / "labels.csv"), str(folder / "tiles.csv")
    for changes, error, why in (
        ({"labels": LabelOptions(table=patients, target=("age",))}, RobustnessError, "numbers"),
        ({"labels": LabelOptions(table=tiles)}, RobustnessError, "names tiles"),
        ({"labels": LabelOptions(table="")}, RobustnessError, "by --labels"),
        ({"labels": LabelOptions(table=patients), "sites": "tcga"}, RobustnessError, "no table"),
        ({"sites": "clinic"}, CohortError, "clinic"),
        (
            {"labels": LabelOptions(table=tiles, target=("part",)), "sites": "ward"},
            CohortError,
            "ward",
        ),
        ({"labels": LabelOptions(table=""), "sites": "tcga"}, CohortError, "no TCGA barcode"),
    ):
        with pytest.raises(error, match=why):
            read_samples(lake, replace(spec, **changes))


ROBUSTNESS = command_line(
    "robustness {lake} --features good --features stained --site hospital --labels {labels} "
    "--target grade --mpp 0.5 --unit tile --samples 60 --folds 3 --replicates 2 --trials 1 "
    "--patient-column patient_id --slide-column slide_id --slide-table {slides} "
    "--patients-from labels --distinct-ids --set measures.folds=2 --seed 4 --at 8 --quiet --json"
)
ROBUSTNESS_TEXT = command_line(
    "robustness {lake} --features noise --labels {labels} --site hospital --folds 2"
)
ROBUSTNESS_LIKE = command_line("robustness {lake} --like {run} --features noise --json")


def test_the_command_measures_and_starts_from_another_run(
    lake: Lake, folder: Path, passport: dict[str, Any], capsys: Output
) -> None:
    slides = pl.DataFrame({"patient_id": [f"p{n[1:3]}" for n in slide_names()],
                           "slide_id": slide_names()})  # fmt: skip
    slides.write_csv(folder / "slides.csv")
    places = Places(
        {
            "lake": lambda: lake.uri,
            "labels": lambda: folder / "labels.csv",
            "slides": lambda: folder / "slides.csv",
            "run": lambda: passport["run"],
        }
    )

    def run(line: CommandLine) -> Any:  # noqa: ANN401
        return line.run(capsys, places)

    found = run(ROBUSTNESS).value
    expected = {"unit": "tile", "samples": 60, "folds": 2, "replicates": 2, "trials": 1, "seed": 4}
    assert {name: found["config"][name] for name in expected} == expected
    assert list(found["metrics"]) == ["good", "stained"]
    assert found["lake_version"] == 8
    text = run(ROBUSTNESS_TEXT).stdout
    assert "site AUROC" in text
    assert "CRoMa" not in text  # no classes: the site probe alone
    assert "24 slides of 12 patients at 2 sites" in text
    like = run(ROBUSTNESS_LIKE).value
    assert like["config"]["trials"] == QUICK.trials
    assert json.dumps(like["metrics"]["noise"]) == json.dumps(passport["metrics"]["noise"])


def test_single_settings_make_the_same_run(
    lake: Lake, folder: Path, spec: RobustnessSpec, passport: dict[str, Any]
) -> None:
    found = run_robustness(
        lake.uri, folder / "labels.csv", "grade", list(spec.features.names), sites="hospital",
        mpp=MPP, options=QUICK,
    )  # fmt: skip
    assert found["run"] == passport["run"]
