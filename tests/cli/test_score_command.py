"""The command that computes scores of tiles for a lake that is there."""

import sys
from pathlib import Path

import pytest

from cluster import extensions
from featurestore import Lake, LakeConfig, create_lake, open_lake, verify
from ingest.cut import cut_slide
from ingest.scores.score_table import SCORES
from ingest.select.sources import fingerprint
from tests.conftest import REAL_SLIDE
from tests.worlds.command_lines import Output, Places, command_line

TRY = command_line("score {lake} haematoxylin --dry-run --json")
SCORE = command_line("score {lake} haematoxylin")
DROP = command_line("score {lake} haematoxylin --drop --quiet --json")
WRONG = command_line("score {lake} pen")
OWN = command_line("--extend {file} score {lake} own_score --json")
OWN_MISSING = command_line("score {lake} own_score")


def real_lake(folder: Path) -> Lake:
    """Return a lake of the real slide at 2.0 mpp."""
    lake = create_lake(folder, LakeConfig(mpps=(2.0,)))
    size, mark = fingerprint(str(REAL_SLIDE))
    row = {"slide_id": "a", "uri": str(REAL_SLIDE), "bytes": size, "fingerprint": mark}
    (registered,) = lake.committer.register([row])
    lake.committer.commit_slides([cut_slide(lake.store, lake.config, registered)])
    return lake.refreshed()


def test_score_fills_what_is_missing(tmp_path: Path, capsys: Output) -> None:
    lake = real_lake(tmp_path / "lake")
    places = Places({"lake": lambda: lake.uri})
    count = lake.info()["tiles"]["2.0"]
    planned = TRY.run(capsys, places).value
    assert planned["tiles"] == {"haematoxylin": count}
    assert open_lake(lake.uri).version == lake.version
    assert f"haematoxylin: {count} tiles were scored" in SCORE.run(capsys, places).stdout
    assert open_lake(lake.uri).version == lake.version + 1
    assert "haematoxylin: 0 tiles were scored" in SCORE.run(capsys, places).stdout
    dropped = DROP.run(capsys, places).value
    assert dropped == {"dropped": ["haematoxylin"], "version": lake.version + 2}
    assert "haematoxylin" not in open_lake(lake.uri).tiles(mpp=2.0).collect_schema().names()
    assert verify(open_lake(lake.uri)).ok
    assert "keeps no score 'haematoxylin'" in DROP.run(capsys, places, code=2).stderr
    assert "is made from the slide while it is cut" in WRONG.run(capsys, places, code=2).stderr


def test_a_score_of_a_users_own_file(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, file = real_lake(tmp_path / "lake"), tmp_path / "own_score_file.py"
    file.write_text(
        "from ingest.scores.score_table import SCORES, Score\n"
        "SCORES['own_score'] = Score(measures='always 7', of_pixels=lambda tile: 7.0)\n"
    )
    places = Places({"lake": lambda: lake.uri, "file": lambda: str(file)})
    assert (
        "no score of tiles is called 'own_score'" in OWN_MISSING.run(capsys, places, code=2).stderr
    )
    # what the file adds to this process is taken out again afterwards
    monkeypatch.setitem(SCORES, "own_score", SCORES["haematoxylin"])
    monkeypatch.setattr(extensions, "_loaded", {})
    count = lake.info()["tiles"]["2.0"]
    assert OWN.run(capsys, places).value["tiles"] == {"own_score": count}
    tiles = open_lake(lake.uri).tiles(mpp=2.0).select("own_score").collect()
    assert tiles["own_score"].to_list() == [7.0] * count
    sys.modules.pop("own_score_file")
