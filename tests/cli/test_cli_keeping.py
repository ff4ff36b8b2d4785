"""verify, repair, compact, vacuum and snapshot as a user types them."""

import json
from pathlib import Path

import pytest

from featurestore import open_lake
from tests.conftest import REAL_SLIDE, TEACHERS
from tests.worlds.command_lines import Slidelake
from tests.worlds.small_lake import contents


def test_verify_of_a_clean_lake(filled: Path, slidelake: Slidelake) -> None:
    verdict = json.loads(slidelake("verify", filled, "--json").stdout)
    assert (verdict["ok"], verdict["damage"]) == (True, [])
    assert verdict["checked"]["slides"] == 7
    assert verdict["checked"]["features"] == 7 * 2 * len(TEACHERS)
    assert "all as it was committed" in slidelake("verify", filled, "--sample", "0.3").stdout


@pytest.mark.slow
@pytest.mark.usefixtures("ray_up")
def test_damage_is_named_repaired_and_made_again(
    lake_copy: Path, cohort: Path, slidelake: Slidelake
) -> None:
    lake = open_lake(lake_copy)
    whole = contents(lake)
    row = lake.tiles_of(mpp=2.0, slide_ids=[REAL_SLIDE.stem]).row(0, named=True)
    (lake_copy / row["shard"]).unlink()
    feature_bytes = lake.bag("P000-1", TEACHERS[1], mpp=0.5).features[3].tobytes()
    for file in (lake_copy / "features/mpp0.5.lance/data").iterdir():
        file_bytes = file.read_bytes()
        if feature_bytes in file_bytes:
            at = file_bytes.index(feature_bytes)
            file.write_bytes(file_bytes[:at] + bytes([file_bytes[at] ^ 1]) + file_bytes[at + 1 :])
    verdict = json.loads(slidelake("verify", lake_copy, "--json", code=1).stdout)
    assert not verdict["ok"]
    assert set(verdict["damage"][0]) == {"slide", "mpp", "teacher", "what", "part", "path"}
    assert {(d["slide"], d["mpp"], d["teacher"]) for d in verdict["damage"]} == {
        ("P000-1", 0.5, TEACHERS[1]),
        (REAL_SLIDE.stem, 2.0, None),
    }
    text = slidelake("verify", lake_copy, code=1).stdout
    assert f"slide P000-1, at 0.5 mpp, teacher {TEACHERS[1]}: checksum" in text
    trial = slidelake("repair", lake_copy, "--dry-run").stdout
    assert trial == "nothing was changed (--dry-run)\n"
    done = json.loads(slidelake("repair", lake_copy, "--yes", "--json").stdout)
    assert done["slides"] == [REAL_SLIDE.stem]
    assert [(c["teacher"], c["mpp"]) for c in done["columns"]] == [(TEACHERS[1], 0.5)]
    left = json.loads(slidelake("verify", lake_copy, "--json", code=1).stdout)["damage"]
    assert [(d["slide"], d["mpp"]) for d in left] == [(REAL_SLIDE.stem, 2.0)]  # until it is cut
    slidelake("ingest", lake_copy, cohort, REAL_SLIDE)
    slidelake("extract", lake_copy, "--teacher", TEACHERS[0], "--teacher", TEACHERS[1])
    slidelake("verify", lake_copy)
    assert contents(open_lake(lake_copy)) == whole
    assert "nothing is damaged" in slidelake("repair", lake_copy).stdout


def test_snapshot_compact_vacuum(lake_copy: Path, slidelake: Slidelake) -> None:
    before = contents(open_lake(lake_copy))
    named = json.loads(slidelake("snapshot", lake_copy, "paper-v1", "--json").stdout)
    done = json.loads(slidelake("compact", lake_copy, "--json").stdout)
    assert done["before"] > done["after"] > 0
    trial = slidelake("vacuum", lake_copy, "--keep", "1", "--dry-run").stdout
    assert "would remove" in trial
    freed = json.loads(slidelake("vacuum", lake_copy, "--keep", "1", "--json").stdout)
    assert freed["versions"] > 0
    assert named["version"] in freed["kept"]
    info = json.loads(slidelake("info", lake_copy, "--at", "paper-v1", "--json").stdout)
    assert info["version"] == named["version"]
    assert info["snapshots"] == {"paper-v1": named["version"]}
    assert contents(open_lake(lake_copy)) == before
    sql = "SELECT count(*) FROM tiles_mpp2_0"
    at = slidelake("query", lake_copy, sql, "--at", "paper-v1", "--json").stdout
    assert at == slidelake("query", lake_copy, sql, "--json").stdout
    wrong = slidelake("verify", lake_copy, "--at", "nope", code=2)
    assert "no snapshot 'nope'; it has: paper-v1" in wrong.stderr
