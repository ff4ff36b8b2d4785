"""A build against an ingest and an extract, and what it refuses before a slide is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import slidelake
from cluster import ClusterError, WorkerSettings
from featurestore import IdentityError, LakeConfig, LakeError, open_lake
from ingest import BuildResult, InputError, TeacherError
from ingest.lake_building import PlannedColumn, plan_columns
from ingest.teachers import extract
from tests.conftest import CONFIG, TEACHERS

TEACHER = TEACHERS[0]


@pytest.fixture(scope="module")
def slides(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two slides of the cohort, and a file that is none."""
    torn = tmp_path_factory.mktemp("torn") / "torn.svs"
    torn.write_text("this is no slide")
    return [*map(str, sorted(cohort.parent.rglob("*.svs"))[:2]), str(torn)]


def features(lake: Path, slide_ids: list[str]) -> pl.DataFrame:
    frame = open_lake(lake).features(TEACHER, mpp=2.0)
    frame = frame.filter(pl.col("slide_id").is_in(slide_ids))
    return frame.select("slide_id", "x", "y", TEACHER).sort("slide_id", "y", "x").collect()


class StoppedError(Exception):
    """The stop of a build between its stages."""


def stop(*_args: object, **_options: object) -> None:
    raise StoppedError


@pytest.mark.slow
@pytest.mark.usefixtures("ray_up")
def test_a_build_is_an_ingest_and_an_extract_and_goes_on_after_a_stop(
    slides: list[str], filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = str(tmp_path / "lake")
    with monkeypatch.context() as patch:
        patch.setattr("ingest.lake_building.extract", stop)
        with pytest.raises(StoppedError):
            slidelake.build_lake(lake, slides, [TEACHER], mpps=[2.0])
    page = tmp_path / "lake" / "ingest.html"
    assert TEACHER not in page.read_text()  # the slides can be looked at while teachers run

    built = slidelake.build_lake(lake, slides, [TEACHER], mpps=[2.0])
    assert isinstance(built, BuildResult)
    assert (built.ingested.new, built.ingested.ready, built.extracted.ready) == (0, 2, 2)
    assert [failure["slide"] for failure in built.failed] == ["torn"]
    assert built.page == str(page)
    assert TEACHER in page.read_text()

    names = [Path(uri).stem for uri in slides[:2]]
    ours, theirs = features(tmp_path / "lake", names), features(filled, names)
    assert ours.select("slide_id", "x", "y").equals(theirs.select("slide_id", "x", "y"))
    assert built.extracted.teachers[TEACHER]["tiles"] == ours.height > 3
    # batches of other slides round the last bits differently
    one, other = (np.stack(frame[TEACHER].to_list()) for frame in (ours, theirs))
    np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=0.02, atol=0.01)

    again = slidelake.build_lake(lake, slides, [TEACHER])
    assert (again.ingested.new, again.extracted.teachers[TEACHER]["tiles"]) == (0, 0)
    assert again.extracted.did_nothing is False


@pytest.mark.parametrize(
    ("teachers", "options", "error", "message"),
    [
        (["uni3_h"], {}, TeacherError, "no teacher 'uni3_h': did you mean uni2_h"),
        ([TEACHER, "uni2_h"], {}, TeacherError, "weights of 'uni2_h' are not on this machine"),
        (["virchow2:middle"], {}, TeacherError, "'virchow2:middle'"),
        ([TEACHER], {"workers": WorkerSettings(device="cuda")}, ClusterError, "1 GPU fits on no"),
        ([TEACHER], {"workers": 2}, ClusterError, "give a WorkerSettings"),
        (["own.py"], {}, TeacherError, "own.py can't be read"),
        ([TEACHER], {"where": "tisue > 0.5"}, LakeError, "tisue"),
        ([TEACHER], {"share": 1.5}, LakeError, "share 1.5 given"),
        (
            [TEACHER],
            {"mpps": [0.5], "config": LakeConfig()},
            InputError,
            "mpps=.* and a config were given",
        ),
    ],
)
def test_what_is_wrong_with_teachers_is_refused_before_a_slide_is_looked_at(
    teachers: list[str],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ingest.lake_building.ingest", stop)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        slidelake.build_lake(str(tmp_path / "lake"), ["slides/"], teachers, **options)
    assert not (tmp_path / "lake").exists()


def test_a_column_of_another_encoder_is_refused_before_a_slide_is_looked_at(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.lake_building.ingest", stop)
    before = open_lake(filled).version
    with pytest.raises(IdentityError, match=r"with another identity \(differs in: precision"):
        slidelake.build_lake(str(filled), ["slides/"], [TEACHER], precision="bfloat16")
    with pytest.raises(LakeError, match="has"):
        slidelake.build_lake(str(filled), ["slides/"], [TEACHER], mpps=[0.25])
    with pytest.raises(StoppedError):  # the same encoder is taken
        slidelake.build_lake(str(filled), ["slides/"], [TEACHER])
    assert open_lake(filled).version == before


def test_planned_columns_are_those_that_an_extract_makes(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    names = [TEACHER, "virchow2:cls", "uni2_h", "examples/own_encoder.py"]
    here, virchow, uni = plan_columns(lake, names)
    assert here == PlannedColumn(name=TEACHER, dim=1280)
    assert (virchow.name, virchow.dim, uni.name, uni.dim) == ("virchow2:cls", 1280, "uni2_h", 1536)
    assert "its weights are not" in uni.note
    assert not (tmp_path / "lake").exists()


@pytest.mark.usefixtures("ray_up")
def test_an_extract_after_an_ingest_in_one_process_loses_no_block_in_silence(
    filled: Path,
) -> None:
    from ray.data import DataContext

    assert extract(str(filled), [TEACHER]).teachers[TEACHER]["tiles"] == 0
    assert DataContext.get_current().max_errored_blocks == 0
    assert CONFIG.mpps == open_lake(filled).config.mpps
