"""Workers of an extract that die at work: what they had in hand is done elsewhere, or given up."""

from pathlib import Path

import numpy as np
import pytest

from cluster import NodeShape, Placement, WorkerSettings
from featurestore import open_lake, verify
from ingest.teachers.ray_extract import extract
from ingest.teachers.ray_workers import waiting_line
from ingest.teachers.work.unit_queue import SIZES, UnitSizes
from tests.worlds.painted_lake import painted_lake

#: Kills its process at the last tile of a slide at 0.5 mpp: at each, or only the first time.
DEADLY = """
import os, signal
from pathlib import Path
import torch
from slidelake import Card
CARD = Card(name="deadly", architecture="deadly", dim=3, input_px=32, mean=(0.5,) * 3,
            std=(0.5,) * 3, licence="none", source="none")
MARK = Path({mark!r})
class Deadly(torch.nn.Module):
    def forward(self, x_BCHW):
        colour = x_BCHW.mean(dim=(2, 3))
        if ((colour[:, 0] > 0.7) & (colour[:, 2] > 0.5)).any() and not ({once} and MARK.exists()):
            MARK.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return colour
def build():
    return Deadly()
"""


def test_why_no_worker_starts() -> None:
    two = Placement(device="cpu", workers=2, cpus_per_worker=8.0, gpus_per_worker=0.0)
    small = [NodeShape(cpus=4, gpus=0, count=3)]
    line = waiting_line(two, small)
    assert line.endswith(
        "no node that is up holds one of 2 workers with 8 CPUs each, on cpu (nodes up: 3 x 4 CPUs)"
    )
    assert waiting_line(two, []).endswith("(nodes up: none with CPUs)")
    busy = waiting_line(two, [*small, NodeShape(cpus=8, gpus=0, count=1)])
    assert busy.endswith("other jobs hold the nodes")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_up")
@pytest.mark.parametrize("once", [True, False])
def test_units_of_lost_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: bool) -> None:  # noqa: FBT001 - a parameter of a test
    monkeypatch.setitem(SIZES, "cpu", UnitSizes(first=10, least=10, most=10, grain=8))
    painted_lake(tmp_path / "lake", patients=3, mpps=(0.5, 2.0), thumbnail=False)
    encoder = tmp_path / "deadly.py"
    encoder.write_text(DEADLY.format(mark=str(tmp_path / "mark"), once=once))
    size = WorkerSettings(workers=2)
    extracted = extract(str(tmp_path / "lake"), [str(encoder)], workers=size)
    lake = open_lake(tmp_path / "lake")
    assert (tmp_path / "mark").exists()
    assert verify(lake).ok
    done = lake.features_of("deadly", mpp=2.0)
    assert done.height == 4  # whatever becomes of the other fragment
    if once:
        assert not extracted.failed
        assert extracted.teachers["deadly"]["tiles"] == 96 + 4
        bag = lake.bag("s00a", "deadly", mpp=0.5)
        red = (30 + 40 * np.tile(np.arange(6), 4)) / 127.5 - 1
        assert np.abs(bag.features[:, 0] - red).max() < 0.02
        assert not list((tmp_path / "lake").glob("parts/*.part"))
    else:
        (failure,) = extracted.failed
        assert "the worker died on it 3 times" in failure["reason"]
        assert (failure["mpp"], failure["slide"].count(",")) == ("0.5", 3)
        assert list((tmp_path / "lake").glob("parts/*.part"))  # what was done is kept
