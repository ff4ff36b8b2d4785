"""The benchmark for GPUs runs on a CPU, and where there is a GPU in earnest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from featurestore import TileBatch

SMALL: dict[str, Any] = {"architecture": "test_vit", "input_px": 64, "batch_tiles": 8, "steps": 2}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the only report in a folder."""
    [path] = folder.glob("gpu-*.json")
    lines: list[dict[str, Any]] = json.loads(path.read_text())["lines"]
    return lines


def test_rates_of_each_feed_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(device="cpu", **SMALL, rounds=1, tiles=16, patients=0, out=tmp_path)
    *feeds, difference = lines_of(tmp_path)
    assert [line["feed"] for line in feeds] == [
        "bare step",
        "CPU threads decode",
        "CPU threads decode scaled",
        "torchvision decodes on cpu",
    ]
    assert all(line["tiles_per_s"] > 0 for line in feeds)
    # Both decode by libjpeg-turbo.
    assert difference["grey levels from simplejpeg"]["torchvision"]["most"] == 0


@pytest.mark.slow
def test_all_steps_agree_with_the_cpu_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(device="cpu", **SMALL, rounds=1, tiles=16, patients=8, out=tmp_path)
    checks = lines_of(tmp_path)[-4:]
    assert [line["step"] for line in checks] == ["extract", "distill", "mil", "predict"]
    assert all(line["cosine"] == pytest.approx(1, abs=1e-6) for line in checks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_agrees_with_the_cpu(tmp_path: Path) -> None:
    gpu.main(device="cuda", **SMALL, rounds=1, tiles=64, patients=8, out=tmp_path)
    assert all(line["agrees"] for line in lines_of(tmp_path)[-4:])


def test_an_error_of_the_feed_reaches_the_loop() -> None:
    def broken() -> Iterator[TileBatch]:
        yield from ()
        raise RuntimeError

    feed = gpu.Feed(broken(), device=torch.device("cpu"), input_px=8)
    with pytest.raises(RuntimeError):
        next(iter(feed))
    feed.close()
