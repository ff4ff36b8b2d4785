"""A Ray session: the running cluster, the cluster at an address, or a small private cluster.

Starting the private cluster takes 6-7 s on 2 cores with Ray 2.60 (importing `ray` 0.9 s and
`ray.data` 1.8 s included), stopping it 1.5 s. It has no dashboard, listens on 127.0.0.1 alone, and
keeps token authentication, which Ray has on by default for a local start: other users of the
machine reach 127.0.0.1, too. Ray's metrics port answers without the token, so there is none but
where SLIDELAKE_METRICS_PORT (`slidelake --metrics-port`) asks for it.
"""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from cluster.environment import patched_environ
from cluster.errors import ClusterError
from cluster.ray_faults import (
    lost_cluster_errors,
    quiet_listener,
    quiet_loggers,
    start_variables,
    watched_head,
    without_log_level_line,
)
from cluster.ray_placement import NODES
from cluster.scratch import object_store_bytes, ram_bytes, scratch_directory, shm_free_bytes

_CHECKOUT = Path(__file__).resolve().parent.parent
_LOCAL = "local"
_LOOPBACK = "127.0.0.1"
_REACH_S = 10.0
#: Variable with the port on 127.0.0.1 at which a Ray that is started here gives its metrics.
METRICS_PORT = "SLIDELAKE_METRICS_PORT"
#: Ray's dashboard and autoscaler give their own metrics, without the token, at fixed ports that
#: nothing but these variables keeps closed: no server comes up at a port that is none.
CLOSED_PORTS = {"DASHBOARD_METRIC_PORT": "-1", "AUTOSCALER_METRIC_PORT": "-1"}
#: The stack that holds a Ray up beyond its own block, inside a block of `shared_ray_session`.
_SHARED: ContextVar[ExitStack | None] = ContextVar("_SHARED", default=None)


@contextmanager
def shared_ray_session() -> Iterator[None]:
    """Keep the Ray of the first `ray_session` inside the block up until the block ends.

    Jobs that follow each other then share one Ray, as the ingest and the extract of
    `slidelake build`; none is started as long as no job needs one.
    """
    with ExitStack() as stack:
        outer = _SHARED.set(stack)
        try:
            yield
        finally:
            _SHARED.reset(outer)


@contextmanager
def ray_session(
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    ray_data: bool = True,
    worker_logs: bool = False,
) -> Iterator[None]:
    """Run the block with Ray initialised; leave things as they were found.

    A Ray that is already initialised in this process is used and left up, and the arguments are
    not looked at. Otherwise `address`, or else the environment's RAY_ADDRESS, is connected to
    (inside a Ray job it names the cluster); where neither is set, or `address` is "local", a
    private Ray is started on this machine and stopped afterwards.

    Enter it in the main thread: the kernel kills a local Ray when the thread that started it ends.
    That is also what stops it when this process is killed, SIGKILL included: raylet and workers are
    gone in 2 s, two idle agents of Ray's 80 s later, its files at the next start.

    Args:
        address: `host:port` of a cluster, `ray://host:port`, "auto" or "local".
        num_cpus: CPUs that a local Ray may use; None is all that this process may use. Not
            allowed for a running cluster, which has the CPUs it has.
        ray_data: whether to import `ray.data` and silence it; False for a block that only
            uses tasks, and save its import.
        worker_logs: copy what workers print to this process's stdout and stderr. Exceptions come
            back either way.

    Raises:
        ClusterError: the cluster cannot be reached or refuses the token, `num_cpus` or a metrics
            port is set for a running cluster, or there is no place for Ray's sockets.
        ClusterLostError: a part of the cluster that the block needs was lost.
    """
    import ray

    with lost_cluster_errors(), ExitStack() as own:
        if ray.is_initialized():
            yield
            return
        target = address or os.environ.get("RAY_ADDRESS") or _LOCAL
        stack = _SHARED.get() or own
        if target == _LOCAL:
            stack.enter_context(_started_here(num_cpus, worker_logs=worker_logs))
        else:
            stack.enter_context(_connected_session(target, num_cpus, worker_logs=worker_logs))
        if ray_data:
            quiet_ray_data()
        yield


