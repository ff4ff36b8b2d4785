"""Lost parts of a cluster: the lines that tell of them, and the exit codes. No Ray is started."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray import exceptions as of_ray

import slidelake
from cluster import ClusterError, ClusterLostError, Placement
from cluster.ray_faults import (
    LOUD,
    NO_NEWS,
    NodeWatch,
    lost_cluster_errors,
    lost_part,
    quiet_listener,
    quiet_loggers,
    start_variables,
    while_it_answers,
)
from cluster.ray_session import ray_session
from distill.errors import DistillError
from distill.train import ray_train
from distill.train.ray_gloo import interface_of, name_interface
from featurestore import BucketDownError, BucketError, DamageError
from featurestore.storage import DiskFullError
from featurestore.storage.bucket_errors import explain, missing_keys_error

ONE = Placement(device="cpu", workers=2, cpus_per_worker=1.0, gpus_per_worker=0.0)


def node(number: int, cpus: float = 1.0) -> dict[str, Any]:
    """Return a node as Ray lists it."""
    address = f"10.0.0.{number}"
    resources = {"CPU": cpus} if cpus else {}
    return {
        "NodeID": str(number), "NodeManagerAddress": address, "Alive": True, "Resources": resources,
    }  # fmt: skip


# ------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClusterError("no such address"), 2),
        (ClusterLostError("the cluster lost its head"), 4),
        (BucketError("the credentials are not valid"), 2),
        (BucketDownError("it can't be reached"), 4),
        (DiskFullError("no space left"), 4),
        (DamageError("it is not what was written"), 1),
        (RuntimeError("a fault of ours"), 3),
    ],
)
def test_exit_codes_tell_wrong_usage_from_what_failed_beneath(
    error: Exception,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr("slidelake.app", broken)
    with pytest.raises(SystemExit) as ended:
        slidelake.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of_ray.NodeDiedError("x"), "lost a node"),
        (of_ray.ActorUnavailableError("x", b"1" * 16), "lost a node"),
        (of_ray.WorkerCrashedError(), "a worker died, and so did those that tried again"),
        (of_ray.OutOfMemoryError("x"), "out of memory"),
        (of_ray.RaySystemError("gone"), "lost its head"),
        (of_ray.LocalRayletDiedError(), "lost its head"),
    ],
)
def test_errors_of_a_lost_cluster_are_one_line(error: Exception, words: str) -> None:
    with pytest.raises(ClusterLostError, match=words) as caught, lost_cluster_errors():
        raise error
    assert "the same command goes on" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_the_work_itself_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    failed_start = of_ray.ActorDiedError()
    failed_start._actor_init_failed = True
    for error in (failed_start, ValueError("bad slide")):
        assert lost_part(error) is None
        with pytest.raises(type(error)), lost_cluster_errors():
            raise error


# --------------------------------------------------------------------------- a training's end


class WorkersFailedError(Exception):
    """What Ray Train raises once all tries have failed."""

    def __init__(self, failure: Exception) -> None:
        super().__init__("Training failed due to worker errors:\nlast line")
        self.worker_failures = {0: failure}


class ControllerFailedError(Exception):
    """What Ray Train raises for an error that it does not try again."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(f"Training failed due to controller error:\n{failure}")
        self.controller_failure = failure


def test_a_training_is_said_to_have_failed_as_often_as_it_did() -> None:
    failed = ray_train._worker_error
    assert str(failed(WorkersFailedError(ValueError("x")))) == "training failed 4 times: last line"
    assert "a worker failed 4 times: no" in str(failed(WorkersFailedError(DistillError("no"))))
    assert str(failed(ControllerFailedError(ValueError("x")))) == "training failed once: x"
    lost = failed(WorkersFailedError(of_ray.ActorDiedError()))
    assert isinstance(lost, ClusterLostError)
    assert "training failed 4 times: the cluster lost a node" in str(lost)


def test_gloo_is_told_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("distill.train.ray_gloo.get_node_ip_address", lambda: "127.0.0.1")
    loopback = interface_of("127.0.0.1")
    assert loopback in {name for _, name in socket.if_nameindex()}
    assert interface_of("192.0.2.1") is None  # an address for documentation: nobody has it
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    name_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


