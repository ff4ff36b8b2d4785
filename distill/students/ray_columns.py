"""The column of a student of features as one task on a cluster, not on the head with its driver."""

from collections.abc import Sequence
from functools import partial

from cluster import WorkerSettings, node_shapes, place, ray_map, ray_session
from featurestore import Store
from ingest.teachers import MadeColumn


def make_there(
    lake_uri: str,
    name: str,
    *,
    mpps: Sequence[float] | None,
    address: str | None,
    workers: WorkerSettings,
) -> MadeColumn:
    """Write a student's column by a worker of a cluster; see `feature_columns.make_columns`.

    Args:
        lake_uri: the lake.
        name: name of the student.
        mpps: mpps of the tiles; all mpps of the student if None.
        address: a Ray cluster; None: that of RAY_ADDRESS, or the one that is connected.
        workers: CPUs of the worker; the other settings are of workers that run networks on pixels.

    Raises:
        ClusterError: no node holds such a worker.
    """
    with ray_session(address=address, ray_data=False):
        cpus = WorkerSettings(device="cpu", workers=1, cpus_per_worker=workers.cpus_per_worker)
        worker = place(cpus, node_shapes(), most=1)
        # a worker has another working directory: a relative path would be another lake's
        work = partial(_make, Store(lake_uri).uri, mpps)
        ((_, made),) = ray_map(work, [name], num_cpus=worker.cpus_per_worker)
    return made


def _make(lake_uri: str, mpps: Sequence[float] | None, name: str) -> MadeColumn:
    from distill.students.feature_columns import make_columns

    return make_columns(lake_uri, name, mpps=mpps)
