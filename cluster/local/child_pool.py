"""Child processes that take jobs from one list, so that a Ray is not needed for one machine.

Starting a private Ray takes 8 s and its first worker 6 s more; a child is there in half a second.
Each has one thread here that hands it a job after the other. What a child dies of is that job's.
"""

import contextlib
import os
import queue
import threading
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

from cluster.local.child_process import TRIES, DiedError, Isolated

#: Finished jobs for each child that wait to be taken: more would only fill memory.
AHEAD = 2
Results = queue.Queue[tuple[int, bytes | DiedError] | BaseException | None]


class ChildPool:
    """Some child processes, each of which calls one function with a job after the other.

    Args:
        function: place of the function, as `package.module:name`.
        workers: number of processes.
        environ: further variables of the processes.
        tries: number of processes that may die of one job.
    """

    def __init__(
        self,
        function: str,
        workers: int,
        *,
        environ: Mapping[str, str] | None = None,
        tries: int = TRIES,
    ) -> None:
        is_quiet = not os.environ.get("SLIDELAKE_DEBUG")
        self._children = [
            Isolated(function, environ=environ, tries=tries, is_quiet=is_quiet)
            for _ in range(workers)
        ]
        self._stopped = threading.Event()

    def map(
        self, jobs: Iterable[tuple[bytes, float | None]]
    ) -> Generator[tuple[int, bytes | DiedError]]:
        """Yield the number of each job with its pickled result, in the order in which they end.

        Jobs are read from the iterable as children become free. All children end with the
        iterator, also when it is closed early.

        Args:
            jobs: pickled arguments, and the seconds that they may take (None: any).
        """
        waiting, lock = enumerate(jobs), threading.Lock()
        results: Results = queue.Queue(AHEAD * len(self._children))

        def work(child: Isolated) -> None:
            try:
                while not self._stopped.is_set():
                    with lock:
                        number, (arguments, limit_s) = next(waiting, (-1, (b"", None)))
                    if number < 0:
                        break
                    results.put((number, _outcome(child, arguments, limit_s)))
                results.put(None)
            except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
                results.put(error)

        threads = [
            threading.Thread(target=work, args=(child,), daemon=True) for child in self._children
        ]
        for thread in threads:
            thread.start()
        try:
            left = len(threads)
            while left:
                answer = results.get()
                if answer is None:
                    left -= 1
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    yield answer
        finally:
            self._end(threads, results)

    def _end(self, threads: list[threading.Thread], results: Results) -> None:
        """End the children and the threads, whatever they do."""
        self._stopped.set()
        for child in self._children:
            child.stop()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.05)
                with contextlib.suppress(queue.Empty):  # it may wait for room
                    results.get_nowait()
        for child in self._children:
            child.close()


def _outcome(child: Isolated, arguments: bytes, limit_s: float | None) -> bytes | DiedError:
    try:
        return child.call_pickled(arguments, limit_s=limit_s)
    except DiedError as error:
        return error


def usable_cores() -> int:
    """Return how many cores this process may use: the machine's, a binding's or a container's.

    >>> usable_cores() >= 1
    True
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        most, _, period = quota.read_text().partition(" ")
        if most.strip().isdigit() and period.strip().isdigit():
            cores = min(cores, max(1, round(int(most) / int(period))))
    return max(1, cores)
