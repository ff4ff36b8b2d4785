"""Where the workers of a job go: how many there are, and the CPUs and GPUs that each reserves.

Ray waits without a word for a demand that no node can hold. So a demand is compared first with the
nodes that are up and with the sizes of nodes that the cluster's autoscaler may add: those that
Ray's autoscaler v2 records (KubeRay, `ray up`, fake nodes in tests). What a user leaves open is
chosen so that it fits.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError

Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The workers of a job, as far as a user sets them; the rest is chosen to fit the cluster.

    Attributes:
        device: "cuda" takes GPUs, "cpu" takes none, "auto" takes GPUs where the cluster has any.
        workers: number of workers; None for as many as the work and the cluster allow.
        cpus_per_worker: CPUs that each worker reserves; None for an equal share of a node.
        gpus_per_worker: GPUs that each worker reserves, in part where several share one; None for
            one on "cuda".

    Raises:
        ClusterError: a number is not positive, or GPUs do not go with the device.
    """

    device: Device = "auto"
    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        """Check the settings against each other."""
        if self.device not in ("auto", "cuda", "cpu"):
            msg = f"device {self.device!r} is not known; allowed are auto, cuda, cpu"
            raise ClusterError(msg)
        if self.workers is not None and self.workers < 1:
            msg = f"{self.workers} workers given; give 1 or more, or leave it out"
            raise ClusterError(msg)
        if self.cpus_per_worker is not None and self.cpus_per_worker <= 0:
            msg = f"{self.cpus_per_worker:g} CPUs per worker given; give a number above 0"
            raise ClusterError(msg)
        gpus = self.gpus_per_worker
        if gpus is not None and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
            msg = f"{gpus:g} GPUs per worker given; give a part of one (0.25), or a whole number"
            raise ClusterError(msg)
        if (self.device == "cpu" and gpus) or (self.device == "cuda" and gpus == 0):
            msg = f"{gpus:g} GPUs per worker do not go with device {self.device}; leave one out"
            raise ClusterError(msg)


@dataclass(frozen=True, kw_only=True)
class NodeShape:
    """The size of a node, and how many nodes of this size there are or can be.

    Attributes:
        cpus: CPUs of such a node.
        gpus: GPUs of such a node.
        count: number of nodes; those that an autoscaler may add are counted.
    """

    cpus: float
    gpus: float
    count: int

    def holds(self, cpus: float, gpus: float) -> int:
        """Return how many workers of this size such a node holds."""
        by_cpu = math.floor(self.cpus / cpus + 1e-9)
        return min(by_cpu, math.floor(self.gpus / gpus + 1e-9)) if gpus else by_cpu

    def __str__(self) -> str:
        gpus = f" and {_amount(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{self.count} x {_amount(self.cpus, 'CPU')}{gpus}"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The workers of a job: each reserves the same, and each fits a node.

    Attributes:
        device: "cuda" or "cpu".
        workers: number of workers.
        cpus_per_worker: CPUs that each worker reserves.
        gpus_per_worker: GPUs that each worker reserves.
    """

    device: Literal["cuda", "cpu"]
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    @property
    def threads(self) -> int:
        """Return the number of CPU threads of each worker, at least 1."""
        return max(1, math.floor(self.cpus_per_worker))

    def __str__(self) -> str:
        kind = "worker" if self.workers == 1 else "workers"
        gpus = f" and {_amount(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        cpus = _amount(self.cpus_per_worker, "CPU")
        return f"{self.workers} {kind} with {cpus}{gpus} each, on {self.device}"


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def place(
    settings: WorkerSettings, shapes: Sequence[NodeShape], *, most: int, together: bool = False
) -> Placement:
    """Return workers that fit on the nodes.

    Args:
        settings: what the user has set.
        shapes: nodes of the cluster, up or possible.
        most: number of workers that the work has use for, 1 or more.
        together: whether all workers have to run at the same time, as in a distributed training.

    Raises:
        ClusterError: no node holds a worker, or the cluster does not hold all workers together.

    >>> nodes = [NodeShape(cpus=16, gpus=0, count=4)]
    >>> str(place(WorkerSettings(), nodes, most=1))
    '1 worker with 16 CPUs each, on cpu'
    >>> str(place(WorkerSettings(cpus_per_worker=4), nodes, most=100))
    '16 workers with 4 CPUs each, on cpu'
    """
    gpus = _gpus_per_worker(settings, shapes)
    usable = [shape for shape in shapes if shape.holds(1e-9, gpus)]
    workers = settings.workers or _chosen_workers(settings, usable, gpus, most)
    cpus = settings.cpus_per_worker or _chosen_cpus(usable, gpus, workers)
    placement = Placement(
        device="cuda" if gpus else "cpu",
        workers=workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
    )
    places = room(usable, cpus, gpus)
    if not places or (together and places < workers):
        raise _no_room(placement, shapes, places)
    return placement


def _gpus_per_worker(settings: WorkerSettings, shapes: Sequence[NodeShape]) -> float:
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    if settings.device == "auto":
        return float(any(shape.gpus >= 1 for shape in shapes))
    return float(settings.device == "cuda")


def _chosen_workers(
    settings: WorkerSettings, usable: Sequence[NodeShape], gpus: float, most: int
) -> int:
    """Return a worker for each GPU (or part), or else for each CPU, but no more than are of use."""
    if gpus:
        return max(1, min(most, room(usable, settings.cpus_per_worker or 1e-9, gpus)))
    return max(1, min(most, room(usable, settings.cpus_per_worker or 1.0, 0.0)))


def _chosen_cpus(usable: Sequence[NodeShape], gpus: float, workers: int) -> float:
    """Return the most CPUs with which all workers fit, in whole CPUs from 1 on."""
    largest = max((shape.cpus for shape in usable), default=1.0)
    if gpus:  # the CPUs of a node are divided among its GPUs
        largest = max(
            (shape.cpus / max(1, shape.holds(1e-9, gpus)) for shape in usable), default=1.0
        )
    for cpus in range(math.floor(largest), 1, -1):
        if room(usable, cpus, gpus) >= workers:
            return float(cpus)
    return 1.0 if largest >= 1 else largest


def room(shapes: Sequence[NodeShape], cpus: float, gpus: float) -> int:
    """Return how many workers of this size all nodes together hold."""
    return sum(shape.count * shape.holds(cpus, gpus) for shape in shapes)


def _no_room(placement: Placement, shapes: Sequence[NodeShape], places: int) -> ClusterError:
    nodes = ", ".join(map(str, shapes)) or "none with CPUs"
    gpus = f" and {_amount(placement.gpus_per_worker, 'GPU')}" if placement.gpus_per_worker else ""
    size = f"{_amount(placement.cpus_per_worker, 'CPU')}{gpus}"
    if places:
        fault = f"{placement.workers} workers of {size} have to run at once, and {places} fit"
        advice = "give fewer --workers, or a smaller --cpus-per-worker"
    else:
        fault = f"a worker of {size} fits on no node"
        advice = "give a smaller --cpus-per-worker or --gpus-per-worker"
        if placement.gpus_per_worker and not any(shape.gpus for shape in shapes):
            advice = "give --device cpu, or a cluster with GPUs"
    return ClusterError(f"{fault} (nodes of this cluster, up or to be added: {nodes}); {advice}")


def chosen_device(settings: WorkerSettings, shapes: Sequence[NodeShape]) -> Literal["cuda", "cpu"]:
    """Return the device that `place` chooses on these nodes."""
    return "cuda" if _gpus_per_worker(settings, shapes) else "cpu"


def machine_shapes() -> list[NodeShape]:
    """Return the size of this machine, as a Ray that is started here will have it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    gpus = 0 if hidden else len(list(Path("/dev").glob("nvidia[0-9]*")))
    return [NodeShape(cpus=float(os.cpu_count() or 1), gpus=float(gpus), count=1)]


