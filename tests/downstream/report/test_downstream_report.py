"""Reports of real small lakes: what they say, what they must not load, what they must escape."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest

from downstream.report.lake_holding import read_holding
from downstream.report.lake_page import write_report
from downstream.report.report_page import example_queries
from featurestore import Lake, LakeConfig, LakeError, create_lake, query
from tests.downstream.test_downstream_bags import MPP, cut, extract, planted
from tests.worlds.painted_lake import Page, painted_lake
from tests.worlds.run_folders import predictions, write_run

ARMS = ("good", "good+noise")
NEWEST = {"binary": "mil-bbbbbbbbbbbb", "survival": "survival-cccccccccccc"}

KEYS = {
    "stages",
    "lake",
    "fidelity",
    "mil",
    "survival",
    "failed",
    "synthetic",
    "about",
    "lake_version",
}
EVIL = "<img src=http://evil.example/x onerror=alert(1)>"
SCRIPT = "</style></p><script>alert('reason')</script>"
FIDELITY = {"cosine": 0.81234, "baseline": 0.71234, "centred": 0.41234, "tiles": 1714}
ABOUT = {"synthetic": True, "real_slide": "s05b.svs", "cohort": {"patients": 12, "who": SCRIPT}}


def page_of(lake: Lake) -> Page:
    return Page(lake.read_bytes("report.html").decode())


def pictures() -> dict[str, Any]:
    """Return a slide's pictures of a scan of 2560 x 1280 pixels, all tissue on the left."""
    pixels = np.full((40, 80, 3), 220, np.uint8)
    mask = np.zeros((40, 80), np.uint8)
    mask[:, :40] = 255
    return {
        "width_px": 2560,
        "height_px": 1280,
        "mpp": 0.5,
        "mpp_source": "file",
        "vendor": "aperio",
        "reader": "openslide",
        "verdict": "ok",
        "tissue": 0.5,
        "bytes": 1000,
        "seconds": 0.25,
        "thumbnail": bytes(cv2.imencode(".jpg", pixels)[1]),
        "tissue_mask": bytes(cv2.imencode(".png", mask)[1]),
    }


def illustrated(path: Path) -> Lake:
    """The lake of `build` with pictures, and two slides that failed."""
    features = planted()
    lake = create_lake(path, LakeConfig(tile_px=256, mpps=(MPP,)))
    names = [*features["good"], EVIL, "s99"]
    *rows, evil, late = lake.committer.register(
        [{"slide_id": n, "patient_id": f"p{n[1:3]}", "uri": f"/scans/{n}.svs"} for n in names]
    )
    counts = {name: len(x) for name, x in features["good"].items()}
    cuts = [cut(lake, row, counts[row["slide_id"]]) for row in rows]
    lake.committer.commit_slides([replace(c, row={**c.row, **pictures()}) for c in cuts])
    lake.committer.fail([{**evil, "reason": SCRIPT}, {**late, "reason": "no mpp"}])
    for teacher, of_slide in features.items():
        extract(lake.refreshed(), teacher, of_slide)
    return lake.refreshed()


def put_student(lake: Lake, name: str, *, lake_version: int = 3) -> None:
    report = {
        "student": name,
        "recipe": {
            "name": "agglomerate",
            "student": {"architecture": "tiny"},
            "terms": [{"kind": "match", "weight": 1.0}],
            "mpps": [],
            "schedule": {"epochs": 2},
        },
        "run": f"distill-{name}",
        "lake_version": lake_version,
        "steps": 40,
        "parameters": 957952,
        "train_slides": 18,
        "held_out_slides": ["s00a", "s00b"],
        "fidelity": {"good": FIDELITY},
        "fidelity_per_mpp": {"good": {"0.5": FIDELITY}},
        "history": [{"epoch": e, "step": 20 * e, "loss": {"good": 1 / e}} for e in (1, 2)],
        "train_seconds": 61.0,
        "seconds": 75.0,
    }
    lake.write_json(f"students/{name}/report.json", report)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, dict[str, Any]]:
    """A lake with all there is, and the report of it."""
    lake = illustrated(tmp_path_factory.mktemp("lake") / "lake")
    write_run(lake, run="mil-aaaaaaaaaaaa", arms=ARMS[:1], patients=12)
    for task in ("binary", "survival"):
        write_run(lake, task, run=NEWEST[task], arms=ARMS, attention=ARMS[:1], patients=12)
    lake.write_json("runs/mil-begun/config.json", {})
    put_student(lake, "small")
    report = write_report(lake.uri, stages={"ingest": 35.25, "extract": 409.7}, about=ABOUT)
    return lake, report


def test_json(full: tuple[Lake, dict[str, Any]]) -> None:
    lake, report = full
    assert report.keys() == KEYS
    assert json.loads(lake.read_bytes("report.json")) == report
    assert report["lake"] == lake.info()
    assert report["lake_version"] == lake.version
    assert report["synthetic"] is True
    assert report["fidelity"] == {"good": FIDELITY}
    assert {row["slide"]: row["reason"] for row in report["failed"]} == {
        EVIL: SCRIPT,
        "s99": "no mpp",
    }
    # the newer of the two runs, with the numbers of its own result
    assert list(report["mil"]) == list(ARMS)
    metrics = lake.read_json(f"runs/{NEWEST['survival']}/result.json")["metrics"]["good"]
    assert report["survival"]["good"] == {k: metrics[k] for k in ("estimate", "low", "high")}


