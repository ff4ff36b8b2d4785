"""A function in two processes that exchange tensors by gloo, as two workers of a training do."""

import importlib
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

WORLD = 2
MOST_S = 300


def on_two_workers(function: str, folder: Path) -> list[Any]:
    """Return what a function of no arguments returns in each of two workers.

    Args:
        function: its place, as `package.module:name`.
        folder: an empty folder.
    """
    command = [sys.executable, "-m", __name__, function, str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD)
    ]
    try:
        ends = [process.communicate(timeout=MOST_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(WORLD)]


def main(function: str, folder: Path, rank: int) -> None:
    """Run the function as one of the workers."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=MOST_S),
    )
    module, _, name = function.partition(":")
    answer = getattr(importlib.import_module(module), name)()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(answer))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
