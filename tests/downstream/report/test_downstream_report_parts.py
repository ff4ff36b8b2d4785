"""Parts of the report that need no runs: what is drawn, what is said."""

from pathlib import Path

import polars as pl

from downstream.report.finished_run import Run
from downstream.report.lake_holding import package_versions, read_holding
from downstream.report.plots.plots_report import fidelity_svg, forest_svg
from downstream.report.report_page import notice
from downstream.report.result_views import shown_arm
from featurestore import LakeConfig, create_lake
from tests.downstream.report.test_downstream_plots import svg_size


def test_pictures_of_numbers() -> None:
    for picture in (
        forest_svg({"a": (0.2, 0.0, 0.4), "b": (1.0, 1.0, 1.0)}, xlabel="x"),
        forest_svg({"a": (-3.0, -9.0, 40.0)}, xlabel="x", chance=0.0, margin=-0.5),
        forest_svg({"a": (7.0, 7.0, 7.0)}, xlabel="x", chance=None),
        fidelity_svg([("a", 0.9, 0.7), ("b", -0.2, 0.1)]),
    ):
        assert min(svg_size(picture)) > 70


def test_which_arm_is_shown() -> None:
    described = {"a / x": {"features": "a"}, "b / x": {"features": "b"}, "b / y": {"features": "b"}}
    run_result = {"metrics": {arm: {} for arm in described}, "arms": described}
    run = Run(name="r", result=run_result, scored=pl.DataFrame())
    assert shown_arm(run, ["c", "b"]) == "b / x"
    assert shown_arm(run, ["c"]) == "a / x"


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