def joins_cluster(address: str | None) -> bool:
    """Whether `ray_session` with this address uses a Ray that is up already."""
    ray = sys.modules.get("ray")  # its import takes a second, which work that needs none has not
    target = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    return (ray is not None and ray.is_initialized()) or target != _LOCAL


@contextmanager
def _started_here(num_cpus: int | None, *, worker_logs: bool) -> Iterator[None]:
    import ray

    port = _metrics_port()
    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        variables = {**_local_environ(has_metrics=port is not None), **start_variables()}
        stack.enter_context(patched_environ(variables, keep="RAY_AUTH_MODE"))
        _enter_quiet(stack, worker_logs=worker_logs)
        stack.callback(ray.shutdown)
        with _without_notices(), _clear_timeout(), _on_loopback(), without_log_level_line():
            ray.init(
                address=_LOCAL,
                num_cpus=_own_cores() if num_cpus is None else num_cpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes(
                    ram_bytes=ram_bytes(), shm_free_bytes=shm_free_bytes()
                ),
                log_to_driver=worker_logs,
                logging_level=logging.WARNING,
                _metrics_export_port=port,
                _temp_dir=str(directory),
            )
        yield


def _enter_quiet(stack: ExitStack, *, worker_logs: bool) -> None:
    """Keep Ray's own words about what it lost and mends out of the log while the stack is open."""
    stack.enter_context(quiet_loggers())
    if not worker_logs:
        stack.enter_context(quiet_listener())


def _metrics_port() -> int | None:
    """Return the port of SLIDELAKE_METRICS_PORT; None where it is not set.

    Raises:
        ClusterError: it is no port, or is taken. Ray's node would not come up.
    """
    text = os.environ.get(METRICS_PORT, "")
    if not text:
        return None
    if not text.isdigit() or not 0 < int(text) < 65536:
        msg = f"metrics port {text!r} given; give a number from 1 to 65535 (or {METRICS_PORT})"
        raise ClusterError(msg)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, int(text)))
        except OSError as err:
            msg = f"metrics port {text}: {err.strerror}; give another --metrics-port"
            raise ClusterError(msg) from err
    return int(text)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Start a Ray inside the block at 127.0.0.1, where all its servers then listen.

    Ray gives its node the machine's outer address, and its servers then listen on all interfaces.
    Where it supports no clusters (macOS) it takes 127.0.0.1; what says so is a constant, which was
    read from the environment when `ray` was imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _own_cores() -> int | None:
    """Return how many cores this process may use, or None where it may use all of the machine.

    Ray counts the machine's cores, or a container's quota. A batch system such as SLURM binds a job
    to some of the cores, which Ray overlooks.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = len(os.sched_getaffinity(0))
    return cores if cores < (os.cpu_count() or 1) else None


@contextmanager
def _connected_session(address: str, num_cpus: int | None, *, worker_logs: bool) -> Iterator[None]:
    import ray
    from ray.exceptions import AuthenticationError

    if num_cpus is not None:
        msg = (
            f"num_cpus={num_cpus} was given for the running Ray at {address}; only a Ray that is "
            "started here takes it; leave num_cpus out, or use address='local'"
        )
        raise ClusterError(msg)
    if port := os.environ.get(METRICS_PORT):
        msg = (
            f"metrics port {port} was given for the running Ray at {address}, whose nodes have "
            f"theirs from their start (cluster/README.md); leave --metrics-port and {METRICS_PORT} "
            "out"
        )
        raise ClusterError(msg)
    _check_reachable(address)
    with ExitStack() as stack:
        stack.enter_context(patched_environ(start_variables(), keep="RAY_AUTH_MODE"))
        _enter_quiet(stack, worker_logs=worker_logs)
        stack.callback(ray.shutdown)
        try:
            with without_log_level_line():
                ray.init(address=address, log_to_driver=worker_logs, logging_level=logging.WARNING)
        except (AuthenticationError, ConnectionError) as err:
            raise ClusterError(_refused_message(address, err)) from err
        if not address.startswith("ray://"):
            stack.enter_context(watched_head(ray.get_runtime_context().gcs_address))
        yield


def _check_reachable(address: str) -> None:
    """Raise an error if no server listens, since Ray itself would go on trying for 14 minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        msg = (
            f"address {address!r} (or RAY_ADDRESS) is not one of a Ray cluster; give HOST:6379, "
            "ray://HOST:10001, auto or local (an http:// address is for `slidelake submit`)"
        )
        raise ClusterError(msg)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as err:
        raise ClusterError(_no_ray_message(address, err)) from err


