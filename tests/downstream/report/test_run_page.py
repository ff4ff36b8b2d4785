"""The page of a run: what it says and shows, and what it can do without."""

import base64
import io
import json
import re

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score

from downstream.report.finished_run import RunError, read_run
from downstream.report.run_page import write_run_page
from downstream.report.run_tables import arm_rows, comparison_rows, listed, measure_heads
from downstream.report.tile_pictures import MOST_TILES
from downstream.report.views.run_views import sections
from downstream.report.views.views_classes import confusion_counts, label_estimates
from downstream.report.views.views_outcomes import horizon_of
from featurestore import Lake
from tests.downstream.report.test_downstream_plots import svg_size
from tests.worlds.painted_lake import Page, painted_lake
from tests.worlds.run_folders import predictions, write_run

ARMS = ("good / abmil", "noise / mean")
EVIL = "<img src=http://evil.example/x onerror=alert(1)>"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return painted_lake(tmp_path_factory.mktemp("lake") / "lake", patients=32)


def page_of(lake: Lake, run: str) -> Page:
    write_run_page(lake, run)
    page = Page(lake.read_bytes(f"runs/{run}/report.html").decode())
    assert page.loads_nothing
    assert all(re.match(r"data:image/(svg\+xml|jpeg);base64,", link) for link in page.images)
    for link in page.images:
        if "svg" in link[:20]:
            assert min(svg_size(base64.b64decode(link.partition(",")[2]))) > 50
            continue
        with Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) as image:
            assert min(image.size) > 50
    return page


def test_a_page_of_two_classes(lake: Lake) -> None:
    notes = {"notes": ["Two slides were matched by stem"]}
    run = write_run(lake, patients=32, repeats=2, seeds=2, changes=notes)
    page = page_of(lake, run)
    words = page.words
    run_result = lake.read_json(f"runs/{run}/result.json")
    for arm in ARMS:
        for name, entry in run_result["metrics"][arm]["measures"].items():
            text = f"{entry['estimate']:.3f} {entry['low']:.3f} to {entry['high']:.3f}"
            assert text in words or name == "kappa_quadratic"
    assert "Two slides were matched by stem." in words
    for text in (
        "Which of two classes: tumour, of 32 patients with 33 slides",
        "3 folds over patients, repeated 2 times with other folds, 2 trainings",
        "ECE lower is better",
        "noise / mean -0.100 -0.200 to +0.015 0.031 0.062 3 -0.100 -0.150 to +0.010, p 0.020 not",
        "not shown: it may be 0.05 worse or more p of being worse 0.810",
        "By good / abmil, the first arm whose models weigh tiles.",
        "Prediction: tumour",
        "Labelled, but not used: 2 p98, p99.",
        "Every slide that is ready has a label.",
        "Settings: dropout 0.25",
        f"Lake version {lake.version}",
        "Polars " + pl.__version__,
    ):
        assert text in words
    # forest, differences, ROC, precision-recall, reliability, 2 confusion, risk, 2 slides
    tiles = 4 * MOST_TILES
    assert len(page.images) == 10 + tiles
    assert len(lake.read_bytes(f"runs/{run}/report.html")) < 800_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "pictures"),
    [
        # ROC and precision-recall for each arm, reliability, 2 confusion, risk by coverage
        ("multiclass", {"curves": 4, "calibration": 1, "decisions": 2, "abstention": 1}),
        ("multilabel", {"labels": 2, "calibration": 1}),
        ("regression", {"numbers": 2}),
        ("survival", {"groups": 2, "calibration": 2}),
    ],
)
def test_a_page_of_every_task(lake: Lake, task: str, pictures: dict[str, int]) -> None:
    run = write_run(lake, task, patients=32)
    pictures_of = {part.key: len(part.pictures) for part in sections(read_run(lake, run))}
    assert pictures_of == pictures
    page = page_of(lake, run)
    assert "The surest right: slide" in page.words or task in {"regression", "multilabel"}
    assert "weighed" in page.words
    if task == "multilabel":
        assert "good / abmil: no AUROC for rare, which all patients have or none." in page.words
    if task == "survival":
        assert "survival at months = 9, in 2 groups of about 16 patients" in page.words


def test_what_users_wrote_is_text(lake: Lake) -> None:
    rows = predictions("binary", (EVIL,), 12, 1, 1)
    rows = rows.with_columns(patient_id=pl.col("patient_id").replace("p01", EVIL))
    changes = {"missing": [EVIL], "target": EVIL, "surplus": [EVIL]}
    run = write_run(lake, run="mil-evil", arms=(EVIL,), rows=rows, attention=(), changes=changes)
    page = page_of(lake, run)
    assert EVIL not in lake.read_bytes(f"runs/{run}/report.html").decode()
    assert page.words.count(EVIL) > 3


def test_a_confusion_matrix_holds_each_patient_once(lake: Lake) -> None:
    rows = predictions("binary", ARMS, 24, 3, 2).with_columns(threshold=pl.lit(0.7))
    # neither other repetitions nor validation rows may count
    later = (pl.col("repeat") > 0) | (pl.col("seed") > 0) | (pl.col("part") == "validation")
    rows = rows.with_columns(score=pl.when(later).then(0.0).otherwise(pl.col("score")))
    run = read_run(lake, write_run(lake, run="mil-once", rows=rows, attention=()))
    used = rows.filter(~later & (pl.col("arm") == ARMS[0]))
    expected = confusion_matrix(used["label"] == "yes", used["score"] >= 0.7)
    assert confusion_counts(run, ARMS[0]).tolist() == expected.tolist()
    assert expected.sum() == 24
    assert set(run.scored["part"]) == {"test"}
    three = read_run(lake, write_run(lake, "multiclass", run="mil-three", attention=()))
    used = three.once(ARMS[0])
    predicted = np.array(used["probabilities"].to_list()).argmax(axis=1)
    truth = ["ABC".index(name) for name in used["label"]]
    assert confusion_counts(three, ARMS[0]).tolist() == confusion_matrix(truth, predicted).tolist()


