"""A parallel map over child processes: what `ray_map` does, on one machine and without a Ray."""

import contextlib
import importlib
import math
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from cluster.errors import ClusterError
from cluster.extensions import Extension, load_extensions, loaded_extensions
from cluster.local.child_pool import ChildPool, usable_cores
from cluster.local.child_process import DiedError
from cluster.ray_placement import NodeShape, WorkerSettings, machine_shapes, place
from cluster.ray_session import METRICS_PORT, joins_cluster

T = TypeVar("T")
R = TypeVar("R")

#: Processes that may die of one item; Ray tries a task as often.
TRIES = 4


def local_workers(
    address: str | None, *, num_cpus: float = 1.0, num_gpus: float = 0.0, most: int | None = None
) -> int:
    """Return how many workers of this size this machine has; 0 where a Ray is to run them.

    A Ray runs them where one is up or named (an address, "local" for a private one, or
    RAY_ADDRESS), where its metrics are asked for (SLIDELAKE_METRICS_PORT), and where they need
    GPUs, which it shares out.

    Args:
        address: address of a Ray, or None.
        num_cpus: cores that each worker needs.
        num_gpus: GPUs that it needs.
        most: cores to use at most; None for all.

    Raises:
        ClusterError: the machine has no room for one.
    """
    asks_for_ray = any(os.environ.get(name) for name in ("RAY_ADDRESS", METRICS_PORT))
    if address or asks_for_ray or joins_cluster(address) or num_gpus:
        return 0
    cores = float(min(most or usable_cores(), usable_cores()))
    gpus = machine_shapes()[0].gpus
    settings = WorkerSettings(device="cpu", cpus_per_worker=num_cpus)
    place(settings, [NodeShape(cpus=cores, gpus=gpus, count=1)], most=1)
    return max(1, math.floor(cores / num_cpus + 1e-9))


def local_map(
    fn: Callable[[T], R], items: Sequence[T], *, workers: int, num_cpus: float = 1.0
) -> Iterator[tuple[int, R]]:
    """Run `fn(item)` in child processes; yield `(index, result)` in the order in which they end.

    OMP_NUM_THREADS and torch's threads are `num_cpus` rounded down, at least 1. An item whose
    process dies is tried again, 3 times; one that raises is not.

    Args:
        fn: function of a module that can be imported.
        items: arguments of the function.
        workers: number of processes.
        num_cpus: cores of each.

    Raises:
        ClusterError: a process died each time.
        BaseException: the first exception that the function raised, with the child's traceback in
            a note; the items that have not ended are given up.
    """
    threads, extensions = max(1, math.floor(num_cpus)), loaded_extensions()
    pool = ChildPool(
        f"{__name__}:called",
        min(workers, max(1, len(items))),
        environ={"OMP_NUM_THREADS": str(threads)},
        tries=TRIES,
    )
    with contextlib.closing(pool.map(_jobs(fn, items, threads, extensions))) as results:
        for index, answer in results:
            if isinstance(answer, DiedError):
                msg = f"a worker {answer}; it may need more memory than there is"
                raise ClusterError(msg)
            yield index, _result(pickle.loads(answer))


def _jobs(
    fn: Callable[[T], R], items: Iterable[T], threads: int, extensions: tuple[Extension, ...]
) -> Iterator[tuple[bytes, float | None]]:
    place_of_fn = f"{fn.__module__}:{fn.__qualname__}"
    for argument in items:  # in bytes of its own: it may need what an extension defines first
        yield pickle.dumps((place_of_fn, pickle.dumps(argument), threads, extensions)), None


def called(
    place_of_fn: str, argument: bytes, threads: int, extensions: tuple[Extension, ...]
) -> tuple[bool, Any, str]:
    """Call a function in a child; return whether it returned, its result or error, and a trace."""
    load_extensions(extensions)
    module, _, name = place_of_fn.partition(":")
    function = getattr(importlib.import_module(module), name)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        return True, function(pickle.loads(argument)), ""
    except Exception as error:  # noqa: BLE001 - the caller raises it
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - an error with arguments that do not travel
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return False, error, trace


def _result(answer: tuple[bool, Any, str]) -> Any:  # noqa: ANN401 - the function's result
    is_returned, outcome, trace = answer
    if not is_returned:
        outcome.add_note(trace)
        raise outcome
    return outcome
