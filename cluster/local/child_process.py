"""Work in a process of its own: a decoder that crashes or hangs takes nothing else with it.

The process lives as long as its owner and takes one job after the other, so starting it (a second)
is paid once. It ends when its owner does, also by kill -9.
"""

import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

TRIES = 2
START = f"from {__name__} import main; main()"
STOPPED = "was stopped"


class DiedError(Exception):
    """The process died or took too long each time; the text states how."""


class Isolated:
    """A function that is called in another process.

    Args:
        function: place of the function, as `package.module:name`; arguments and result are pickled.
        environ: further variables of the process.
        tries: number of processes that may die of one call.
        is_quiet: whether what it prints is dropped.
    """

    def __init__(
        self,
        function: str,
        *,
        environ: Mapping[str, str] | None = None,
        tries: int = TRIES,
        is_quiet: bool = False,
    ) -> None:
        self._function, self._environ = function, dict(environ or {})
        self._tries, self._is_quiet = tries, is_quiet
        self._is_stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._to: Connection | None = None
        self._back: Connection | None = None

    def call(self, *args: object, limit_s: float) -> Any:  # noqa: ANN401 - the function's result
        """Return the function's result; start a process that died again for a second try.

        Args:
            args: arguments of the function.
            limit_s: seconds that one try may take.

        Raises:
            DiedError: the process died, or took longer, each time.
        """
        return pickle.loads(self.call_pickled(pickle.dumps(args), limit_s=limit_s))

    def call_pickled(self, args: bytes, *, limit_s: float | None) -> bytes:
        """Return the pickled result for pickled arguments, which needs no import here.

        Args:
            args: the arguments, pickled.
            limit_s: seconds that one try may take; None for any.

        Raises:
            DiedError: the process died, or took longer, each time.
        """
        why = ""
        for _ in range(self._tries):
            if self._is_stopped:
                raise DiedError(STOPPED)
            to, back = self._started()
            try:
                to.send_bytes(args)
                if back.poll(limit_s):
                    return back.recv_bytes()
                why = f"took longer than {limit_s:.0f} s"
            except (EOFError, OSError):
                why = f"died of {self._cause()}"
            self.close()
        msg = f"{why}, {self._tries} times"
        raise DiedError(msg)

    def _started(self) -> tuple[Connection, Connection]:
        if self._to and self._back and self._process and self._process.poll() is None:
            return self._to, self._back
        self.close()
        (read, to), (back, write) = os.pipe(), os.pipe()
        # Not by -m: the door of the package imports this module, of which runpy would warn.
        command = [sys.executable, "-c", START, self._function, str(read), str(write)]
        path = os.pathsep.join(filter(None, sys.path))
        printed = subprocess.DEVNULL if self._is_quiet else None
        self._process = subprocess.Popen(
            command,
            pass_fds=(read, write),
            env={**os.environ, "PYTHONPATH": path, **self._environ},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
        )
        os.close(read)
        os.close(write)
        if self._is_stopped:  # by another thread, meanwhile
            self._process.kill()
        self._to, self._back = Connection(to, readable=False), Connection(back, writable=False)
        return self._to, self._back

    def _cause(self) -> str:
        if self._process is None:
            return "an unknown cause"
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """Kill the process from another thread; the call in the owner's thread then ends."""
        self._is_stopped = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for end in (self._to, self._back):
            if end is not None:
                end.close()
        self._process = self._to = self._back = None


def _serve(function: Callable[..., Any], jobs: Connection, result_pipe: Connection) -> None:
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                waiting.put(jobs.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # the owner is gone, and what is being made is of no use

    threading.Thread(target=listen, daemon=True).start()
    while True:
        result_pipe.send_bytes(pickle.dumps(function(*pickle.loads(waiting.get()))))


def _imported(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def main() -> None:
    """Serve the function that the command line names, by the pipes that it names."""
    _, place, jobs, results = sys.argv
    _serve(
        _imported(place),
        Connection(int(jobs), writable=False),
        Connection(int(results), readable=False),
    )