def test_the_page_tells_it(full: tuple[Lake, dict[str, Any]]) -> None:
    lake, report = full
    page = page_of(lake)
    words = page.words
    assert "except the real slide s05b are synthetic: the figures show that the machinery" in words
    assert "2 of 26 slides failed" in words
    assert "no mpp" in words
    assert "24 ready, 2 failed" in words
    assert "6 min 50 s" in words
    assert "0.812 0.712 0.100 0.412 1,714" in words
    for metrics in (report["mil"], report["survival"]):
        for arm_metrics in metrics.values():
            limits = f"{arm_metrics['low']:.3f} to {arm_metrics['high']:.3f}"
            text = f"{arm_metrics['estimate']:.3f} {limits}"
            assert text in words
    assert "tumour, of 12 patients" in words
    assert "6 no, 6 yes (positive). Every patient is predicted by models" in words
    assert "Older runs, not shown: mil-aaaaaaaaaaaa." in words
    assert f"runs/{NEWEST['survival']}/report.html" in words
    assert "Begun and not finished: mil-begun." in words
    assert re.search(r"slide s\d\d[ab] of patient p\d\d, by good of fold \d, in which", words)
    assert re.search(r"Of \d yes patients called right, the surest\.", words)
    # thumbnails, fidelity, losses, two forests, ROC, attention, survival curves
    assert len(page.images) == 24 + 7
    assert len(lake.read_bytes("report.html")) < 1_000_000


def test_the_page_loads_nothing_and_runs_nothing(full: tuple[Lake, dict[str, Any]]) -> None:
    html = full[0].read_bytes("report.html").decode()
    page = Page(html)
    assert all(link.startswith(("data:", "#")) for _, link in page.links)
    assert all(re.match(r"data:image/(svg\+xml|png|jpeg);base64,", link) for link in page.images)
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    assert page.tags.count("link") == 1
    assert "url(" not in html
    assert "@import" not in html


def test_what_users_wrote_is_text(full: tuple[Lake, dict[str, Any]]) -> None:
    html = full[0].read_bytes("report.html").decode()
    assert EVIL not in html
    assert SCRIPT not in html
    words = Page(html).words
    assert EVIL in words
    assert words.count(SCRIPT) == 3  # in the list, on the card, and about the cohort
    assert html.count("</style>") == 1


def test_the_commands_work(full: tuple[Lake, dict[str, Any]]) -> None:
    lake = full[0]
    words = page_of(lake).words
    queries = example_queries(lake, read_holding(lake))
    assert len(queries) == 4
    for _, sql in queries:
        assert query(lake, sql).height > 0
        assert sql.partition("'")[0] in words


def test_an_empty_lake(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "a lake", LakeConfig(tile_px=256, mpps=(0.5, 2.0)))
    report = write_report(lake.uri)
    assert report.keys() == KEYS
    for key in ("stages", "fidelity", "mil", "survival", "about"):
        assert report[key] == {}
    assert report["failed"] == []
    assert report["synthetic"] is False
    page = page_of(lake)
    assert page.images == []
    assert "synthetic" not in page.text
    for text in ("run slidelake ingest", "run slidelake extract", "run slidelake distill"):
        assert text in page.words
    assert page.words.count("No run is finished") == 2
    assert f"slidelake info '{lake.uri}'" in page.words
    with pytest.raises(LakeError, match="does not exist"):
        write_report(str(tmp_path / "elsewhere"))


def test_a_later_report_keeps_what_it_was_told(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    write_report(lake.uri, stages={"ingest": 3.0}, about=ABOUT)
    again = write_report(lake.uri)
    assert (again["stages"], again["about"], again["synthetic"]) == ({"ingest": 3.0}, ABOUT, True)
    assert "say nothing about medicine" in page_of(lake).text
    report = write_report(lake.uri, stages={}, about={})
    assert (report["stages"], report["synthetic"]) == ({}, False)


def test_several_students(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    put_student(lake, "old", lake_version=2)
    put_student(lake, "young", lake_version=5)
    lake.write_json("students/unfinished/card.json", {})
    report = write_report(lake.uri)
    assert list(report["students"]) == ["young", "old"]
    assert report["fidelity"] == report["students"]["young"]
    assert "training young 1 min 15 s" in page_of(lake).words


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_other_questions_than_two_classes(task: str, tmp_path: Path) -> None:
    lake = painted_lake(tmp_path / "lake", patients=6)
    write_run(lake, task, arms=("good", "noise"), attention=(), patients=12)
    report = write_report(lake.uri)
    assert list(report["mil"]) == ["good", "noise"]
    page = page_of(lake)
    assert len(page.images) >= 2 + lake.slides().collect().height
    assert "None: no model of this run says which tiles it weighs." in page.words


def test_the_arm_of_the_newest_student_is_shown(tmp_path: Path) -> None:
    lake = painted_lake(tmp_path / "lake", patients=6)
    put_student(lake, "small")
    arms = ("good / abmil", "small / mean", "small / abmil")
    write_run(lake, arms=arms, attention=arms[::2], patients=6)
    write_report(lake.uri)
    words = page_of(lake).words
    assert re.search(r"[0-9.]+ to [0-9.]+; small / mean", words)
    # which has no attention: the first arm that has
    assert "by good / abmil of fold" in words
    one_class = {"label": pl.lit("no")}
    rows = predictions("binary", arms, 6, 1, 1).with_columns(**one_class)
    write_run(lake, run="mil-later", arms=arms, rows=rows, attention=arms[:1], patients=6)
    report = write_report(lake.uri)
    assert "undefined for small / mean" in page_of(lake).words
    assert report["mil"]["small / mean"] == {"estimate": None, "low": None, "high": None}
    words = page_of(lake).words
    assert "None: nobody fits the rule with good / abmil." in words
