"""An evaluation as one task on a cluster: networks do not run on the head, where drivers live."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from cluster import WorkerSettings, joins_cluster, node_shapes, place, ray_map, ray_session
from distill.evaluate.evaluation import Report, evaluate
from distill.evaluate.evaluation_spec import EvaluationSpec
from featurestore import Store


def evaluate_there(
    lake_uri: str,
    students: Sequence[str],
    spec: EvaluationSpec,
    *,
    version: int | str | None = None,
    address: str | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
) -> Report:
    """Evaluate students as `evaluate` does, by a worker of a cluster where there is one.

    Args:
        lake_uri: the lake.
        students: names of the students.
        spec: settings; device and threads are those that the worker reserves. A table of labels on
            this machine is sent to it.
        version: version of the lake, or a snapshot; the newest if None.
        address: a Ray cluster; None, and no RAY_ADDRESS: this process.
        cpus_per_worker: CPUs that the worker reserves; those of its threads, or all of a node, if
            None.
        gpus_per_worker: GPUs that the worker reserves, in part if others share one.

    Raises:
        ClusterError: no node holds such a worker.
        DistillError: as of `evaluate`.
    """
    if not joins_cluster(address):
        return evaluate(lake_uri, students, spec, version=version)
    table = _read_table(spec.labels)
    with ray_session(address=address, ray_data=False):
        threads = None if spec.threads is None else float(spec.threads)
        settings = WorkerSettings(
            device=_device(spec),
            workers=1,
            cpus_per_worker=cpus_per_worker or threads,
            gpus_per_worker=gpus_per_worker,
        )
        worker = place(settings, node_shapes(), most=1)
        placed = replace(
            spec, device=worker.device, threads=min(spec.threads or worker.threads, worker.threads)
        )
        # a worker has another working directory: a relative path would be another lake's
        work = partial(_evaluate, Store(lake_uri).uri, tuple(students), version, table)
        ((_, report),) = ray_map(
            work, [placed], num_cpus=worker.cpus_per_worker, num_gpus=worker.gpus_per_worker
        )
    return report


def _device(spec: EvaluationSpec) -> Literal["auto", "cuda", "cpu"]:
    if spec.device is None:
        return "auto"
    return "cuda" if spec.device.startswith("cuda") else "cpu"


def _read_table(labels: str | None) -> bytes | None:
    """Return the content of a table of this machine; None if the worker reads it by itself."""
    if labels is None or not Path(labels).is_file():
        return None
    return Path(labels).read_bytes()


def _evaluate(
    lake_uri: str,
    students: Sequence[str],
    version: int | str | None,
    table: bytes | None,
    spec: EvaluationSpec,
) -> Report:
    """Evaluate, in the worker, with the table of labels as a file of its machine."""
    if table is None or spec.labels is None:
        return evaluate(lake_uri, students, spec, version=version)
    with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
        local = Path(folder) / Path(spec.labels).name
        local.write_bytes(table)
        return evaluate(lake_uri, students, spec, version=version, labels_path=str(local))
