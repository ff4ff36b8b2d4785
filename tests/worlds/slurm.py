"""SLURM on this machine: Debian's slurmctld, and a slurmd for each of two nodes in namespaces.

Each node has a network, a host name and process numbers of its own, so that what stops "all of my
Ray on this node" stops nothing else here. Needs root, `slurmctld`, `slurmd` and `munged`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare")
NODES = ("node1", "node2")
ADDRESSES = ("198.18.77.1", "198.18.77.2")
UP_S = 40.0

CONF = """
ClusterName=slidelake
SlurmctldHost=node1({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
InactiveLimit=0
MailProg=/bin/true
KillWait=10
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeAddr={address} NodeHostname={name} CPUs=2 RealMemory=4000 State=UNKNOWN"


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A running SLURM.

    Attributes:
        folder: its configuration, logs and state.
        space: name of the first node's network.
    """

    folder: Path
    space: str

    def run(
        self, *words: str, environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of SLURM's programs as on the first node."""
        own = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        return subprocess.run(
            ["ip", "netns", "exec", self.space, *words],
            env={**os.environ, **own, **(environ or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def sbatch(self, script: str, *words: str, options: Sequence[str] = ()) -> tuple[int, str]:
        """Run a script of cluster/slurm to its end; return its exit code and what it printed."""
        log = self.folder / f"{script}-{time.monotonic_ns()}.log"
        python = Path(sys.executable).parent
        environ = {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SLIDELAKE_PROGRESS": "plain",
        }
        path = str(ROOT / "cluster" / "slurm" / f"{script}.sbatch")
        done = self.run(
            "sbatch", "--wait", f"--output={log}", "--time=5", *options, path, *words,
            environ=environ,
        )  # fmt: skip
        printed = log.read_text() if log.exists() else ""
        return done.returncode, printed + done.stderr

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)


def missing() -> str:
    """Return why SLURM can't be started here; empty if it can."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "SLURM in namespaces needs root"
    return f"not here: {', '.join(programs)}" if programs else ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """Start SLURM with two nodes; stop all of it at the end."""
    spaces = [f"slurm-{os.getpid()}-{number}" for number in range(len(NODES))]
    with contextlib.ExitStack() as stack:
        _connect(spaces, stack)
        _configure(folder)
        environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
                 f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
                 f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"]  # fmt: skip
        _start(munge, environ, folder, stack)
        for number, (name, space) in enumerate(zip(NODES, spaces, strict=True)):
            daemons = ["exec slurmd -D"] if number else ["slurmctld -D &", "exec slurmd -D"]
            inner = f"hostname {name}; {' '.join(daemons)}"
            words = ["ip", "netns", "exec", space, "unshare", "--pid", "--fork", "--mount-proc",
                     "--uts", "--kill-child", "sh", "-c", inner]  # fmt: skip
            _start(words, environ, folder, stack)
        slurm = Slurm(folder=folder, space=spaces[0])
        _wait(slurm)
        yield slurm


def _connect(spaces: Sequence[str], stack: contextlib.ExitStack) -> None:
    """Make two networks with a cable between them."""
    for space in spaces:
        subprocess.run(["ip", "netns", "add", space], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
    first, second = spaces
    ends = ["ip", "link", "add", "eth0", "netns", first, "type", "veth"]
    subprocess.run([*ends, "peer", "name", "eth0", "netns", second], check=True)
    for space, address in zip(spaces, ADDRESSES, strict=True):
        for words in (
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            subprocess.run(["ip", "-n", space, *words], check=True)


def _configure(folder: Path) -> None:
    nodes = [
        NODE.format(name=name, address=address)
        for name, address in zip(NODES, ADDRESSES, strict=True)
    ]
    text = CONF.format(folder=folder, address=ADDRESSES[0], nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(text)
    # nothing here uses cgroups, which a namespace can't mount; without this slurmd looks for them
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    (folder / "state").mkdir()
    for name in NODES:
        (folder / f"spool-{name}").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)


def _start(
    words: Sequence[str], environ: dict[str, str], folder: Path, stack: contextlib.ExitStack
) -> None:
    output = stack.enter_context((folder / f"{words[0]}-{time.monotonic_ns()}.log").open("w"))
    process = subprocess.Popen(list(words), env=environ, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _wait(slurm: Slurm) -> None:
    end = time.monotonic() + UP_S
    while time.monotonic() < end:
        states = slurm.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()
        if states == ["idle"] * len(NODES):
            return
        time.sleep(0.5)
    msg = f"SLURM did not come up: {slurm.run('sinfo', '--Node', '--long')}\n{slurm.logs()}"
    raise TimeoutError(msg)