def test_labels_have_the_area_of_scikit_learn(lake: Lake) -> None:
    run = read_run(lake, write_run(lake, "multilabel", run="mil-labels", seeds=2, attention=()))
    estimates, without = label_estimates(run, ARMS[1])
    rows = run.rows(ARMS[1])
    truth, probabilities = (np.array(rows[name].to_list()) for name in ("labels", "probabilities"))
    for at, name in enumerate(("KRAS", "TP53")):
        estimate, low, high = estimates[name]
        assert estimate == pytest.approx(roc_auc_score(truth[:, at], probabilities[:, at]))
        assert low < estimate < high
    assert without == ["rare"]


def test_the_horizon_is_near_the_median_event(lake: Lake) -> None:
    run = read_run(lake, write_run(lake, "survival", run="survival-h", attention=()))
    event_times = run.scored.filter(pl.col("event"))["time"].to_numpy()
    times = np.array([2.0, 5.0, 9.0])
    index = int(np.abs(times - np.median(event_times)).argmin())
    assert horizon_of(run) == (times[index], index)
    rows = predictions("survival", ARMS, 24, 1, 1).with_columns(
        curve=pl.lit(None, pl.List(pl.Float64)), high=pl.lit(None, pl.Boolean)
    )
    changes: dict[str, list[float]] = {"curve_times": []}
    bare = write_run(lake, "survival", run="survival-b", rows=rows, attention=(), changes=changes)
    words = page_of(lake, bare).words
    assert "No survival curves were kept" in words
    assert f"{ARMS[0]}: no risk groups were kept." in words


def test_one_class_only(lake: Lake) -> None:
    rows = predictions("binary", ARMS, 24, 1, 1).with_columns(label=pl.lit("no"))
    run = write_run(lake, run="mil-one", rows=rows, attention=ARMS[:1])
    words = page_of(lake, run).words
    assert "The main measure is undefined for all arms." in words
    assert "AUROC, pooled of good / abmil: all patients are of one class." in words
    assert "not drawn, a ROC curve needs patients of both classes, all 24 are of one" in words
    assert "yes, most weighed No patient is in it." in words


def test_a_fold_without_a_class(lake: Lake) -> None:
    rows = predictions("binary", ARMS, 24, 1, 1)
    alone = pl.when(pl.col("fold") == 0).then(pl.lit("no")).otherwise(pl.col("label"))
    run = write_run(lake, run="mil-fold", rows=rows.with_columns(label=alone))
    page = page_of(lake, run)
    assert "not drawn" not in page.words


@pytest.mark.slow
def test_many_arms(lake: Lake) -> None:
    arms = tuple(f"teacher{number} / abmil" for number in range(9))
    run = write_run(lake, run="mil-arms", arms=arms, attention=arms[3:5], patients=12)
    words = page_of(lake, run).words
    assert "Drawn for the first" not in words
    for arm in arms:  # a small picture each, of every kind
        for kind in ("ROC", "Precision-recall", "Calibration", "Errors by coverage"):
            assert f"{kind} of {arm}" in words
        assert f"{arm}: positive from the threshold on" in words
    assert (
        "By teacher3 / abmil, the first arm whose models weigh tiles; teacher4 / abmil does so too"
        in words
    )


def test_tables_of_parts_that_are_missing(lake: Lake) -> None:
    name = write_run(lake, run="mil-parts", attention=())
    run_result = lake.read_json(f"runs/{name}/result.json")
    measures = run_result["metrics"][ARMS[1]]["measures"]
    measures["f1"] = {"higher_is_better": True, "undefined": "no patient"}
    del measures["ece"]
    measures["brier"]["redrawn"] = 900
    run_result["comparisons"][0] |= {"margin": None, "p_worse": None, "not_inferior": None}
    run_result["missing"] = [f"p{number}" for number in range(120)]
    lake.write_json(f"runs/{name}/result.json", run_result)
    run = read_run(lake, name)
    heads = [head["name"] for head in measure_heads(run)]
    cells = dict(zip(heads, arm_rows(run)[1]["cells"], strict=True))
    assert cells["F1"] == {"estimate": None, "why": "no patient"}
    assert cells["ECE"]["why"] == "not measured"
    assert "quadratic kappa" not in heads
    assert comparison_rows(run)[0]["verdict"] == ""
    words = page_of(lake, name).words
    assert "p99 and 20 more." in words
    assert "p100" not in words
    assert "rough: Brier score of noise / mean (up to 900 resamples)." in words
    assert "not inferior?" not in words
    assert listed(["a"]) == {"ids": ["a"], "left": 0, "all": 1}


def test_runs_that_are_not_there(lake: Lake) -> None:
    write_run(lake, run="mil-0a1b", attention=())
    lake.write_json("runs/mil-begun/config.json", {})
    with pytest.raises(RunError, match=r"no finished run 'mil-0a1c'; it has: mil-0a1b, "):
        write_run_page(lake, "mil-0a1c")
    with pytest.raises(RunError, match=r"'mil-begun' of .* is not finished; run its command again"):
        write_run_page(lake, "mil-begun")
    for name in ("", "../mil-0a1b", "mil-0a1b/"):
        with pytest.raises(RunError, match="no finished run"):
            write_run_page(lake, name)
    assert json.loads(lake.read_bytes("runs/mil-0a1b/result.json"))["run"] == "mil-0a1b"
