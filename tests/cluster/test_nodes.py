"""Every stage on a Ray of several nodes without a shared disk, some of which are lost in it.

Each stage is sent from a laptop by `slidelake submit`; what it makes in the bucket is compared with
what the same calls make on one machine. See `tests/worlds/node_cluster.py` for the cluster.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from cluster import NodeShape
from featurestore import Lake, open_lake, verify
from tests.conftest import ROOT
from tests.worlds.kills import command_of, descendants
from tests.worlds.node_cluster import (
    Command,
    Node,
    NodeCluster,
    node_cluster,
    reason_without_nodes,
    wait_until,
)
from tests.worlds.nodes_work import (
    MPPS,
    SLIDES,
    STUDENT,
    TEACHER,
    TINY,
    UserFiles,
    features,
    make_alone,
    make_files,
    study_words,
    tables_of,
)

WHY_NOT = reason_without_nodes()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.servers,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "there can be namespaces"),
    pytest.mark.timeout(1200),
]

#: The groups of nodes that the cluster may have, as an autoscaler's are named.
GROUPS = "2x1,1x2"
HEAD = Node(number=0, cpus=0, environ={"SLIDELAKE_NODES": GROUPS})
SLOW = {"SLOW_S": "0.1"}
SMALL = (Node(number=1, environ=SLOW), Node(number=2, environ=SLOW))
LARGE = Node(number=3, cpus=2, environ=SLOW)
WORKERS = (*SMALL, LARGE)
BUCKET = "lab"
LAKE = f"s3://{BUCKET}/lake"
#: Titles of the processes that run an encoder on a unit now, and of those that train cells.
EXTRACTS, CELLS = rb"ray::UnitWorker\.fill", rb"ray::_call"
#: Ray's own words on what is lost, none of which is for a user.
RAYS_WORDS = re.compile(
    r"Traceback|\.cc:\d|object store|core_worker|max_restarts|\(raylet\)|RayActorError|Stack trace"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> UserFiles:
    """Return the files of the user."""
    return make_files(tmp_path_factory.mktemp("user"))


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The same work on one machine: the lake and the reports of its stages."""

    lake: Lake
    reports: dict[str, Any]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, files: UserFiles, ray_up: None) -> Alone:
    """Return the lake that one machine makes."""
    folder = str(tmp_path_factory.mktemp("alone") / "lake")
    return Alone(reports=make_alone(folder, files), lake=open_lake(folder))


