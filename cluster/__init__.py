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
from cluster.progress import (
    Progress,
    is_quiet,
    print_note,
    progress,
    progress_of_stages,
    quiet_progress,
)
from cluster.ray_faults import noted_nodes
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

__all__ = [
    "ClusterError",
    "ClusterLostError",
    "Device",
    "Extension",
    "ExtensionError",
    "NodeShape",
    "Placement",
    "Progress",
    "WorkerSettings",
    "announced",
    "chosen_device",
    "extend",
    "extension_sha256",
    "is_quiet",
    "joins_cluster",
    "load_extensions",
    "loaded_extensions",
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
    "schedulable",
    "shared_ray_session",
    "submit",
]
