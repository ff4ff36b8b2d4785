"""Where the workers of a job go: how many there are, and the CPUs and GPUs that each reserves.

Ray waits without a word for a demand that no node can hold. So a demand is compared first with the
nodes that are up, and with those that an autoscaler may add: SLIDELAKE_NODES names them on a
cluster that grows (`4x8+1,10x8`: four nodes with 8 CPUs and a GPU, ten with 8 CPUs). What a user
leaves open is chosen so that it fits.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError
from cluster.progress_text import counted

#: Variable that names the groups of nodes that a growing cluster may have.
NODES = "SLIDELAKE_NODES"
_GROUP = re.compile(r"(\d+) *x *(\d+(?:\.\d+)?)(?: *\+ *(\d+))?")

Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The workers of a job, as far as a user sets them; the rest is chosen to fit the cluster.

    Attributes:
        device: "cuda" takes GPUs, "cpu" takes none, "auto" takes GPUs where the cluster has any.
        workers: greatest number of workers; None for as many as the work and the cluster allow.
        cpus_per_worker: CPUs that each worker reserves; None for an equal share of a node.
        gpus_per_worker: GPUs that each worker reserves, in part where several share one; None for
            one on "cuda".

    Raises:
        ClusterError: a number is not positive, or GPUs do not go with the device.

    Examples:
        >>> sl.WorkerSettings(workers=4, cpus_per_worker=8, gpus_per_worker=0.5).device
        'auto'
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
        numbers = (self.cpus_per_worker, self.gpus_per_worker)
        if any(number is not None and not math.isfinite(number) for number in numbers):
            msg = f"{numbers} CPUs and GPUs per worker given; give finite numbers"
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
        if not gpus:
            return by_cpu
        if gpus < 1:  # Ray takes a part from one GPU, never from two
            return min(by_cpu, math.floor(self.gpus) * math.floor(1 / gpus + 1e-9))
        return min(by_cpu, math.floor(self.gpus / gpus + 1e-9))

    def __str__(self) -> str:
        gpus = f" and {counted(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{self.count} x {counted(self.cpus, 'CPU')}{gpus}"


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
        gpus = f" and {counted(self.gpus_per_worker, 'GPU')}" if self.gpus_per_worker else ""
        cpus = counted(self.cpus_per_worker, "CPU")
        return f"{self.workers} {kind} with {cpus}{gpus} each, on {self.device}"


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
    given: object = settings  # a number was taken here once, and no checker sees a notebook
    if not isinstance(given, WorkerSettings):
        msg = f"workers={settings!r} given; give a WorkerSettings: WorkerSettings(workers=2)"
        raise ClusterError(msg)
    gpus = _gpus_per_worker(settings, shapes)
    usable = [shape for shape in shapes if shape.holds(1e-9, gpus)]
    workers = settings.workers or _chosen_workers(settings, usable, gpus, most)
    if not together:
        workers = min(workers, most)
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
    if gpus and usable and room(usable, 1.0, gpus) < workers:  # nodes with fewer CPUs than GPUs
        return min(shape.cpus / max(1, shape.holds(1e-9, gpus)) for shape in usable)
    return 1.0 if largest >= 1 else largest


def room(shapes: Sequence[NodeShape], cpus: float, gpus: float) -> int:
    """Return how many workers of this size all nodes together hold."""
    return sum(shape.count * shape.holds(cpus, gpus) for shape in shapes)


def _no_room(placement: Placement, shapes: Sequence[NodeShape], places: int) -> ClusterError:
    nodes = ", ".join(map(str, shapes)) or "none with CPUs"
    gpus = f" and {counted(placement.gpus_per_worker, 'GPU')}" if placement.gpus_per_worker else ""
    size = f"{counted(placement.cpus_per_worker, 'CPU')}{gpus}"
    if places:
        fault = f"{placement.workers} workers of {size} have to run at once, and {places} fit"
        advice = "give fewer --workers, or a smaller --cpus-per-worker"
    else:
        fault = f"a worker of {size} fits on no node"
        advice = "give a smaller --cpus-per-worker or --gpus-per-worker"
        if placement.gpus_per_worker and not any(shape.gpus for shape in shapes):
            advice = "give --device cpu, or a cluster with GPUs"
    return ClusterError(f"{fault} (nodes up, or to come by {NODES}: {nodes}); {advice}")


def chosen_device(settings: WorkerSettings, shapes: Sequence[NodeShape]) -> Literal["cuda", "cpu"]:
    """Return the device that `place` chooses on these nodes."""
    return "cuda" if _gpus_per_worker(settings, shapes) else "cpu"


def machine_shapes() -> list[NodeShape]:
    """Return the size of this machine: its cores, and the GPUs that its devices show."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles")
    gpus = 0 if hidden else len(list(Path("/dev").glob("nvidia[0-9]*")))
    return [NodeShape(cpus=float(os.cpu_count() or 1), gpus=float(gpus), count=1)]


def node_shapes(*, to_come: bool = True) -> list[NodeShape]:
    """Return the sizes of the nodes of the cluster that Ray is connected to, largest first.

    Nodes that are up are counted, and those that an autoscaler may add, by SLIDELAKE_NODES, so that
    a cluster that grows from nothing has its final size here.

    Args:
        to_come: whether nodes that may be added are counted.

    Raises:
        ClusterError: SLIDELAKE_NODES can't be read.
    """
    import ray

    counts: dict[tuple[float, float], int] = {}
    for node in ray.nodes():
        if node["Alive"]:
            size = (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            counts[size] = counts.get(size, 0) + 1
    for size, most in _groups() if to_come else ():
        counts[size] = max(counts.get(size, 0), most)
    shapes = [NodeShape(cpus=c, gpus=g, count=n) for (c, g), n in counts.items() if c and n]
    return sorted(shapes, key=lambda shape: (shape.gpus, shape.cpus), reverse=True)


def _groups() -> Iterator[tuple[tuple[float, float], int]]:
    """Yield size and greatest number of the nodes of each group that may be added.

    Ray's own autoscaler keeps its groups for itself (only a hosted one records them where a job can
    read them), so whoever sets a growing cluster up names them in SLIDELAKE_NODES.

    Raises:
        ClusterError: SLIDELAKE_NODES can't be read.
    """
    for group in filter(None, (part.strip() for part in os.environ.get(NODES, "").split(","))):
        match = _GROUP.fullmatch(group)
        if match is None:
            msg = (
                f"{NODES}: {group!r} is no group of nodes; give COUNTxCPUS or COUNTxCPUS+GPUS, "
                "as in 10x8,4x8+1: ten nodes with 8 CPUs, and four with 8 CPUs and 1 GPU"
            )
            raise ClusterError(msg)
        count, cpus, gpus = match.groups(default="0")
        yield (float(cpus), float(gpus)), int(count)


@contextlib.contextmanager
def announced(placement: Placement) -> Iterator[None]:
    """Ask the cluster's autoscaler for the nodes of all workers at once, as long as the block runs.

    Without it Ray's demand grows with its queue, and nodes come one after the other. Does nothing
    on a cluster that does not grow.
    """
    if not os.environ.get(NODES):
        yield
        return
    from ray.autoscaler.sdk import request_resources

    bundle = {"CPU": placement.cpus_per_worker, "GPU": placement.gpus_per_worker}
    bundles = [{name: number for name, number in bundle.items() if number}] * placement.workers
    request_resources(bundles=bundles)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # Ray may be gone: its own error is the one to raise
            request_resources(bundles=[])
