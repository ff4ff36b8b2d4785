"""The call that `--on-failure` makes when a job fails: a command with JSON on stdin, or a POST.

It has 30 s, never fails the job, starts no shell, and gets no secrets: who is told that a job has
failed is often a chat room. A job that is killed (SIGKILL, out of memory, a lost machine) can't
call anybody; for that there are the metrics, and `slidelake status`.
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ClusterError

TIMEOUT_S = 30.0
_SCHEMES = ("http", "https")

log = logging.getLogger(__name__)


def checked_hook(target: str) -> str:
    """Return the target of a hook if it can be called: a job of days must not find out at its end.

    Raises:
        ClusterError: it is a URL of no web server, or no program of this machine.
    """
    if _is_url(target):
        parts = urlsplit(target)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            msg = (
                f"--on-failure: {parts.scheme}:// can't be called; give an http:// or https:// URL "
                "with a host, or a command"
            )
            raise ClusterError(msg)
        return target
    words = _words(target)
    if not words or shutil.which(words[0]) is None:
        program = words[0] if words else ""
        msg = (
            f"--on-failure: '{program}' is no program that can be started here; give a command as "
            "'notify --to me', without pipes or other parts of a shell, or a URL"
        )
        raise ClusterError(msg)
    return target


def call_hook(target: str, report: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> bool:
    """Call the target with a report, and return whether it took it; nothing is raised.

    Args:
        target: an http(s) URL, which gets a POST, or a command, which gets the report on stdin.
        report: facts of the failure, for JSON.
        timeout_s: seconds after which the call is given up.
    """
    body = json.dumps(report, default=str).encode()
    call = _post if _is_url(target) else _run
    faults: list[str] = []
    # A server that sends a byte a minute outlasts any timeout of a socket.
    caller = threading.Thread(target=_called, args=(call, target, body, timeout_s, faults))
    caller.daemon = True
    caller.start()
    caller.join(timeout_s + 1.0)
    if caller.is_alive():
        faults.append(f"no end after {timeout_s:g} s")
    if faults:
        log.warning("--on-failure: %s failed: %s", _shown(target), faults[0])
    return not faults


def _called(
    call: Any,  # noqa: ANN401 - one of the two functions below
    target: str,
    body: bytes,
    timeout_s: float,
    faults: list[str],
) -> None:
    try:
        call(target, body, timeout_s)
    except Exception as error:  # noqa: BLE001 - the job has its own failure to report
        # The error of a URL may hold all of the URL, whose path is a secret in many chat services.
        faults.append(type(error).__name__ if _is_url(target) else str(error))


def _post(url: str, body: bytes, timeout_s: float) -> None:
    from cluster.watch.web_post import post  # urllib takes a while to import, for this alone

    post(url, body, timeout_s)


def _run(command: str, body: bytes, timeout_s: float) -> None:
    """Run a command with the report on stdin; what it prints is dropped."""
    process = subprocess.Popen(
        _words(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.communicate(body, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.wait()
        msg = f"no end after {timeout_s:g} s"
        raise TimeoutError(msg) from None
    if process.returncode:
        msg = f"exit code {process.returncode}"
        raise ChildProcessError(msg)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        msg = f"--on-failure: the command can't be split into words ({error})"
        raise ClusterError(msg) from error


def _is_url(target: str) -> bool:
    return "://" in target.partition(" ")[0]


def _shown(target: str) -> str:
    """Return the program, or the server alone: the rest may be a secret."""
    if _is_url(target):
        return f"{urlsplit(target).scheme}://{urlsplit(target).hostname}"
    return _words(target)[0]
