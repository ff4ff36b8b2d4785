"""A Ray session: the running cluster, the cluster at an address, or a small private cluster.

Starting the private cluster takes 6-7 s on 2 cores with Ray 2.60 (importing `ray` 0.9 s and
`ray.data` 1.8 s included), stopping it 1.5 s. It has no dashboard and keeps token authentication,
which Ray has on by default for a local start, because its gRPC ports listen on every interface of
the machine whatever address the node is given.
"""

import logging
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from cluster.environment import patched_environ
from cluster.errors import ClusterError
from cluster.ray_placement import NODES
from cluster.scratch import object_store_bytes, ram_bytes, scratch_directory, shm_free_bytes

_CHECKOUT = Path(__file__).resolve().parent.parent
_LOCAL = "local"
_REACH_S = 10.0
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
        ClusterError: the cluster cannot be reached or refuses the token, `num_cpus` is set for
            a running cluster, or there is no place for Ray's sockets.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or _LOCAL
    with ExitStack() as own:
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

    with ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        stack.enter_context(patched_environ(_local_environ(), keep="RAY_AUTH_MODE"))
        stack.callback(ray.shutdown)
        with _without_notices(), _clear_timeout():
            ray.init(
                address=_LOCAL,
                num_cpus=_own_cores() if num_cpus is None else num_cpus,
                include_dashboard=False,
                object_store_memory=object_store_bytes(
                    ram_bytes=ram_bytes(), shm_free_bytes=shm_free_bytes()
                ),
                log_to_driver=worker_logs,
                logging_level=logging.WARNING,
                _node_ip_address=_loopback_node_ip(),
                _temp_dir=str(directory),
            )
        yield


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
    _check_reachable(address)
    with ExitStack() as stack:
        stack.enter_context(patched_environ({}, keep="RAY_AUTH_MODE"))
        stack.callback(ray.shutdown)
        try:
            ray.init(address=address, log_to_driver=worker_logs, logging_level=logging.WARNING)
        except (AuthenticationError, ConnectionError) as err:
            raise ClusterError(_refused_message(address, err)) from err
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


def _local_environ() -> dict[str, str | None]:
    """Return the environment of a Ray that is started here, and so of all its workers.

    The checkout goes on PYTHONPATH because workers import our packages by name, also when the
    command was started from another directory. An inherited variable costs nothing; the same by
    `runtime_env` makes Ray throw away its prestarted workers.
    """
    path = os.environ.get("PYTHONPATH")
    python_path = f"{_CHECKOUT}{os.pathsep}{path}" if path else str(_CHECKOUT)
    # A private Ray does not grow, whatever cluster the variable is set for.
    return {"PYTHONPATH": python_path, "RAY_USAGE_STATS_ENABLED": "0", NODES: None}


def _loopback_node_ip() -> str | None:
    """Return a loopback address for the node, so that the network cannot reach its HTTP agents.

    On Linux Ray replaces 127.0.0.1 by the machine's outer address, but takes any other loopback
    address as it is. A local Ray then also survives a change of network. None is Ray's own choice,
    which on macOS is 127.0.0.1.
    """
    if not sys.platform.startswith("linux"):
        return None
    candidate = "127.0.0.2"
    with socket.socket() as probe:
        try:
            probe.bind((candidate, 0))
        except OSError:
            return None
    return candidate


@contextmanager
def _clear_timeout() -> Iterator[None]:
    """Turn the bare Exception of a node that did not start within 30 s into a clear error.

    Ray forgets such a node, and with it the servers that it has started: they are ended here.
    """
    try:
        yield
    except Exception as err:
        if "timed out during startup" not in str(err):
            raise
        _end_unfinished_node(err)
        msg = (
            "a local Ray did not come up within its 30 s, as when this machine is very busy; try "
            "again, or start one apart (`ray start --head`) and set RAY_ADDRESS=auto"
        )
        raise ClusterError(msg) from err


def _end_unfinished_node(error: BaseException) -> None:
    """End the processes of a node whose start has raised an error: no name but its own has it."""
    from ray._private.node import Node

    nodes = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    for node in nodes:
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


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