@pytest.fixture(scope="module")
def cluster(files: UserFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    """Yield a head alone, whose workers come as they are asked for; slides are in its bucket."""
    folder = tmp_path_factory.mktemp("laptop")
    with node_cluster(folder, [HEAD]) as cluster:
        upload = (
            "import sys, pathlib, botocore.session\n"
            "s3 = botocore.session.Session().create_client('s3')\n"
            f"s3.create_bucket(Bucket='{BUCKET}')\n"
            "for name in sys.argv[1:]:\n"
            "    path = pathlib.Path(name)\n"
            "    for file in sorted(path.rglob('*.svs')) if path.is_dir() else [path]:\n"
            "        key = f'{path.name}/{file.name}' if path.is_dir() else file.name\n"
            f"        s3.put_object(Bucket='{BUCKET}', Key=key, Body=file.read_bytes())\n"
        )
        cluster.laptop("python", "-c", upload, files.slides, files.later)
        for file in (files.encoder, files.labels):
            shutil.copy(file, folder)
        yield cluster


def lose_a_node(cluster: NodeCluster, title: bytes, *, after_s: float = 0.0) -> int:
    """Kill the first worker node on which a process with such a title runs; return its number."""
    number = node_at_work(cluster, title)
    time.sleep(after_s)
    cluster.kill(number)
    return number


def node_at_work(cluster: NodeCluster, title: bytes) -> int:
    """Return the number of the first worker node with a process whose title matches a pattern."""
    numbers: list[int] = []

    def runs_somewhere() -> bool:
        numbers[:] = [
            number
            for number in cluster.running
            if number and any(re.search(title, line) for line in cluster.processes(number))
        ]
        return bool(numbers)

    wait_until(runs_somewhere, f"a process {title!r}", every_s=0.05, log=cluster.logs)
    return numbers[0]


def start_again(cluster: NodeCluster, number: int) -> None:
    """Start a lost node, as a cloud does; nobody waits for it."""
    cluster.start(next(node for node in WORKERS if node.number == number))


def is_in_plain_words(command: Command) -> bool:
    """Whether nothing in a command's output is Ray's own."""
    words = RAYS_WORDS.search(command.text)
    assert words is None, command.text[max(0, words.start() - 300) : words.end() + 1000]
    return True


def test_nothing_is_left_of_a_cluster_whose_test_was_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from tests.worlds.node_cluster import NodeCluster\n"
        "cluster = NodeCluster(pathlib.Path(sys.argv[1]))\n"
        "print(cluster.s3, flush=True); time.sleep(600)\n"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline().startswith("http://10.77.0.1:")
        pids = descendants(maker.pid)
        assert any(b"s3_server" in command_of(pid) for pid in pids)
        maker.kill()
    wait_until(
        lambda: not any(command_of(pid) for pid in pids), "the end of its processes", patience_s=10
    )


# ------------------------------------------------------------------------- the stages, in order


@pytest.fixture(scope="module")
def ingested(cluster: NodeCluster) -> Command:
    """Return an ingest that began without any worker, lost one and gained two."""
    slides = f"s3://{BUCKET}/slides/*.svs"
    mpps = [word for mpp in MPPS for word in ("--mpp", mpp)]
    ingest = cluster.submitting("ingest", LAKE, slides, *mpps, "--json")
    ingest.wait_for("waiting for nodes")
    for node in SMALL:
        cluster.start(node)
    lost = lose_a_node(cluster, b"ingest.cut:")
    cluster.start(LARGE)
    ingest.finish()
    start_again(cluster, lost)
    return ingest


@pytest.fixture(scope="module")
def extracted(cluster: NodeCluster, ingested: Command, files: UserFiles) -> Command:
    """Return an extract of the encoder that lies on the laptop, in which a node was lost."""
    cluster.become(HEAD, *WORKERS)
    words = ("--teacher", files.encoder.name, "--workers", 2, "--json")
    extract = cluster.submitting("extract", LAKE, *words)
    lost = lose_a_node(cluster, EXTRACTS, after_s=1.0)
    extract.finish()
    start_again(cluster, lost)
    return extract


@pytest.fixture(scope="module")
def fitted(cluster: NodeCluster, extracted: Command) -> dict[str, Any]:
    """Return the report of the statistics."""
    return answer(cluster.submit("stats", LAKE, "--teacher", TEACHER, "--json").stdout)


@pytest.fixture(scope="module")
def trained(cluster: NodeCluster, fitted: dict[str, Any]) -> Command:
    """Return a training on two nodes, one of which was lost after the first epoch."""
    cluster.become(HEAD, *WORKERS)
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    words = ["--teacher", TEACHER, "--name", STUDENT, "--mpp", 0.5, *settings, "--json"]
    together = ["--workers", 2, "--cpus-per-worker", 1, "--checkpoint-s", 0.5]
    training = cluster.submitting("distill", LAKE, *words, *together)
    training.wait_for("epoch 1")
    lost = lose_a_node(cluster, b"RayTrainWorker")
    training.finish()
    start_again(cluster, lost)
    return training


@pytest.fixture(scope="module")
def student_features(cluster: NodeCluster, trained: Command) -> dict[str, Any]:
    """Return the report of the extract of the student."""
    words = ("extract", LAKE, "--teacher", STUDENT, "--mpp", 0.5, "--json")
    return answer(cluster.submit(*words).stdout)


@pytest.fixture(scope="module")
def studies(
    cluster: NodeCluster, student_features: dict[str, Any], files: UserFiles
) -> dict[str, Command]:
    """Return both studies, which ran at the same time on one lake, and lost a node."""
    cluster.become(HEAD, *WORKERS)
    commands = {
        name: cluster.submitting(name, LAKE, *words)
        for name, words in study_words(files.labels.name).items()
    }
    start_again(cluster, lose_a_node(cluster, CELLS, after_s=1.0))
    for command in commands.values():
        command.finish()
    return commands


@pytest.fixture(scope="module")
def copied(cluster: NodeCluster, studies: dict[str, Command]) -> Lake:
    """Return a copy of the cluster's lake on the laptop's disk."""
    folder = cluster.folder / "copied"
    cluster.laptop("slidelake", "copy", LAKE, folder)
    return open_lake(str(folder))


def answer(stdout: str) -> dict[str, Any]:
    """Return the object that `--json` prints last."""
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    value: dict[str, Any] = json.loads(lines[-1])
    return value


# --------------------------------------------------------------- what came out, and what was said


def test_an_ingest_waits_for_nodes_and_survives_the_loss_of_one(ingested: Command) -> None:
    report = answer(ingested.text)
    assert (report["ready"], report["failed"]) == (SLIDES, [])
    assert "waiting for nodes" in ingested.text
    assert "(1 CPU) joined" in ingested.text
    assert "was lost; its work is done again on the other nodes" in ingested.text
    assert is_in_plain_words(ingested)


def test_an_extract_survives_the_loss_of_a_node(extracted: Command) -> None:
    report = answer(extracted.text)
    assert report["failed"] == []
    assert report["workers"]["cpus_per_worker"] == 1.0  # not a share of all CPUs of the cluster
    assert "was lost" in extracted.text
    assert is_in_plain_words(extracted)


def test_a_training_on_two_nodes_survives_the_loss_of_one(trained: Command) -> None:
    """Each node's own name is a loopback address: the workers find each other all the same."""
    assert "2 workers with 1 CPU each, on cpu" in trained.text
    assert "was lost" in trained.text
    assert is_in_plain_words(trained)


def test_the_lake_is_that_of_one_machine(copied: Lake, alone: Alone) -> None:
    assert verify(copied).ok
    ours, one = tables_of(copied), tables_of(alone.lake)
    assert_frame_equal(ours["slides"], one["slides"])
    students = pl.col("teacher") == STUDENT
    for name in ("catalog", *(f"tiles {mpp}" for mpp in MPPS)):
        # a student's weights are sums in another order after a restart: compared below
        left, right = (
            table.filter(~students.fill_null(value=False))
            if name == "catalog"
            else table.drop(STUDENT, strict=False)
            for table in (ours[name], one[name])
        )
        assert_frame_equal(left, right)


def test_the_student_is_that_of_one_machine(copied: Lake, alone: Alone) -> None:
    ours, one = (
        load_file(Path(lake.uri) / f"students/{STUDENT}/model.safetensors")
        for lake in (copied, alone.lake)
    )
    assert ours.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    left, right = (features(lake, STUDENT)[STUDENT].to_numpy() for lake in (copied, alone.lake))
    torch.testing.assert_close(
        torch.from_numpy(left.astype("f4")), torch.from_numpy(right.astype("f4")), rtol=0, atol=0.02
    )


def test_statistics_are_those_of_one_machine(fitted: dict[str, Any], alone: Alone) -> None:
    one = alone.reports["stats"]
    assert [entry["rows"] for entry in fitted["sets"]] == [entry["rows"] for entry in one["sets"]]


def test_two_studies_at_once_are_those_of_one_machine(
    studies: dict[str, Command], alone: Alone
) -> None:
    for name, command in studies.items():
        ours, one = answer(command.text)["metrics"], alone.reports[name]["metrics"]
        assert ours.keys() == one.keys()
        for arm, metrics in one.items():
            assert ours[arm]["metric"] == metrics["metric"]
            assert ours[arm]["estimate"] == pytest.approx(metrics["estimate"], abs=1e-6), arm
        assert is_in_plain_words(command)
    assert sum("was lost" in command.text for command in studies.values()) >= 1


def test_a_query_answers_from_the_head(cluster: NodeCluster, extracted: Command) -> None:
    sql = "SELECT count(*) AS n FROM slides WHERE state = 'ready'"
    reply = answer(cluster.submit("query", LAKE, sql, "--json").stdout)
    assert reply == {"columns": ["n"], "rows": [[SLIDES]]}


#: Paths that Ray serves without the token, for probes of Kubernetes: whether it is up, no more.
PROBES = {"/api/local_raylet_healthz", "/api/gcs_healthz", "/api/healthz", "/"}


def knocks(cluster: NodeCluster, address: str, ports: Iterable[int]) -> dict[int, list[str]]:
    """Return what each port of an address answers to a laptop without the token."""
    line = ("python", "-m", "tests.worlds.knock", address, *sorted(ports))
    answers = json.loads(cluster.laptop(*line, environ={"RAY_AUTH_TOKEN": ""}).stdout)
    return {int(port): what["open"] for port, what in answers.items()}


def test_a_node_answers_nobody_without_the_token(cluster: NodeCluster) -> None:
    """Ray's metrics ports would: they are closed by the variables that the docs name."""
    if 1 not in cluster.running:
        cluster.start(SMALL[0])
    cluster.wait()
    for number, node in ((0, HEAD), (1, SMALL[0])):
        ports = cluster.listening(number)
        assert len(ports) > 3
        reached = {port for port, address in ports.items() if not address.startswith("127.")}
        open_to_all = knocks(cluster, node.address, reached)
        assert {path for paths in open_to_all.values() for path in paths} <= PROBES, open_to_all


@pytest.mark.parametrize("metrics_port", ["", "9123"])
def test_a_private_ray_is_reached_from_no_other_machine(
    cluster: NodeCluster, metrics_port: str
) -> None:
    """And from its own, without the token, only by the metrics port that a user opens."""
    if 1 not in cluster.running:
        cluster.start(SMALL[0])
    code = (
        "import json, subprocess, sys\n"
        "from cluster import ray_map, ray_session\n"
        "from tests.worlds.knock import knock\n"
        "with ray_session(ray_data=False):\n"
        "    assert list(ray_map(abs, [-1])) == [(0, 1)]\n"
        "    lines = subprocess.run(['ss', '-Hltn'], capture_output=True, text=True).stdout\n"
        "    places = [line.split()[3].rpartition(':')[::2] for line in lines.splitlines()]\n"
        "    own = [place for place in places if place[1] not in sys.argv[1:]]\n"
        "    answers = {port: knock('127.0.0.1', int(port))['open'] for _, port in own}\n"
        "    print(json.dumps([{port: place for place, port in own}, answers]))\n"
    )
    others = [str(port) for port in cluster.listening(1)]
    environ = {"RAY_ADDRESS": "local", "SLIDELAKE_METRICS_PORT": metrics_port}
    done = cluster.on(1, "python", "-c", code, *others, environ=environ)
    addresses, answers = json.loads(done.stdout.splitlines()[-1])
    assert len(addresses) > 3
    assert set(addresses.values()) <= {"127.0.0.1", "[::ffff:127.0.0.1]"}
    is_open = {port for port, paths in answers.items() if set(paths) - PROBES}
    assert is_open == ({metrics_port} if metrics_port else set()), answers


def test_a_demand_that_no_node_holds_ends_at_once_and_names_the_nodes(
    cluster: NodeCluster, ingested: Command
) -> None:
    words = ("extract", LAKE, "--teacher", "efficientnet_lite0", "--cpus-per-worker", 3)
    command = cluster.submitting(*words)
    command.wait_for("Running entrypoint")
    start = time.monotonic()
    command.finish(code=2)
    assert time.monotonic() - start < 30
    (line,) = [line for line in command.stdout if line.startswith("slidelake: ")]
    assert "a worker of 3 CPUs fits on no node (" in line
    assert str(NodeShape(cpus=2, gpus=0, count=1)) in line
    assert is_in_plain_words(command)


def test_a_lost_head_is_told_and_the_same_command_goes_on(
    cluster: NodeCluster, ingested: Command, files: UserFiles
) -> None:
    """Without fault tolerance of its tables a head takes its jobs with it; the lake stays whole."""
    cluster.become(HEAD, *WORKERS)
    encoder = cluster.folder / f"again_{files.encoder.name}"
    encoder.write_text(files.encoder.read_text().replace(TEACHER, f"{TEACHER}-again"))
    words = ("extract", LAKE, "--teacher", encoder.name, "--workers", 2, "--mpp", 0.5, "--json")
    extract = cluster.submitting(*words)
    node_at_work(cluster, EXTRACTS)
    cluster.kill(0)
    assert extract.finish(code=None) == 4
    (line,) = [line for line in extract.stderr if line.startswith("slidelake: ")]
    assert "lost sight of" in line
    assert "goes on unless the head was lost" in line
    assert is_in_plain_words(extract)
    assert cluster.laptop("slidelake", "verify", LAKE).returncode == 0
    cluster.become(HEAD, *WORKERS)
    report = answer(cluster.submit(*words).stdout)
    assert report["failed"] == []
    assert report["teachers"][f"{TEACHER}-again"]["tiles"] > 0


def test_a_node_without_keys_is_one_clear_line(cluster: NodeCluster, ingested: Command) -> None:
    cluster.become(HEAD, Node(number=4, has_keys=False))
    done = cluster.submit("ingest", LAKE, f"s3://{BUCKET}/later/*.svs", "--json", code=None)
    line = [line for line in done.stdout.splitlines() if line.startswith("slidelake: ")]
    assert (done.returncode, len(line)) == (2, 1)
    assert "no usable credentials were found" in line[0]
    assert "n4" in line[0] or "10.77.0.14" in line[0]
