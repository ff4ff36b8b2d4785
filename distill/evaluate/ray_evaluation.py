"""An evaluation as one task on a cluster: networks do not run on the head, where drivers live."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from cluster import WorkerSettings, joins_cluster, node_shapes, place, ray_map, ray_session
from distill.errors import DistillError
from distill.evaluate.evaluation import Report, evaluate
from distill.evaluate.evaluation_spec import EvaluationSpec


def evaluate_there(
    lake_uri: str,
    students: Sequence[str],
    spec: EvaluationSpec,
    *,
    version: int | str | None = None,
    address: str | None = None,
) -> Report:
    """Evaluate students as `evaluate` does, by a worker of a cluster where there is one.

    Args:
        lake_uri: the lake.
        students: names of the students.
        spec: settings; device and threads are those that the worker reserves.
        version: version of the lake, or a snapshot; the newest if None.
        address: a Ray cluster; None, and no RAY_ADDRESS: this process.

    Raises:
        ClusterError: no node holds such a worker.
        DistillError: as of `evaluate`; or the table of labels is a file of this machine.
    """
    if not joins_cluster(address) or _is_here(spec.labels):
        if address is not None and _is_here(spec.labels):
            msg = (
                f"{spec.labels} is a file of this machine, which workers of {address} do not have; "
                "annotate the lake with it and give --labels lake:NAME, or leave --address out"
            )
            raise DistillError(msg)
        return evaluate(lake_uri, students, spec, version=version)
    with ray_session(address=address, ray_data=False):
        cpus = None if spec.threads is None else float(spec.threads)
        settings = WorkerSettings(device=_device(spec), workers=1, cpus_per_worker=cpus)
        worker = place(settings, node_shapes(), most=1)
        placed = replace(spec, device=worker.device, threads=worker.threads)
        work = partial(_evaluate, lake_uri, tuple(students), version)
        ((_, report),) = ray_map(
            work, [placed], num_cpus=worker.cpus_per_worker, num_gpus=worker.gpus_per_worker
        )
    return report


def _device(spec: EvaluationSpec) -> Literal["auto", "cuda", "cpu"]:
    if spec.device is None:
        return "auto"
    return "cuda" if spec.device.startswith("cuda") else "cpu"


def _is_here(labels: str | None) -> bool:
    return labels is not None and Path(labels).exists()


def _evaluate(
    lake_uri: str, students: Sequence[str], version: int | str | None, spec: EvaluationSpec
) -> Report:
    return evaluate(lake_uri, students, spec, version=version)
