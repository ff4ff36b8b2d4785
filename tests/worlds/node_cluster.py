"""A Ray of several nodes on one machine, each without the others' disks, and a user's laptop.

A node has its own network, mounts, processes and host name: a tmpfs for /tmp, /dev/shm and its home
folder, and nothing else that can be written. Nodes meet on a bridge that leads nowhere else; an S3
server listens on it, and a user types commands there who has S3 and the dashboard alone.

All of it lives in one namespace of processes that ends with the pipe to the process that made it,
so nothing is left behind even by SIGKILL of pytest, and `ray stop` reaches no other Ray.
"""

import contextlib
import functools
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from cluster.ray_session import CLOSED_PORTS
from tests.conftest import ROOT
from tests.worlds.kills import children, command_of, descendants
from tests.worlds.s3 import KEY, SECRET

PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
NET = "10.77.0"
LAPTOP = f"{NET}.1"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
PATIENCE_S = 150.0
SEPARATE = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

#: Run by the first process of a node; {names} are put in. Its death is the loss of the machine.
NODE_SCRIPT = """
set -e
mount --bind {root} /mnt
mount -t tmpfs -o size=3g,mode=1777 tmpfs /tmp
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mkdir -p {root} /tmp/home
mount --bind /mnt {root}
mount -o remount,bind,ro {root}
hostname {name}
# as Debian's installer writes it: the host's own name is a loopback address
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts
mount -o remount,bind,ro /
cd /tmp/home
until ip -o link show eth0 > /dev/null 2>&1; do sleep 0.1; done
ip link set lo up
ip addr add {address}/24 dev eth0
ip link set eth0 up
# Ray gives a node 30 s to start: on a busy machine it is tried again, as where the head is gone
while true; do {ray} || true; sleep 2; done
"""


def why_not() -> str:
    """Return why there can be no such cluster on this machine; empty if there can."""
    missing = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    if missing:
        return f"needs {', '.join(sorted(missing))}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    tried = subprocess.run(["unshare", *SEPARATE, "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "no namespaces can be made here"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node to be started.

    Attributes:
        number: 0 for the head; the last part of its address is 10 more.
        cpus: CPUs that Ray gives out on it.
        has_keys: whether it has the keys of the bucket.
        environ: further variables.
    """

    number: int
    cpus: int = 1
    has_keys: bool = True
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return its host name."""
        return f"n{self.number}"

    @property
    def address(self) -> str:
        """Return its IP address."""
        return f"{NET}.{10 + self.number}"

    @property
    def start(self) -> list[str]:
        """Return the command that starts Ray on it and stays."""
        words = ["ray", "start", f"--num-cpus={self.cpus}", f"--node-ip-address={self.address}"]
        words += ["--object-store-memory=200000000", "--disable-usage-stats", "--block"]
        if self.number:
            return [*words, f"--address={NET}.10:{GCS_PORT}"]
        return [*words, "--head", f"--port={GCS_PORT}", f"--dashboard-host={self.address}"]


