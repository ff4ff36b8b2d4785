"""The options of commands that run workers on Ray: device, number and size, by the same words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cluster import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The workers of a job; what is not given is chosen to fit the nodes of the cluster.

    Attributes:
        device: Device of the workers: cuda, cpu, or auto for GPUs where the cluster has any.
        workers: Number of workers.
        cpus_per_worker: Cores that each worker reserves, at most those of a node.
        gpus_per_worker: GPUs that each worker reserves; 0.25 lets four share one.
    """

    PANEL = "Workers"

    device: Literal["auto", "cuda", "cpu"] = "auto"
    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None

    def settings(self) -> "WorkerSettings":
        """Return the options in the form for jobs.

        Raises:
            ClusterError: a number is not positive, or GPUs do not go with the device.
        """
        from cluster import WorkerSettings

        return WorkerSettings(
            device=self.device,
            workers=self.workers,
            cpus_per_worker=self.cpus_per_worker,
            gpus_per_worker=self.gpus_per_worker,
        )