# ----------------------------------------------------------------------- nodes come and go


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that looks at lists of nodes, one after the other; the notes."""
    monkeypatch.delenv("SLIDELAKE_NODES", raising=False)

    def looks(*lists: list[dict[str, Any]], together: bool = False) -> list[str]:
        notes: list[str] = []
        watch = NodeWatch(notes.append, ONE, together=together)
        for nodes in lists:
            monkeypatch.setattr("ray.nodes", lambda nodes=nodes: nodes)
            watch.look()
        return notes

    return looks


def test_lost_and_new_nodes_are_named_once(looks: Callable[..., list[str]]) -> None:
    first, second, late = node(1), node(2), node(3, cpus=2.0)
    notes = looks([first, second], [first], [first], [first, late])
    assert notes == [
        "node 10.0.0.2 (1 CPU) was lost; its work is done again on the other nodes",
        "node 10.0.0.3 (2 CPUs) joined",
    ]


def test_work_that_no_node_can_hold_is_told_once_as_long_as_it_waits(
    looks: Callable[..., list[str]],
) -> None:
    head = node(0, cpus=0.0)
    notes = looks(*[[head]] * 9, *[[head, node(1)]], *[[head]] * 9)
    waiting = [note for note in notes if note.startswith("waiting for nodes")]
    assert waiting == 2 * [
        "waiting for nodes: 2 workers with 1 CPU each, on cpu (nodes up: none with CPUs)"
    ]
    alone = looks(*[[head, node(1)]] * 9, together=True)
    (note,) = alone
    assert note.endswith("on cpu, at once, of which 1 fit (nodes up: 1 x 1 CPU)")
    assert looks(*[[head, node(1)]] * 9) == []  # one after the other they fit


# ----------------------------------------------------------------------------- Ray's words


def test_rays_words_on_lost_nodes_are_for_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.ray_logging import stdout_deduplicator

    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    # a Ray of other tests may be up in this process, and its words kept out
    monkeypatch.setattr(stdout_deduplicator, "skip_re", None)
    for name in LOUD:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    for debug in ("", "1"):
        monkeypatch.setenv("SLIDELAKE_DEBUG", debug)
        before = stdout_deduplicator.skip_re
        with quiet_loggers(), quiet_listener():
            levels = {logging.getLogger(name).level for name in LOUD}
            assert (levels == {logging.CRITICAL}) == (not debug)
            assert (stdout_deduplicator.skip_re is NO_NEWS) == (not debug)
        assert bool(start_variables()) == (not debug)
        assert stdout_deduplicator.skip_re is before
    monkeypatch.setenv("SLIDELAKE_DEBUG", "")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")  # a user's own stays
    assert start_variables() == {}


def test_a_worker_stopped_for_want_of_memory_is_news() -> None:
    assert NO_NEWS.search("The node 12ab was marked dead. (1) raylet crashes (OOM, etc.)")
    assert NO_NEWS.search("A worker died\n\twhile it ran")
    assert not NO_NEWS.search("Task was killed due to the node running low on memory.\nmore")


# ------------------------------------------------------------------------ a silent server


async def _silence() -> AsyncIterator[str]:
    yield "first"
    await asyncio.sleep(30)


def test_a_server_that_went_away_in_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SILENCE_S", 0.05), ("CONNECT_S", 0.2), ("PAUSE_S", 0.01)):
        monkeypatch.setattr(f"cluster.ray_faults.{name}", seconds)

    async def read(address: str) -> list[str]:
        chunks: list[str] = []
        try:
            async with asyncio.timeout(0.5):
                async for chunk in while_it_answers(_silence(), address):
                    chunks.append(chunk)  # noqa: PERF401 - those before the error count
        except (ConnectionError, TimeoutError) as error:
            chunks.append(type(error).__name__)
        return chunks

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert asyncio.run(read(f"http://127.0.0.1:{port}")) == ["first", "TimeoutError"]
    assert asyncio.run(read(f"http://127.0.0.1:{port}")) == ["first", "ConnectionError"]


# ------------------------------------------------------------------------------ ports, keys


@pytest.mark.parametrize(("port", "message"), [("0", "1 to 65535"), ("x", "'x' given")])
def test_a_metrics_port_that_is_none_is_refused(
    port: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIDELAKE_METRICS_PORT", port)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match=message), ray_session(address="local"):
        pass


def test_a_metrics_port_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("SLIDELAKE_METRICS_PORT", str(server.getsockname()[1]))
        with (
            pytest.raises(ClusterError, match="in use; give another"),
            ray_session(address="local"),
        ):
            pass


class NoCredentialsError(Exception):
    """As botocore raises it."""


class EndpointConnectionError(Exception):
    """As botocore raises it."""


def test_a_bucket_that_is_down_is_told_from_missing_keys() -> None:
    keys, down = NoCredentialsError("none"), EndpointConnectionError("no way")
    assert type(explain(keys, "s3://b/l")) is BucketError
    assert type(explain(down, "s3://b/l")) is BucketDownError
    assert str(missing_keys_error(keys)) == f"on node {socket.gethostname()}: none"
    assert missing_keys_error(down) is None
