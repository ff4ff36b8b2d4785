"""Lakes of every format there ever was are read, checked, and added to."""

import json
import tarfile
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from featurestore import Lake, compact, open_lake, read_stats, vacuum, verify
from tests.conftest import ROOT
from tests.worlds.small_lake import add_slides, add_teacher, contents, values_of

FORMATS = (1,)


@pytest.fixture(params=FORMATS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Lake, dict[str, Any]]:
    """Return a lake of an earlier format as it was written then, and what it held."""
    with tarfile.open(ROOT / f"tests/data/format{request.param}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return open_lake(tmp_path / "lake"), json.loads((tmp_path / "held.json").read_text())


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def test_it_holds_what_it_held(kept: tuple[Lake, dict[str, Any]]) -> None:
    lake, held = kept
    assert lake.version == held["version"]
    assert as_json(contents(lake)) == held["contents"]
    info = lake.info()
    assert as_json({name: info[name] for name in held["info"]}) == held["info"]
    assert verify(lake).ok
    bag = lake.bag("c", "u:cls", mpp=2.0)
    np.testing.assert_array_equal(bag.features, values_of(bag.tile_id, 3, "u:cls").astype("f2"))
    assert read_stats(lake, "t", mpp=0.5, slide_ids=["a", "b"]) is not None


def test_its_old_versions_and_snapshots_open(kept: tuple[Lake, dict[str, Any]]) -> None:
    lake, _ = kept
    first = open_lake(lake.uri, version="first")
    assert first.info()["tiles"] == {"0.5": 8, "2.0": 8}
    assert verify(first).ok


def test_it_can_be_added_to_and_kept(kept: tuple[Lake, dict[str, Any]]) -> None:
    lake, _ = kept
    more = add_teacher(add_slides(lake, {"new": 4, "b": 2}, mark="new"), "t")
    compact(more)
    vacuum(more)
    after = open_lake(lake.uri)
    assert verify(after).ok
    assert after.info()["features"][0]["complete"]


def test_the_specification_names_every_column(kept: tuple[Lake, dict[str, Any]]) -> None:
    lake, _ = kept
    text = (ROOT / "docs/format.md").read_text()
    for rel in ("slides.lance", "catalog.lance", "features/mpp0.5.lance"):
        for name in lance.dataset(lake.store.url(rel)).schema.names:
            assert name in {"t", "u:cls"} or f"`{name}`" in text, name