def _no_ray_message(address: str, err: Exception) -> str:
    return (
        f"no Ray answers at {address} ({err}); start one (`ray start --head`), correct the address "
        "or RAY_ADDRESS, or leave both out to start a private Ray here"
    )


def _refused_message(address: str, err: Exception) -> str:
    """Return the message for a refused connection.

    Ray raises ConnectionError also for a wrong token, after 20 s of trying.
    """
    if address == "auto":
        return _no_ray_message(address, err)
    return (
        f"something listens at {address}, but no Ray there took us; if it asks for a token, set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, and start again; if it "
        f"is something else, correct the address or RAY_ADDRESS ({err})"
    )


def _local_environ(*, has_metrics: bool) -> dict[str, str | None]:
    """Return the environment of a Ray that is started here, and so of all its workers.

    The checkout goes on PYTHONPATH because workers import our packages by name, also when the
    command was started from another directory. An inherited variable costs nothing; the same by
    `runtime_env` makes Ray throw away its prestarted workers.
    """
    path = os.environ.get("PYTHONPATH")
    python_path = f"{_CHECKOUT}{os.pathsep}{path}" if path else str(_CHECKOUT)
    return {
        "PYTHONPATH": python_path,
        "RAY_USAGE_STATS_ENABLED": "0",
        # as in `_on_loopback`, for the processes that are started
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_enable_metrics_collection": "1" if has_metrics else "0",
        **CLOSED_PORTS,
        NODES: None,  # a private Ray does not grow, whatever cluster the variable is set for
    }


@contextmanager
def _clear_timeout() -> Iterator[None]:
    """Turn the bare Exception of a node that did not start within 30 s into a clear error."""
    try:
        yield
    except Exception as err:
        if "timed out during startup" not in str(err):
            raise
        msg = (
            "a local Ray did not come up within its 30 s, as when this machine is very busy; try "
            "again, or start one apart (`ray start --head`) and set RAY_ADDRESS=auto"
        )
        raise ClusterError(msg) from err


@contextmanager
def _without_notices() -> Iterator[None]:
    """Drop two warnings of a local start, and no other.

    Ray's, that it did turn token authentication on: it is what we want, and naming the mode
    ourselves is no way out, since Ray reads RAY_AUTH_MODE when it is first imported, and a later
    change makes the start fail after 20 s. And Lance's, that a fork is unsafe: Ray forks only to
    exec its own programs.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Token authentication is enabled")

    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    logger.addFilter(is_other)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def schedulable(*, num_cpus: float, num_gpus: float = 0.0) -> Iterator[None]:
    """Drop Ray Data's "the job may hang forever" inside the block as long as it is not true.

    Ray Data says so once nothing of a job's first step has run for a minute, as where actors that
    take all cores load a model. It is true where no machine of the cluster has what one task or
    actor needs; then the warning stays.

    Args:
        num_cpus: CPUs that one task or actor of the block reserves.
        num_gpus: GPUs that it reserves.
    """
    import ray

    def is_true(record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith("Cluster resources are not enough to run any task"):
            return True
        return not any(
            node["Alive"]
            and node["Resources"].get("CPU", 0) >= num_cpus
            and node["Resources"].get("GPU", 0) >= num_gpus
            for node in ray.nodes()
        )

    logger = logging.getLogger("ray.data._internal.execution.resource_manager")
    logger.addFilter(is_true)
    try:
        yield
    finally:
        logger.removeFilter(is_true)


def quiet_ray_data() -> None:
    """Import Ray Data and leave it its warnings and errors only; our own progress is shown instead.

    Ray 2.60 sets its own deprecated fields when it makes its first DataContext and warns of each;
    those three messages are dropped, and no other.
    """
    from ray.data import DataContext

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=r"`use_(push_based_shuffle|polars|arrow_tensor_v2)` is deprecated",
            category=DeprecationWarning,
        )
        context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Ray warns that progress bars are off; that was us.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
