"""Processes that are killed at work: a driver, one of its workers, or the whole group."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.conftest import ROOT

PATIENCE_S = 300.0


def started(
    command: Sequence[str], *, log: Path | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A Python process (`-m module ...` or `-c code ...`) in a session and group of its own.

    Args:
        command: what Python is to run.
        log: file that its stderr is added to; None leaves it out.
        environ: variables for it beside those of this process.
    """
    with (log or Path(os.devnull)).open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **(environ or {})},
        )


def wait_for_work(process: subprocess.Popen[bytes], stamp: Callable[[], object]) -> bool:
    """Wait until what `stamp` returns is another than now; whether the process is at work then."""
    before, deadline = stamp(), time.monotonic() + PATIENCE_S
    while stamp() == before and process.poll() is None:
        assert time.monotonic() < deadline, "the process never began its work"
        time.sleep(0.02)
    return process.poll() is None


def kill(process: subprocess.Popen[bytes], kind: str, worker: bytes = b"ray::") -> bool:
    """Kill a process, one of its workers, or its group; wait for the end of what is left.

    Args:
        process: from `started`.
        kind: "driver" leaves its children to notice; "worker" leaves the driver to go on, which is
            waited for; "group" takes all at once.
        worker: what the command of a worker holds.

    Returns:
        Whether there was something to kill.
    """
    running = process.poll() is None
    if kind == "worker":
        workers = [pid for pid in members(process.pid) if worker in command_of(pid)]
        for pid in workers[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE_S)
        running = running and bool(workers)
    elif kind == "driver":
        process.kill()
    end(process)
    return running


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process's session: also what the death of its driver did not end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pid in members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """The processes of a session that is named by its first process."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(path.name)) == session:
                pids.append(int(path.name))
    return pids


def children(parent: int) -> list[int]:
    """The processes that a process has started and that are not gone."""
    pids: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold blanks; state and parent follow it.
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                pids.append(int(path.parent.name))
    return pids


def descendants(parent: int) -> list[int]:
    """The children of a process, and theirs."""
    return [pid for child in children(parent) for pid in (child, *descendants(child))]


def command_of(pid: int) -> bytes:
    """The command line of a process; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
