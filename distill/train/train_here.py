"""A training by one worker, in a child process of this machine, where no Ray is up or named.

Ray Train takes about 25 s to start and stop around one worker; the child alone takes what its
imports do.
"""

from dataclasses import dataclass

from cluster import (
    NodeShape,
    Placement,
    WorkerSettings,
    local_map,
    local_workers,
    machine_shapes,
    place,
    usable_cores,
)
from distill.train.distill_run import DistillRun


@dataclass(frozen=True, kw_only=True)
class TrainingTaskHere:
    """The input of the child: the run, its size, time between checkpoints, size of the cache."""

    run: DistillRun
    placement: Placement
    checkpoint_s: float
    cache_pixels_gb: float = 0.0


def place_here(workers: WorkerSettings, address: str | None) -> Placement | None:
    """Return the worker that trains on this machine; None where Ray is to run the training.

    Ray runs it where one is up or named, with several workers, and on GPUs.

    Raises:
        ClusterError: the machine has no room for such a worker.
    """
    if (workers.workers or 1) > 1 or not local_workers(address, num_cpus=1e-9):
        return None
    gpus = machine_shapes()[0].gpus
    shape = NodeShape(cpus=float(usable_cores()), gpus=gpus, count=1)
    placement = place(workers, [shape], most=1, together=True)
    return placement if placement.device == "cpu" else None


def fit_here(
    run: DistillRun, placement: Placement, checkpoint_s: float, cache_pixels_gb: float = 0.0
) -> None:
    """Train in a child process; one that dies is started again, and goes on at its checkpoint.

    Raises:
        ClusterError: it died each time.
        DistillError: what the training itself raised.
    """
    task = TrainingTaskHere(
        run=run,
        placement=placement,
        checkpoint_s=checkpoint_s,
        cache_pixels_gb=cache_pixels_gb,
    )
    for _ in local_map(train, [task], workers=1, num_cpus=placement.cpus_per_worker):
        pass


def train(task: TrainingTaskHere) -> None:
    """Train, in the child."""
    from distill.train.worker import work

    work(
        task.run,
        placement=task.placement,
        checkpoint_s=task.checkpoint_s,
        cache_pixels_gb=task.cache_pixels_gb,
    )
