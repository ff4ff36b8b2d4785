"""The Ray that slidelake runs on: a session, a map over tasks, a job on a cluster, and progress.

This package imports none of the others. Importing it does not import ray, so that a command that
needs none starts at once; each function that needs ray imports it when called.
"""

from cluster.errors import ClusterError, ClusterLostError, ExtensionError
from cluster.extensions import (
    Extension,
    extend,
    extension_sha256,
    load_extensions,
    loaded_extensions,
)
from cluster.local.child_pool import ChildPool, usable_cores
from cluster.local.child_process import DiedError, Isolated
from cluster.local.local_map import local_map, local_workers
from cluster.progress import (
    Progress,
    is_quiet,
    print_note,
    progress,
    progress_of_stages,
    quiet_progress,
)
from cluster.progress_text import counted
from cluster.ray_faults import GOES_ON, lost_part, noted_nodes
from cluster.ray_placement import (
    Device,
    NodeShape,
    Placement,
    WorkerSettings,
    announced,
    chosen_device,
    machine_shapes,
    node_shapes,
    place,
    room,
)
from cluster.ray_session import (
    joins_cluster,
    quiet_ray_data,
    ray_session,
    schedulable,
    shared_ray_session,
)
from cluster.ray_submit import submit
from cluster.ray_tasks import ray_map
from cluster.watch.failure_hook import call_hook, checked_hook
from cluster.watch.job_watch import JobWatch
from cluster.watch.reasons import reason_class
from cluster.watch.secret_texts import without_secrets

__all__ = [
    "GOES_ON",
    "ChildPool",
    "ClusterError",
    "ClusterLostError",
    "Device",
    "DiedError",
    "Extension",
    "ExtensionError",
    "Isolated",
    "JobWatch",
    "NodeShape",
    "Placement",
    "Progress",
    "WorkerSettings",
    "announced",
    "call_hook",
    "checked_hook",
    "chosen_device",
    "counted",
    "extend",
    "extension_sha256",
    "is_quiet",
    "joins_cluster",
    "load_extensions",
    "loaded_extensions",
    "local_map",
    "local_workers",
    "lost_part",
    "machine_shapes",
    "node_shapes",
    "noted_nodes",
    "place",
    "print_note",
    "progress",
    "progress_of_stages",
    "quiet_progress",
    "quiet_ray_data",
    "ray_map",
    "ray_session",
    "reason_class",
    "room",
    "schedulable",
    "shared_ray_session",
    "submit",
    "usable_cores",
    "without_secrets",
]
