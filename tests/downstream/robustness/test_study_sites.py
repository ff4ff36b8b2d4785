"""The site probe on the pages of studies, and of embeddings that an evaluation measures."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl
import pytest

from distill.errors import DistillError
from distill.evaluate.evaluation_page import evaluation_page
from distill.evaluate.evaluation_spec import EvaluationSpec
from distill.evaluate.one_split import SplitTiles, _site_scores
from distill.evaluate.sampled_tiles import SampledTiles, joined_tiles
from distill.evaluate.tile_labels import read_labels
from downstream.cohorts.site_facts import site_facts
from downstream.robustness.column_passport import SampleCodes, column_passport
from downstream.robustness.robustness_spec import RobustnessOptions
from downstream.robustness.study_sites import site_probe_json
from downstream.run.execution import execute
from featurestore import Lake
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.downstream.test_downstream_runs import COHORT, Inline, study

if TYPE_CHECKING:
    from distill.evaluate.subjects import Subject
    from downstream.run.study_spec import Kind

PATIENT_IDS = [f"p{n:02d}" for n in range(PATIENTS)]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return build(tmp_path_factory.mktemp("lake") / "lake", planted())


@pytest.mark.parametrize(
    ("kind", "model"),
    [("mil", "linear"), pytest.param("survival", "cox", marks=pytest.mark.slow)],
)
def test_a_study_says_how_well_its_features_tell_the_site(
    lake: Lake, kind: "Kind", model: str
) -> None:
    """Column "good" shifts odd patients: sites that are odd and even are told from it."""
    sites = ["odd" if n % 2 else "even" for n in range(PATIENTS)]
    facts = {"site": site_facts(sites, [n // 2 % 2 for n in range(PATIENTS)], "ward")}
    cohort = replace(COHORT, facts=facts, site_of=dict(zip(PATIENT_IDS, sites, strict=True)))
    made = study(lake, kind, models=(model,), features=("good", "noise"), reference="good",
                 sites="ward")  # fmt: skip
    found = execute(lake, made, cohort, Inline(lake))
    probes = found["site"]["probe"]
    assert probes["good"]["estimate"] > max(0.8, probes["noise"]["estimate"])
    assert probes["good"]["low"] <= probes["good"]["estimate"]
    told = f"can be told with AUROC {probes['good']['estimate']:.2f}"
    assert any(f"from good the site ('ward') {told}" in text for text in found["notes"])
    page = lake.read_bytes(f"runs/{found['run']}/report.html").decode()
    assert f"from good the site (&#39;ward&#39;) {told}" in page
    bare = execute(lake, replace(made, sites="", seed=1), COHORT, Inline(lake))
    assert "site" not in bare


def test_too_few_patients_of_a_site_are_said_and_no_error() -> None:
    found = site_probe_json(np.eye(4), ["a", "a", "b", "b"], ["p", "q", "r", "s"], seed=0)
    assert found["estimate"] is None
    assert "0 sites with 3 patients or more" in found["undefined"]


def labelled_tiles() -> SampledTiles:
    rng = np.random.default_rng(0)
    patient, label = np.repeat(np.arange(24), 4), np.tile([0, 1], 48)
    return SampledTiles(
        mpp=0.5,
        tile_id=np.arange(96),
        patient=patient,
        features={"t": rng.standard_normal((96, 5)).astype(np.float32)},
        jpeg=[b""] * 96,
        label=label,
        site=np.where(patient % 2 == 0, "north", "south"),
    )


def test_an_evaluation_measures_each_embedding_as_a_passport_does() -> None:
    tiles = labelled_tiles()
    subject = cast("Subject", SimpleNamespace(embed=lambda sampled: sampled.features["t"]))
    spec = EvaluationSpec(labels="tiles.csv", site="ward")
    split_tiles = SplitTiles(train={}, held={}, label_held={0.5: tiles})
    tree = _site_scores(split_tiles, subject, spec)
    assert tiles.label is not None
    assert tiles.site is not None
    codes = SampleCodes.of(
        tiles.label.tolist(), tiles.site.tolist(), tiles.patient.astype(str).tolist()
    )
    passport = column_passport(tiles.features["t"], codes, RobustnessOptions(trials=1))
    for name in ("croma", "croma_worst_tenth", "croma_below_0", "ri", "mari"):
        estimate = passport.measures[name]["estimate"]
        assert tree["0.5"][name]["estimate"] == pytest.approx(estimate)
    one_site = replace_site(tiles, "north")
    split_tiles = SplitTiles(train={}, held={}, label_held={0.5: one_site})
    assert _site_scores(split_tiles, subject, spec) == {}
    assert "no robustness to sites: all samples are of one site by 'ward'" in split_tiles.notes[0]
    unknown = SplitTiles(train={}, held={}, label_held={0.5: replace(tiles, site=None)})
    assert _site_scores(unknown, subject, spec) == {}
    assert unknown.notes == []


def replace_site(tiles: SampledTiles, site: str) -> SampledTiles:
    both = joined_tiles([tiles.first(40), tiles.first(8)])
    assert both.site is not None
    assert len(both.site) == 48
    return replace(both, site=np.full(48, site))


def test_labels_of_tiles_may_name_sites(small: Lake, tmp_path: Path) -> None:
    table = pl.DataFrame({"slide_id": ["a", "a", "b"], "x": [0, 256, 0], "y": [0, 0, 0],
                          "tissue": ["t", "s", "s"], "ward": ["n", "n", "s"]})  # fmt: skip
    table.write_csv(tmp_path / "tiles.csv")
    rows, classes = read_labels(str(tmp_path / "tiles.csv"), small, site="ward")
    assert (rows["site"].to_list(), classes) == (["n", "n", "s"], ["s", "t"])
    with pytest.raises(DistillError, match="lacks clinic"):
        read_labels(str(tmp_path / "tiles.csv"), small, site="clinic")
    with pytest.raises(DistillError, match="without labels"):
        EvaluationSpec(site="ward")


def test_the_page_of_an_evaluation_shows_robustness_to_sites() -> None:
    spread = {"mean": 0.5, "min": 0.5, "max": 0.5, "low": 0.25, "high": 0.75}
    embedding = {"name": "small", "kind": "student", "members": ["small"], "runs": 1, "seeds": [0],
                 "width": {"mean": 8.0, "min": 8.0, "max": 8.0}, "fidelity": {},
                 "mode_switching": {}, "probe": {}, "retrieval": {}, "robustness": None,
                 "throughput": None, "sites": {"0.5": {"croma": spread}}}  # fmt: skip
    report = {"settings": {"students": ["small"], "site": "ward"}, "lake": "l", "lake_version": 1,
              "run": "r", "machine": {"cpu": "c", "threads": 1, "gpu": None},
              "embeddings": [embedding],
              "splits": [], "students": {}, "left_out": [], "classes": [],
              "amortisation": None, "verdicts": [], "used_by": []}  # fmt: skip
    page = evaluation_page(report)
    assert "Biology against site (ward)" in page
    assert "0.250 to 0.750" in page
    bare = evaluation_page({**report, "embeddings": [{**embedding, "sites": {}}]})
    assert "Biology against site" not in bare
