"""Cut slides and failed slides are committed together, in batches."""

import io
from pathlib import Path

import polars as pl
import pytest

from cluster import JobWatch, progress
from featurestore import Lake, LakeConfig, create_lake
from ingest import ray_ingest
from ingest.ray_ingest import _Batch
from tests.worlds.small_lake import cut


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Return a lake with ten slides that are to be cut."""
    lake = create_lake(tmp_path / "lake", LakeConfig(mpps=(0.5,)))
    lake.committer.register([{"slide_id": f"s{n}", "uri": f"s{n}.svs"} for n in range(10)])
    return lake.refreshed()


def batch_of(lake: Lake, slides: int) -> _Batch:
    """Return a batch of a job that nobody watches."""
    with progress("ingest", total=10, unit="slides", stream=io.StringIO()) as bar:
        return _Batch(lake, slides, JobWatch("ingest", lake.uri, bar))


def row(number: int, state: str = "pending") -> dict[str, object]:
    """Return the row of a slide that could not be cut."""
    name = f"s{number}"
    return {"slide": number, "slide_id": name, "uri": name, "state": state, "reason": "broken"}


def states(lake: Lake) -> dict[str, int]:
    """Return the number of slides by state."""
    frame = lake.refreshed().slides().group_by("state").agg(pl.len()).collect()
    return dict(frame.iter_rows())


def test_failed_slides_and_cut_slides_are_one_commit(lake: Lake) -> None:
    batch, version = batch_of(lake, 4), lake.version
    for number in range(2):
        assert batch.fail([row(number)], {}) == []
    batch.add(cut(lake, 2, "s2", 3))
    assert lake.refreshed().version == version
    assert batch.fail([row(3)], {}) == []
    assert lake.refreshed().version == version + 1
    assert states(lake) == {"failed": 3, "ready": 1, "pending": 6}
    for number in range(4, 7):
        batch.fail([row(number)], {})
    batch.flush()
    batch.flush()
    assert lake.refreshed().version == version + 2
    assert states(lake) == {"failed": 6, "ready": 1, "pending": 3}


def test_a_failure_waits_no_longer_than_a_slide(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(lake, 64)
    batch.fail([row(0)], {})
    assert states(lake) == {"pending": 10}
    monkeypatch.setattr(ray_ingest, "COMMIT_S", 0.0)
    batch.fail([row(1)], {})
    assert states(lake) == {"failed": 2, "pending": 8}


def test_a_slide_that_is_ready_stays_ready(lake: Lake) -> None:
    batch = batch_of(lake, 64)
    batch.add(cut(lake, 0, "s0", 3))
    batch.flush()
    kept = batch.fail([row(0, "ready"), row(1)], {"s0": "another mpp"})
    batch.flush()
    assert [slide["slide"] for slide in kept] == ["s0"]
    assert "its earlier tiles stay" in kept[0]["reason"]
    assert states(lake) == {"ready": 1, "failed": 1, "pending": 8}