class NodeCluster:
    """A cluster whose nodes are started, lost and added by a test.

    Args:
        folder: for the user's files and the nodes' logs; no node sees it.
        environ: variables of every node beside the usual ones.
    """

    def __init__(self, folder: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.head = f"{NET}.10:{GCS_PORT}"
        self.dashboard = f"http://{NET}.10:{DASHBOARD_PORT}"
        self._environ = dict(environ or {})
        self._token, self.s3 = secrets.token_hex(32), ""
        self._nodes: dict[int, tuple[Node, subprocess.Popen[bytes]]] = {}
        # `cat` is the first process of all others: it ends with its input, and they with it
        self._holder = subprocess.Popen(
            ["unshare", *SEPARATE, "--propagation", "private", "cat"], stdin=subprocess.PIPE
        )
        self._inside = ["nsenter", "-t", str(_only_child(self._holder.pid)), "-n", "-m", "-p"]
        self._ip("link set lo up")
        self._ip("link add br0 type bridge")
        self._ip(f"addr add {LAPTOP}/24 dev br0")
        self._ip("link set br0 up")
        self.s3 = self._start_s3()

    def _ip(self, words: str) -> None:
        """Change the network of the laptop, with process ids as this process has them."""
        net_alone = [*self._inside[:3], "-n"]
        subprocess.run([*net_alone, "ip", *shlex.split(words)], check=True, timeout=60)

    def _start_s3(self) -> str:
        """Start an S3 server on the bridge, and return its URL."""
        server = Path(__file__).with_name("s3_server.py")
        process = subprocess.Popen(
            [*self._inside, sys.executable, "-P", str(server), LAPTOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._s3 = process
        assert process.stdout is not None
        return f"http://{LAPTOP}:{process.stdout.readline().split()[0]}"

    def _variables(self, *, has_keys: bool = True) -> dict[str, str]:
        """Return the whole environment of a process."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **(keys if has_keys else {}),
            **self._environ,
        }

    def start(self, node: Node) -> None:
        """Start a node; Ray has it some 10 s later."""
        assert node.number not in self._nodes, f"{node.name} is up"
        ray = shlex.join(["env", "-i", *_assignments(self._node_variables(node)), *node.start])
        script = NODE_SCRIPT.format(root=ROOT, name=node.name, address=node.address, ray=ray)
        with self._log_path(node.number).open("ab") as log:
            process = subprocess.Popen(
                [
                    *(*self._inside, "unshare", *SEPARATE, "--uts", "--propagation", "private"),
                    *("bash", "-c", script, node.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._nodes[node.number] = (node, process)
        veth = f"v{node.number}-{secrets.token_hex(2)}"
        self._ip(f"link add {veth} type veth peer name eth0 netns {self.init(node.number)}")
        self._ip(f"link set {veth} master br0 up")

    def _node_variables(self, node: Node) -> dict[str, str]:
        variables = {**self._variables(has_keys=node.has_keys), "HOME": "/tmp/home"}
        # what dies is taken for dead in 12 s, not 50 and 60
        closed = {"RAY_enable_metrics_collection": "0", **CLOSED_PORTS}
        fast = {
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
        }
        return {**variables, **closed, **fast, **node.environ}

    def init(self, number: int) -> int:
        """Return the id of the first process of a node, in whose namespaces the others are."""
        _, process = self._nodes[number]
        return _only_child(_only_child(process.pid))

    def processes(self, number: int) -> list[bytes]:
        """Return the command lines of all processes of a node."""
        return [command_of(pid) for pid in descendants(self.init(number))]

    @property
    def running(self) -> list[int]:
        """Return the numbers of the nodes that were started and not killed."""
        return sorted(self._nodes)

    def kill(self, number: int) -> None:
        """Lose a node, all of it at once, as where its machine is switched off."""
        os.kill(self.init(number), signal.SIGKILL)
        _, process = self._nodes.pop(number)
        process.wait(timeout=60)

    def on(
        self,
        number: int,
        *words: object,
        environ: Mapping[str, str] | None = None,
        code: int | None = 0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, as a user who is logged in there."""
        node, _ = self._nodes[number]
        variables = {**self._node_variables(node), "RAY_ADDRESS": self.head, **(environ or {})}
        enter = ["nsenter", "-t", str(self.init(number)), "-m", "-u", "-n", "-p", "--wd=/"]
        return _run([*enter, "env", "-C", "/tmp/home", *map(str, words)], variables, code=code)

    def listening(self, number: int) -> dict[int, str]:
        """Return the TCP ports that a node's processes listen on, with their address."""
        lines = self.on(number, "ss", "-H", "-l", "-t", "-n").stdout.splitlines()
        places = (line.split()[3].rpartition(":") for line in lines)
        return {int(port): address for address, _, port in places}

    def laptop(
        self, *words: object, environ: Mapping[str, str] | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where a user sits."""
        return _run(self._typed(words), self._laptop_variables(environ), code=code)

    def typing(self, *words: object, environ: Mapping[str, str] | None = None) -> "Command":
        """Start a command where a user sits, without waiting for it."""
        return Command(self._typed(words), self._laptop_variables(environ))

    def _typed(self, words: Sequence[object]) -> list[str]:
        return [*self._inside, "--wd=/", "env", "-C", str(self.folder), *map(str, words)]

    def _laptop_variables(self, environ: Mapping[str, str] | None) -> dict[str, str]:
        own = {"HOME": str(self.folder), "RAY_API_SERVER_ADDRESS": self.dashboard}
        return {**self._variables(), **own, **(environ or {})}

    def submit(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run `slidelake submit -- WORDS` on the laptop."""
        return self.laptop(*SUBMIT, *words, code=code)

    def submitting(self, *words: object) -> "Command":
        """Start `slidelake submit -- WORDS` on the laptop."""
        return self.typing(*SUBMIT, *words)

    def become(self, *nodes: Node) -> None:
        """Lose and start nodes until exactly these are there, and wait until Ray has them."""
        for number, (node, _) in list(self._nodes.items()):
            if node not in nodes:
                self.kill(number)
        for node in nodes:
            if node.number not in self._nodes:
                self.start(node)
        self.wait()

    def wait(self) -> None:
        """Wait until the nodes that were started are those alive to Ray, and its dashboard is up.

        One process does it all: an import of Ray for each look would take the time of its start.
        """
        expected = sorted(node.address for node, _ in self._nodes.values())
        line = ["python", "-m", "tests.worlds.wait_for_nodes", *expected]
        head = self._nodes[0][0].address

        def port_is_open() -> bool:
            code = f"import socket; socket.create_connection(('{head}', {DASHBOARD_PORT}), 2)"
            return self.laptop(sys.executable, "-S", "-c", code, code=None).returncode == 0

        wait_until(port_is_open, "the dashboard", log=self.logs)
        done = self.on(0, *line, environ={"PATIENCE_S": str(PATIENCE_S)}, code=None)
        assert done.returncode == 0, f"{done.stdout} {done.stderr[-2000:]} {self.logs()}"

    def logs(self) -> str:
        """Return the ends of the nodes' logs."""
        paths = sorted(self.folder.glob("node-*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in paths)

    def _log_path(self, number: int) -> Path:
        return self.folder / f"node-{number}.log"

    def close(self) -> None:
        """End everything."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(timeout=60)
        for _, process in self._nodes.values():
            process.wait(timeout=60)
        for pipe in (self._s3.stdin, self._s3.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._s3.wait(timeout=60)


SUBMIT = ("slidelake", "submit", "--")


class Command:
    """A command that runs, and the lines that it has printed so far.

    Args:
        words: the command.
        variables: its whole environment.
    """

    def __init__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self._words = words
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.process = subprocess.Popen(
            words,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        streams = ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        self._readers = [threading.Thread(target=_read, args=pair) for pair in streams]
        for reader in self._readers:
            reader.start()

    @property
    def text(self) -> str:
        """Return all that was printed."""
        return "\n".join([*self.stdout, *self.stderr])

    def wait_for(self, text: str) -> None:
        """Wait until a line with this text was printed."""
        wait_until(
            lambda: text in self.text or self.process.poll() is not None,
            f"{text!r} in {shlex.join(self._words)}",
            every_s=0.1,
            log=lambda: self.text[-4000:],
        )
        assert text in self.text, self.text[-6000:]

    def finish(self, code: int | None = 0) -> int:
        """Wait for the end, check the exit code if one is given, and return it."""
        returned = self.process.wait(timeout=400)
        for reader in self._readers:
            reader.join(timeout=60)
        assert code in (None, returned), f"{self._words}: {returned}\n{self.text[-8000:]}"
        return returned


def _read(stream: IO[str], lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))  # noqa: PERF401 - others look while it grows


def _assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _only_child(parent: int) -> int:
    """Return the child of a process that has one, once it is there."""
    pids: list[int] = []

    def has_child() -> bool:
        pids[:] = children(parent)
        return bool(pids)

    wait_until(has_child, f"a child of process {parent}", every_s=0.02, patience_s=30.0)
    return pids[0]


def _run(
    words: Sequence[str], variables: Mapping[str, str], *, code: int | None
) -> subprocess.CompletedProcess[str]:
    """Run a command, and check its exit code, if one is given."""
    done = subprocess.run(
        words, env=dict(variables), capture_output=True, text=True, timeout=400, check=False
    )
    assert code in (None, done.returncode), (
        f"{shlex.join(words)}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    )
    return done


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    every_s: float = 0.3,
    patience_s: float = PATIENCE_S,
    log: Callable[[], str] = str,
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}; {log()}"
        time.sleep(every_s)


@contextlib.contextmanager
def node_cluster(
    folder: Path, nodes: Sequence[Node], *, environ: Mapping[str, str] | None = None
) -> Iterator[NodeCluster]:
    """Yield a cluster with some nodes, all of which Ray has."""
    cluster = NodeCluster(folder, environ=environ)
    try:
        for node in nodes:
            cluster.start(node)
        cluster.wait()
        yield cluster
    finally:
        cluster.close()


reason_without_nodes = functools.cache(why_not)
