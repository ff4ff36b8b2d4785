"""The pages of cohorts and probes, run as they stand: files are written, sessions are compared."""

import doctest
import re
from pathlib import Path

import pytest

from featurestore import LakeConfig, create_lake
from tests.conftest import ROOT
from tests.downstream.test_downstream_bags import build, cut
from tests.downstream.test_probe_tiles import tile_features, truth_of

FILE = re.compile(r"^```(?:csv|tsv) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: str, folder: Path, **names: str) -> None:
    """Write the page's files and run its sessions as one; nothing is skipped."""
    text = (ROOT / "docs" / page).read_text()
    for page_name, ours in names.items():
        text = text.replace(page_name, ours)
    for name, content in FILE.findall(text):
        (folder / name).write_text(content)
    test = doctest.DocTestParser().get_doctest(text.replace("\n```", "\n\n```"), {}, page, page, 0)
    output: list[str] = []
    runner = doctest.DocTestRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)
    assert runner.tries == len(re.findall(r"^>>> ", text, re.MULTILINE)) > 9


def test_cohorts(tmp_path: Path) -> None:
    lake = create_lake(tmp_path / "my-lake", LakeConfig(tile_px=256, mpps=(0.5,)))
    slides = {"a-1": "A", "a-2": "A", "b-1": "B", "c-1": "C", "d-1": "D"}
    rows = lake.committer.register(
        [{"slide_id": s, "patient_id": p, "uri": f"{s}.svs"} for s, p in slides.items()]
    )
    lake.committer.commit_slides([cut(lake, row, 3) for row in rows])
    run("cohorts.md", tmp_path)


def test_probes(tmp_path: Path) -> None:
    lake = build(tmp_path / "my-lake", tile_features())
    truth_of(lake).select("slide_id", "tile_id", "tissue").write_csv(tmp_path / "tiles.csv")
    run("probes.md", tmp_path, uni2_h="good")
