"""Makes the small lake that is kept in the tests: `python -m tests.make_format_lake OUT.tar.gz`.

It was run once per format and is not run by the tests: what it made then is what they read.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from featurestore import Lake, LakeConfig, compact, create_lake, fit_stats, verify
from tests.worlds.small_lake import add_slides, add_teacher, contents


def make(uri: str) -> Lake:
    """Four slides, one scanned again, one failed; two teachers; a snapshot; statistics."""
    lake = create_lake(uri, LakeConfig(tile_px=16, mpps=(0.5, 2.0)))
    lake = add_teacher(add_slides(lake, {"a": 5, "b": 3}), "t")
    lake.snapshot("first")
    bad = lake.committer.register([{"slide_id": "bad", "uri": "bad.svs"}])
    lake.committer.fail([{**bad[0], "reason": "no tissue found"}])
    lake = add_slides(lake, {"a": 6}, mark="again")
    lake = add_teacher(add_slides(lake, {"c": 2, "d": 0}), "t")
    lake = add_teacher(lake, "u:cls", dim=3)
    fit_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"])
    compact(lake)
    lake = add_slides(lake.refreshed(), {"e": 1})
    assert verify(lake).ok
    return lake


def main(out: str) -> None:
    """Make the lake, and what it holds as JSON, in one archive."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lake = make(str(folder / "lake"))
        info = lake.info()
        info.pop("lake")
        held = {"version": lake.version, "contents": contents(lake), "info": info}
        (folder / "held.json").write_text(json.dumps(held, indent=1))
        with tarfile.open(out, "w:gz") as tar:
            tar.add(folder / "lake", "lake")
            tar.add(folder / "held.json", "held.json")


if __name__ == "__main__":
    main(sys.argv[1])
