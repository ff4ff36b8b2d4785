"""Faults of a cluster in one line each; what Ray prints about them is for `--debug`.

Where a node is lost, Ray prints dozens of lines: its C++ side to stderr, a listener's thread to
stdout, Ray Data by loggers, with stack traces. The work goes on meanwhile, so none of it is news.
"""

import _thread
import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ClusterLostError
from cluster.progress_text import counted
from cluster.ray_placement import NODES, Placement, node_shapes, room

DEBUG = "SLIDELAKE_DEBUG"
LOOK_S = 3.0
#: Ray's variable with the seconds after which a process ends that reaches no head.
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
#: Exit code of `slidelake` where what it runs on failed.
LOST_CODE = 4
WAIT_S = 15.0
SILENCE_S, CONNECT_S, PAUSE_S, CONNECTIONS = 10.0, 5.0, 1.0, 3
GOES_ON = "what is committed stays, and the same command goes on"

#: Messages of other processes that Ray's listener prints: a worker that was stopped for want of
#: memory is news, since only the user can mend it.
NO_NEWS = re.compile(r"^(?!.*(memory pressure|low on memory|memory usage threshold))", re.DOTALL)
#: Read by Ray's C++ side when a process starts: it prints all errors to stderr otherwise.
START_VARIABLES = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
#: Loggers that print the stack traces of lost workers, all of which are tried again or raised.
LOUD = (
    "ray._private.worker",
    "ray.data._internal.execution.metadata_fetcher",
    "ray.data._internal.execution.operators.actor_pool_map_operator",
    "ray.data._internal.execution.streaming_executor_state",
    "ray.data.exceptions",
)


def start_variables() -> dict[str, str | None]:
    """Return the variables with which processes of Ray print no errors of its C++ side.

    None with `--debug`, and none that a user has set.
    """
    if os.environ.get(DEBUG):
        return {}
    return {name: text for name, text in START_VARIABLES.items() if name not in os.environ}


@contextlib.contextmanager
def without_log_level_line() -> Iterator[None]:
    """Drop the line in which Ray's C++ side says that it has read RAY_BACKEND_LOG_LEVEL.

    It is written to the process's stderr while `ray.init` runs, which is kept in a file meanwhile.
    """
    if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
        yield
        return
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(tempfile.TemporaryFile())
        original = os.dup(2)
        stack.callback(os.close, original)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            kept.seek(0)
            for line in kept:
                if b"RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


@contextlib.contextmanager
def quiet_listener() -> Iterator[None]:
    """Leave out what Ray's listener prints to stdout about lost nodes and workers in the block.

    It is the switch that RAY_DEDUP_LOGS_SKIP_REGEX sets, which Ray reads when it is imported, for
    all that follows.
    """
    from ray._private.ray_logging import stdout_deduplicator

    before = stdout_deduplicator.skip_re
    if before is None and not os.environ.get(DEBUG):
        stdout_deduplicator.skip_re = NO_NEWS
    try:
        yield
    finally:
        stdout_deduplicator.skip_re = before