def node_shapes() -> list[NodeShape]:
    """Return the sizes of the nodes of the cluster that Ray is connected to, largest first.

    Nodes that are up are counted. Of an autoscaler's groups the nodes that it may add are counted,
    too, so that a cluster that grows from nothing has its final size here.
    """
    import ray

    counts: dict[tuple[float, float], int] = {}
    for node in ray.nodes():
        if node["Alive"]:
            size = (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            counts[size] = counts.get(size, 0) + 1
    for size, most in _autoscaler_groups():
        counts[size] = max(counts.get(size, 0), most)
    shapes = [NodeShape(cpus=c, gpus=g, count=n) for (c, g), n in counts.items() if c and n]
    return sorted(shapes, key=lambda shape: (shape.gpus, shape.cpus), reverse=True)


def _autoscaler_groups() -> Iterator[tuple[tuple[float, float], int]]:
    """Yield size and greatest number of the nodes of each group that an autoscaler may add."""
    from ray._private.state import state

    # Ray has no public call for it; Ray Train's elastic scaling asks the same one.
    config = state.get_cluster_config()
    for group in config.node_group_configs if config is not None else ():
        resources = {name.upper(): float(n) for name, n in group.resources.items()}
        unlimited = group.max_count < 0
        most = 1_000_000 if unlimited else group.max_count
        yield (resources.get("CPU", 0.0), resources.get("GPU", 0.0)), most


def is_autoscaled() -> bool:
    """Whether the cluster has an autoscaler that records which nodes it may add."""
    return any(most for _, most in _autoscaler_groups())


@contextmanager
def announced(placement: Placement) -> Iterator[None]:
    """Ask the cluster's autoscaler for the nodes of all workers at once, as long as the block runs.

    Without it Ray's demand grows with its queue, and nodes come one after the other. Does nothing
    where no autoscaler is.
    """
    if not is_autoscaled():
        yield
        return
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker}
    bundles = [{name: number for name, number in bundle.items() if number}] * placement.workers
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        request_resources(bundles=[])
