"""The command that computes scores of tiles for a lake that is there."""

from pathlib import Path

from featurestore import Lake, LakeConfig, create_lake, open_lake, verify
from ingest.cut import cut_slide
from ingest.select.sources import fingerprint
from tests.conftest import REAL_SLIDE
from tests.worlds.command_lines import Output, Places, command_line

TRY = command_line("score {lake} haematoxylin --dry-run --json")
SCORE = command_line("score {lake} haematoxylin")
DROP = command_line("score {lake} haematoxylin --drop --quiet --json")
WRONG = command_line("score {lake} pen")


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
    assert f"{count} tiles got haematoxylin" in SCORE.run(capsys, places).stdout
    assert open_lake(lake.uri).version == lake.version + 1
    assert "0 tiles got haematoxylin" in SCORE.run(capsys, places).stdout
    dropped = DROP.run(capsys, places).value
    assert dropped == {"dropped": ["haematoxylin"], "version": lake.version + 2}
    assert "haematoxylin" not in open_lake(lake.uri).tiles(mpp=2.0).collect_schema().names()
    assert verify(open_lake(lake.uri)).ok
    assert "keeps no score 'haematoxylin'" in DROP.run(capsys, places, code=2).stderr
    assert "is made from the slide while it is cut" in WRONG.run(capsys, places, code=2).stderr
