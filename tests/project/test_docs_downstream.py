"""The pages of downstream, run as they stand, on a lake with the names they use."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

import slidelake
from downstream import MilSettings
from tests.conftest import ROOT
from tests.downstream.test_downstream_bags import PATIENTS, build, planted
from tests.worlds.examples_folder import without_ray

RUN = "mil-0123456789ab"
"""The name that pages give to a run."""
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `my-lake` and `labels.csv`."""
    made = tmp_path_factory.mktemp("docs")
    features = planted()
    build(
        made / "my-lake",
        {"good": features["good"], "uni2_h": features["good"], "virchow2": features["noise"]},
    )
    rng = np.random.default_rng(0)
    lines = ["patient_id,grade,msi,braf,age,hospital,months,dead,sex,stage,outcome"]
    for p in range(PATIENTS):
        months = 20 - 10 * (p % 2) + rng.random()
        grade, site = ("high" if p % 2 else "low"), ("north" if p < PATIENTS // 2 else "south")
        age = f"{50 + 9 * (p % 2)}.{p:02d}"
        lines.append(
            f"p{p:02d},{grade},{p % 2},{p // 2 % 2},{age},{site},{months:.2f},{int(p > 1)},"
            f"{('f', 'm', '')[p % 3]},{'I' * (p % 3 + 1)},"
            f"{('progression', 'progression', 'death', 'alive')[p // 2 % 4]}"
        )
    (made / "labels.csv").write_text("\n".join(lines) + "\n")
    return made


#: Columns of the README, and those of the folder that stand for them.
README_COLUMNS = {"efficientnet_lite0": "uni2_h", "student": "virchow2"}
STUDIES = ("mil", "survival", "predict", "robustness")


def test_studies_of_the_readme_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    defaults = cast("dict[str, Any]", MilSettings.__init__.__kwdefaults__)
    monkeypatch.setitem(defaults, "epochs", 1)
    made_run, ran = "", []
    with without_ray():
        for line in (ROOT / "README.md").read_text().splitlines():
            words = shlex.split(line, comments=True) if line.startswith("slidelake ") else []
            if not set(words[1:2]) & set(STUDIES):
                continue
            words = [made_run if word == RUN else README_COLUMNS.get(word, word) for word in words]
            slidelake.app(words[1:], standalone_mode=False)
            last = capsys.readouterr().out.strip().splitlines()[-1]
            if words[1] == "predict":
                assert pl.read_csv("predicted.csv").height == PATIENTS
            else:
                assert (folder / "my-lake" / last).exists(), line
            made_run = made_run or Path(last).parent.name
            ran.append(words[1])
    assert set(ran) == set(STUDIES)


PAGES = [
    pytest.param("mil.md", marks=pytest.mark.slow),
    pytest.param("survival.md", marks=pytest.mark.slow),
    "report.md",
    "robustness.md",
    "search.md",
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(
    page: str,
    folder: Path,
    ray_up: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    defaults = cast("dict[str, Any]", MilSettings.__init__.__kwdefaults__)
    monkeypatch.setitem(defaults, "epochs", 3)
    blocks = FENCE.findall((ROOT / "docs" / page).read_text())
    ran, made_run = 0, ""
    names: dict[str, object] = {}
    for kind, code in blocks:
        if ">>>" in code:
            continue  # a session, which the tests of its modules run
        if kind == "python":
            exec(compile(code, page, "exec"), names)
            ran += 1
            continue
        for written in code.splitlines():
            line = written.replace(RUN, made_run)  # the page's own runs have names of their own
            if "other-lake" in line:
                shutil.copytree(folder / "my-lake", folder / "other-lake", dirs_exist_ok=True)
            slidelake.app(shlex.split(line)[1:], standalone_mode=False)
            output = capsys.readouterr().out
            if line.split()[1] in ("mil", "survival"):
                assert "patients" in output, line
                run = output.strip().splitlines()[-1]
                assert (folder / "my-lake" / run).exists(), line
                made_run = made_run or Path(run).parent.name
            ran += 1
    assert ran >= (2 if page == "report.md" else 3)
    for made in {"report.md": ["maps"], "search.md": ["found.html"]}.get(page, []):
        assert (folder / made).exists()
