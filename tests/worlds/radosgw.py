"""A real S3 server on loopback: Ceph's radosgw over one monitor and one OSD in memory.

A process of its own, run as `python tests/worlds/radosgw.py [ADDRESS] [PORT]`: it prints one line
of JSON, with the URL and the keys of two users, and ends when its stdin is closed. It owns all that
it starts: daemons are in the foreground and die with it, SIGKILL included, and what a killed one
leaves in the temporary folder is removed by the next start. The monitor and the OSD listen on
127.0.0.1 without authentication.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

#: Programs that are looked for, and the Debian packages that have them.
PROGRAMS = {"radosgw": "radosgw", "ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd"}
LOOPBACK = "127.0.0.1"
PREFIX = "slidelake-radosgw-"
LOCK = "lock"
PATIENCE_S = 90.0
CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
public addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon max pg per osd = 2000
mon data avail crit = 1
osd class load list = *
osd class default list = *
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
[mon.a]
mon data = {folder}/mon
mon addr = 127.0.0.1:{monitor}
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
[client.rgw]
rgw frontends = beast endpoint={address}:{port} tcp_nodelay=1
rgw data = {folder}/rgw
rgw dns name = {address}
rgw thread pool size = 32
rgw enable usage log = false
rgw override bucket index max shards = 1
"""


def missing_packages() -> list[str]:
    """Return the Debian packages that the server needs and that are not installed."""
    return [package for program, package in PROGRAMS.items() if shutil.which(program) is None]


def free_port(address: str) -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as taken:
        taken.bind((address, 0))
        port: int = taken.getsockname()[1]
        return port


def answers(address: str, port: int) -> bool:
    """Whether a server listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    return False


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """Make a temporary folder, locked while this process lives; remove it at the end."""
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Remove the folders of servers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or just being made
            continue
        shutil.rmtree(folder, ignore_errors=True)


class Daemons:
    """The processes of the cluster, each in the foreground and killed with this process.

    Args:
        folder: the folder of configuration, data and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "ceph.conf"
        self._running: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "CEPH_CONF": str(self.config)}

    def run(self, *command: str) -> None:
        """Run a command to its end.

        Raises:
            RuntimeError: it failed, or took too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        with (
            (self.folder / "commands.log").open("ab") as log,
            subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            ) as process,
        ):
            while process.poll() is None:
                try:
                    self._check(command, "commands.log", deadline)
                except RuntimeError:
                    process.kill()
                    raise
                time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(self._trouble(command, "commands.log"))

    def start(self, *command: str) -> None:
        """Start a daemon that the kernel kills when this process ends."""
        log = f"{Path(command[0]).name}.out"
        with (self.folder / log).open("ab") as output:
            self._running.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command, "-f"],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )

    def wait_for_port(self, address: str, port: int) -> None:
        """Wait until a port of the last daemon is open.

        Raises:
            RuntimeError: a daemon ended, or it takes too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not answers(address, port):
            self._check(["port", str(port)], "commands.log", deadline)
            time.sleep(0.1)

    def _check(self, subject: Sequence[str], log: str, deadline: float) -> None:
        """Raise RuntimeError if a daemon ended, or it is too late."""
        for process in self._running:
            if process.poll() is not None:
                assert isinstance(process.args, list)
                command = process.args[3:]
                raise RuntimeError(self._trouble(command, f"{Path(command[0]).name}.out"))
        if time.monotonic() > deadline:
            raise RuntimeError(self._trouble(subject, log))

    def stop(self) -> None:
        """Kill all; they have nothing to keep."""
        for process in reversed(self._running):
            process.kill()
        for process in self._running:
            process.wait()

    def _trouble(self, command: Sequence[str], log: str) -> str:
        with contextlib.suppress(OSError):
            last = (self.folder / log).read_text(errors="replace")[-2000:]
            return f"{' '.join(command)} did not come up: {last}"
        return f"{' '.join(command)} did not come up"


def users() -> dict[str, str]:
    """Return new keys for the owner of the buckets and for a user without any rights."""
    names = ("key", "secret", "stranger_key", "stranger_secret")
    return {name: f"test{secrets.token_hex(16 if 'secret' in name else 8)}" for name in names}


def start_cluster(daemons: Daemons, address: str, port: int) -> dict[str, str]:
    """Start the daemons one after the other; return the URL and the keys."""
    folder, fsid, monitor = daemons.folder, str(uuid.uuid4()), free_port(LOOPBACK)
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    daemons.config.write_text(
        CONFIG.format(fsid=fsid, monitor=monitor, folder=folder, address=address, port=port)
    )
    place, monitors = f"[v1:{LOOPBACK}:{monitor}]", str(folder / "monmap")
    daemons.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", place, monitors)
    daemons.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
    daemons.start("ceph-mon", "-i", "a")
    daemons.wait_for_port(LOOPBACK, monitor)
    osd = str(uuid.uuid4())
    daemons.run("ceph", "osd", "new", osd, "0")
    daemons.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    # Without the option it asks the monitor for the configuration, forgets `fsid` over it, and ends
    # in every third start with "wrong fsid", when the monitor's map comes too late.
    daemons.start("ceph-osd", "-i", "0", "--no-mon-config")
    keys = users()
    for uid, prefix in (("owner", ""), ("stranger", "stranger_")):
        daemons.run(
            *("radosgw-admin", "user", "create", f"--uid={uid}", f"--display-name={uid}"),
            *(f"--access-key={keys[f'{prefix}key']}", f"--secret-key={keys[f'{prefix}secret']}"),
        )
    daemons.start("radosgw", "-n", "client.rgw")
    daemons.wait_for_port(address, port)
    return {"url": f"http://{address}:{port}", **keys}


def main(address: str = LOOPBACK, port: str = "") -> None:
    """Serve until stdin is closed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with own_folder() as folder:
        for tries_left in (2, 1, 0):
            daemons = Daemons(folder / str(tries_left))
            try:
                facts = start_cluster(daemons, address, int(port or free_port(address)))
                print(json.dumps(facts), flush=True)
                sys.stdin.read()
                return
            except KeyboardInterrupt:
                return
            except RuntimeError as error:
                print(error, file=sys.stderr)
                if not tries_left:
                    sys.exit(1)
            finally:
                daemons.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