@contextlib.contextmanager
def quiet_loggers() -> Iterator[None]:
    """Keep the stack traces of lost workers out of the log inside the block, but for `--debug`."""
    if os.environ.get(DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def lost_cluster_errors() -> Iterator[None]:
    """Turn errors of Ray about lost parts of the cluster into one line with the remedy.

    Raises:
        ClusterLostError: a node, a worker or the head was lost, and Ray gave up.
    """
    try:
        yield
    except Exception as error:
        fault = lost_part(error)
        if fault is None:
            raise
        message = f"{fault}; {GOES_ON} (--debug, straight after slidelake, shows Ray's words)"
        raise ClusterLostError(message) from error


def lost_part(error: BaseException) -> str | None:
    """Return what was lost by an error of Ray; None if it is an error of the work itself."""
    from ray import exceptions as of_ray

    if isinstance(error, of_ray.RayActorError) and error.actor_init_failed:
        return None
    if isinstance(error, of_ray.RayTaskError):
        return None
    faults: dict[str, tuple[type[BaseException], ...]] = {
        "a worker was stopped because its node ran out of memory, and so were those that tried "
        "again; give fewer --workers, or nodes with more memory": (of_ray.OutOfMemoryError,),
        "a node's disk for temporary files is full": (of_ray.OutOfDiskError,),
        "a worker died, and so did those that tried again (a crash in native code, or out of "
        "memory)": (of_ray.WorkerCrashedError,),
        "the cluster lost a node that the work can't do without": (
            of_ray.RayActorError,
            of_ray.NodeDiedError,
            of_ray.ObjectLostError,
            of_ray.ActorPlacementGroupRemoved,
            of_ray.TaskPlacementGroupRemoved,
        ),
        "the cluster lost its head": (
            of_ray.LocalRayletDiedError,
            of_ray.RaySystemError,
            of_ray.RpcError,
        ),
    }
    for fault, kinds in faults.items():
        if isinstance(error, kinds):
            return fault
    return None


@contextlib.contextmanager
def watched_head(address: str) -> Iterator[None]:
    """Raise an error in the block once the cluster's head has not answered for a while.

    Ray itself ends the process then, after 60 s, without a word and with exit code 1.

    Args:
        address: `host:port` of the head.

    Raises:
        ClusterLostError: the head was lost.
    """
    limit_s = 0.6 * float(os.environ.get(RECONNECT, "60"))
    done, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_watch_head, args=(address, limit_s, done, lost), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if lost.is_set():
            raise ClusterLostError(_head_lost_text(address)) from error
        raise
    finally:
        done.set()


def _watch_head(address: str, limit_s: float, done: threading.Event, lost: threading.Event) -> None:
    """Interrupt the main thread where the head is lost; end the process where it can't be."""
    host, _, port = address.rpartition(":")
    answered, pause_s = time.monotonic(), LOOK_S
    while not done.wait(pause_s):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            answered, pause_s = time.monotonic(), LOOK_S
        except OSError:
            pause_s = 1.0
            if time.monotonic() - answered > limit_s:
                break
    if done.is_set():
        return
    lost.set()
    _thread.interrupt_main()
    if not done.wait(LOOK_S):  # the main thread waits for Ray, in code that takes no interrupt
        print(f"slidelake: {_head_lost_text(address)}", file=sys.stderr, flush=True)
        os._exit(LOST_CODE)


def _head_lost_text(address: str) -> str:
    return f"the cluster at {address} lost its head; {GOES_ON}"


async def while_it_answers(chunks: AsyncIterator[str], address: str) -> AsyncIterator[str]:
    """Yield what a server sends, as long as it accepts connections.

    A machine that is lost closes no connection, so a lost head looks like a job that has nothing to
    say. So while nothing comes, it is tried whether the server still accepts a connection.

    Args:
        chunks: what the server sends.
        address: URL of the server.

    Raises:
        ConnectionError: it does not, three times in a row.
    """
    iterator = aiter(chunks)
    while True:
        following = asyncio.ensure_future(anext(iterator, None))
        try:
            while not (await asyncio.wait({following}, timeout=SILENCE_S))[0]:
                await _check_connection(address)
        except ConnectionError:
            following.cancel()
            raise
        chunk = following.result()
        if chunk is None:
            return
        yield chunk


async def _check_connection(address: str) -> None:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    for _ in range(CONNECTIONS):
        with contextlib.suppress(OSError, TimeoutError):
            connecting = asyncio.open_connection(parts.hostname, port)
            _, writer = await asyncio.wait_for(connecting, timeout=CONNECT_S)
            writer.close()
            return
        await asyncio.sleep(PAUSE_S)
    msg = f"{parts.hostname}:{port} accepts no connection any more"
    raise ConnectionError(msg)


@contextlib.contextmanager
def noted_nodes(
    note: Callable[[str], None], demand: Placement, *, together: bool = False
) -> Iterator[None]:
    """Note each node that is lost or joins while the block runs, and that there is no room at all.

    On a cluster of one node that does not grow nothing is looked at.

    Args:
        note: function that shows a line of text.
        demand: the workers of the block.
        together: whether all of them have to run at the same time.
    """
    import ray

    if len(ray.nodes()) == 1 and not os.environ.get(NODES):
        yield
        return
    done, watch = threading.Event(), NodeWatch(note, demand, together=together)
    watch.look()
    thread = threading.Thread(target=_keep_looking, args=(watch, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _keep_looking(watch: "NodeWatch", done: threading.Event) -> None:
    while not done.wait(LOOK_S):
        try:
            watch.look()
        except Exception:  # noqa: BLE001 - Ray may be gone, which the block itself finds out
            return


@dataclass(kw_only=True)
class _Waiting:
    """The time for which there has been no room, and whether this was noted."""

    since_s: float = 0.0
    is_noted: bool = False


@dataclass
class NodeWatch:
    """Notes changes of the cluster from one look to the next.

    Attributes:
        note: function that shows a line of text.
        demand: the workers that need room.
        together: whether all of them have to run at the same time.
    """

    note: Callable[[str], None]
    demand: Placement
    together: bool = field(kw_only=True, default=False)
    _alive: dict[str, str] | None = None
    _waiting: _Waiting = field(default_factory=_Waiting)

    def look(self) -> None:
        """Compare the nodes with those of the look before."""
        import ray

        alive = {node["NodeID"]: _node_name(node) for node in ray.nodes() if node["Alive"]}
        before = alive if self._alive is None else self._alive
        for node_id, name in before.items():
            if node_id not in alive:
                self.note(f"{name} was lost; its work is done again on the other nodes")
        for node_id, name in alive.items():
            if node_id not in before:
                self.note(f"{name} joined")
        self._alive = alive
        self._look_for_room()

    def _look_for_room(self) -> None:
        """Note once that the nodes that are up have had no room for the workers for a while."""
        demand, shapes = self.demand, node_shapes(to_come=False)
        places = room(shapes, demand.cpus_per_worker, demand.gpus_per_worker)
        if places >= (demand.workers if self.together else 1):
            self._waiting = _Waiting()
            return
        self._waiting.since_s += LOOK_S
        if self._waiting.since_s < WAIT_S or self._waiting.is_noted:
            return
        self._waiting.is_noted = True
        nodes = ", ".join(map(str, shapes)) or "none with CPUs"
        at_once = f", at once, of which {places} fit" if self.together else ""
        self.note(f"waiting for nodes: {demand}{at_once} (nodes up: {nodes})")


def _node_name(node: Mapping[str, Any]) -> str:
    cpus = counted(node["Resources"].get("CPU", 0.0), "CPU")
    return f"node {node['NodeManagerAddress']} ({cpus})"
