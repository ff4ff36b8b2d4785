"""Parts of the report that need no runs: which slides are shown, what is drawn, what is said."""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from downstream.report_lake import Part, package_versions, read_holding
from downstream.report_page import notice
from downstream.report_plots import fidelity_png, forest_png
from downstream.report_results import shown_set
from downstream.report_slides import Tiles, choose_slides, decode_rgb, draw_slide, scaled
from featurestore import DamageError, LakeConfig, create_lake


def rows(**changes: Callable[[int], Any]) -> pl.DataFrame:
    base: dict[str, Callable[[int], Any]] = {
        "slide": lambda n: n,
        "uri": lambda n: f"/scans/s{n}.svs",
        "state": lambda _: "ready",
        "verdict": lambda _: "ok",
    }
    return pl.DataFrame({k: [f(n) for n in range(50)] for k, f in {**base, **changes}.items()})


def test_which_slides_are_shown() -> None:
    slides = rows(
        state=lambda n: "failed" if n >= 30 else "ready",
        verdict=lambda n: "suspicious" if n == 20 else "ok" if n < 30 else None,
    )
    shown = choose_slides(slides, first="s9.svs")["slide"].to_list()
    assert len(shown) == 36
    assert shown[:12] == list(range(30, 42))
    assert shown[12:16] == [9, 20, 0, 1]
    assert choose_slides(rows())["slide"].to_list() == list(range(36))


def test_tiles_are_drawn_where_they_are() -> None:
    white = np.full((100, 200, 3), 255, np.uint8)
    one = Tiles(side_px=400, x=np.array([800], np.int32), y=np.array([0], np.int32))
    drawn = draw_slide(white, None, [one], width_px=2000)
    colour = (drawn != 255).any(axis=2)
    assert colour[:41, 80:121].sum() == colour.sum() > 0
    assert not colour[1:40, 81:120].any()
    masked = draw_slide(white, np.full((10, 20), 255, np.uint8), [], width_px=2000)
    assert masked[0].max() < 60
    assert (masked[10:-10, 10:-10] == 255).all()
    assert white.min() == 255


def test_tiny_tiles_are_drawn_as_one_area() -> None:
    white = np.full((100, 200, 3), 255, np.uint8)
    y, x = (part.ravel().astype(np.int32) * 400 for part in np.mgrid[10:30, 20:80])
    drawn = draw_slide(white, None, [Tiles(side_px=400, x=x, y=y)], width_px=80_000)
    colour = (drawn != 255).any(axis=2)
    assert colour[9:31, 19:81].sum() == colour.sum() >= 2 * (20 + 60) - 4
    assert not colour[12:28, 22:78].any()


def test_a_damaged_picture_is_named() -> None:
    with pytest.raises(DamageError, match="can't be decoded"):
        decode_rgb(b"not a picture")
    assert scaled(np.zeros((100, 50, 3), np.uint8), 360).shape == (360, 180, 3)


def test_pictures_of_numbers() -> None:
    for picture in (
        forest_png({"a": (0.2, 0.0, 0.4), "b": (1.0, 1.0, 1.0)}, xlabel="x"),
        fidelity_png([("a", 0.9, 0.7), ("b", -0.2, 0.1)]),
    ):
        with Image.open(io.BytesIO(picture)) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100


def test_which_feature_set_is_shown() -> None:
    run = Part(name="r", content={"metrics": {"a": {}, "b": {}}}, modified=datetime.now(UTC))
    assert shown_set(run, ["c", "b"]) == "b"
    assert shown_set(run, ["c"]) == "a"


def test_notice_and_versions() -> None:
    assert notice({}) is None
    assert "cohort are synthetic" in str(notice({"synthetic": True}))
    versions = package_versions()
    assert versions["Polars"] == pl.__version__
    assert "not installed" not in versions.values()


def test_holding_of_a_lake_without_folders(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "lake", LakeConfig())
    holding = read_holding(lake)
    assert (holding.students, holding.runs, holding.unfinished) == (
        [],
        {"mil": [], "survival": []},
        [],
    )
    assert holding.newest("mil") is None
