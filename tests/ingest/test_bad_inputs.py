"""One ingest over every bad input that we know of, beside good ones."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import slidelake
from featurestore import Committer, Lake, open_lake
from ingest.ray_ingest import ingest
from ingest.remote import remote_files
from tests.conftest import CONFIG
from tests.worlds.bad_slides import Input, build, copy_of, remove
from tests.worlds.slide_server import SlideServer, slide_server

LIMIT_S = 240


def command(lake: Path, inputs: list[Input]) -> int:
    """The command, in this process, so that its own Ray is the tests'."""
    words = ["slidelake", "ingest", str(lake), *[one.uri for one in inputs]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*words, "--mpp", "0.5", "--mpp", "2.0", "--json"])
        with pytest.raises(SystemExit) as ended:
            slidelake.main()
    return int(ended.value.code or 0)


def take_away_when_known(
    patch: pytest.MonkeyPatch, inputs: list[Input], server: SlideServer
) -> None:
    """Have some files vanish once the lake knows of them, and before a worker opens them."""
    register = Committer.register

    def registered(self: Committer, rows: Any) -> Any:  # noqa: ANN401 - as it is
        rows_in_lake = register(self, rows)
        remove(inputs, server)
        return rows_in_lake

    patch.setattr(Committer, "register", registered)


def shards(lake: Lake) -> dict[str, bytes]:
    """Every shard by its name in the lake."""
    paths = [path for mpp in CONFIG.mpps for path in lake.tiles_of(mpp=mpp)["shard"]]
    return {path: lake.read_bytes(path) for path in paths}


@pytest.mark.usefixtures("ray_up")
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.slow
def test_every_bad_input_has_its_line_and_the_good_ones_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_files, "PAUSE_S", 0.01)
    (tmp_path / "in").mkdir()
    with slide_server() as server:
        inputs = build(tmp_path / "in", server)
        bad = [one for one in inputs if one.reason is not None]
        good = [one for one in inputs if one.reason is None]
        assert len(bad) >= 25
        with monkeypatch.context() as patch:
            take_away_when_known(patch, inputs, server)
            began = time.monotonic()
            assert command(tmp_path / "lake", inputs) == 1
            elapsed_s = time.monotonic() - began
        printed = capsys.readouterr()
        alone = ingest(str(tmp_path / "alone"), copy_of(inputs, tmp_path / "copies"), CONFIG)
    report = json.loads(printed.out.splitlines()[-1])
    check_report(report, bad, good)
    assert 0 < report["seconds"] <= elapsed_s
    assert "hush" not in printed.out + printed.err
    lake, other = (open_lake(tmp_path / name) for name in ("lake", "alone"))
    check_lake(lake, bad, good)
    assert (alone.ready, alone.failed, alone.tiles) == (len(good), [], report["tiles"])
    assert shards(lake) == shards(other)
    assert len(shards(lake)) == len(good) * len(CONFIG.mpps)


def check_report(report: dict[str, Any], bad: list[Input], good: list[Input]) -> None:
    """The command's JSON: its form, and one line of its own for each bad input."""
    assert {"ready", "failed", "tiles", "seconds", "readers"} <= set(report)
    assert report["ready"] == len(good) == sum(report["readers"].values())
    assert set(report["tiles"]) == {"0.5", "2.0"}
    assert all(isinstance(count, int) and count > 0 for count in report["tiles"].values())
    failed = [(entry["slide"], entry["reason"]) for entry in report["failed"]]
    wrong = [
        (one.slide_id, one.reason, [why for slide, why in failed if slide == one.slide_id])
        for one in bad
        if not any(
            slide == one.slide_id and re.search(str(one.reason), why) for slide, why in failed
        )
    ]
    assert wrong == []
    assert sorted(slide for slide, _ in failed) == sorted(one.slide_id for one in bad)
    assert not any("\n" in why or "Traceback" in why for _, why in failed)
    assert len({why for _, why in failed}) == len(bad)


def check_lake(lake: Lake, bad: list[Input], good: list[Input]) -> None:
    """The states in the lake, and that good slides have all their tiles."""
    slides = lake.slides().collect()
    states = dict(slides.select("slide_id", "state").iter_rows())
    names = {one.slide_id for one in good}
    assert {slide for slide, state in states.items() if state == "ready"} == names
    assert {slide for slide, state in states.items() if state == "failed"} == {
        one.slide_id for one in bad
    } - names
    for mpp in CONFIG.mpps:
        catalog = lake.tiles_of(mpp=mpp)
        assert set(catalog["slide_id"]) == names
        rows = lake.tiles(mpp=mpp).group_by("slide_id").agg(pl.len()).collect()
        assert dict(rows.iter_rows()) == dict(catalog.select("slide_id", "tiles").iter_rows())
    whole, lesser = (
        states_of["tiles"][0]
        for states_of in (
            lake.tiles_of(mpp=0.5).filter(pl.col("slide_id") == name)
            for name in ("served", "not-stored")
        )
    )
    assert 0 < lesser <= whole
