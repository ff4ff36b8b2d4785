"""A parallel map over Ray tasks, for work that is one function per slide and not a pipeline.

Ray Data streams blocks and resizes pools; a plain task costs 1 ms, keeps the caller's exception
types, and its result is yielded with the index of its item as soon as it is finished.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cluster.errors import ClusterError
from cluster.extensions import Extension, load_extensions, loaded_extensions
from cluster.placement import WorkerSettings, node_shapes, place, room

T = TypeVar("T")
R = TypeVar("R")

#: An autoscaled cluster may have room for millions; their tasks are not all submitted at once.
MOST_PLACES = 5000

_COLOUR = re.compile(r"\x1b\[\d+m")


def ray_map(
    fn: Callable[[T], R],
    items: Iterable[T],
    *,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_in_flight: int | None = None,
) -> Iterator[tuple[int, R]]:
    """Run `fn(item)` as Ray tasks; yield `(index, result)` in the order in which they finish.

    Items are read from the iterable as places become free, so it may be long or endless. Inside a
    task OMP_NUM_THREADS and torch's threads are `num_cpus` rounded down, at least 1. A task whose
    worker dies is tried again by Ray (3 times); a task that raises is not.

    Args:
        fn: a function that Ray can pickle. Its module must be importable by the workers.
        items: arguments of the function, one task each.
        num_cpus: CPUs that each task reserves.
        num_gpus: GPUs that each task reserves, in part if several share one.
        max_in_flight: tasks submitted at a time; None is twice as many as the cluster can run at
            once, so that a free worker has the next task waiting.

    Raises:
        ClusterError: Ray is not initialised, a number is not positive, or no node holds a task.
        BaseException: the first exception a task raised, with its own type, the worker's traceback
            in a note; the tasks that have not finished are cancelled. They are also cancelled when
            the iterator is closed early.
    """
    import ray

    _check(num_cpus, max_in_flight)
    places = _places(num_cpus, num_gpus)
    threads = max(1, math.floor(num_cpus))
    task = ray.remote(_call).options(num_cpus=num_cpus, num_gpus=num_gpus)
    fn_ref, extensions = ray.put(fn), loaded_extensions()
    limit = max_in_flight or 2 * min(places, MOST_PLACES)
    queue = enumerate(items)
    flying: dict[Any, int] = {}
    try:
        while True:
            for index, argument in queue:
                flying[task.remote(fn_ref, argument, threads, extensions)] = index
                if len(flying) >= limit:
                    break
            if not flying:
                return
            ready, _ = ray.wait(list(flying), num_returns=1)
            yield flying.pop(ready[0]), _task_result(ready[0])
    finally:
        for ref in flying:
            ray.cancel(ref)


def _check(num_cpus: float, max_in_flight: int | None) -> None:
    import ray

    if not ray.is_initialized():
        msg = "ray_map was called without Ray; call it inside `with ray_session():`"
        raise ClusterError(msg)
    if num_cpus <= 0 or (max_in_flight is not None and max_in_flight < 1):
        msg = (
            f"num_cpus={num_cpus}, max_in_flight={max_in_flight}: num_cpus must be above 0 and "
            "max_in_flight at least 1, or None for twice the cluster's CPUs"
        )
        raise ClusterError(msg)


def _places(num_cpus: float, num_gpus: float) -> int:
    """Return how many tasks the cluster runs at once.

    Raises:
        ClusterError: no node holds such a task, which Ray would wait for without a word.
    """
    settings = WorkerSettings(cpus_per_worker=num_cpus, gpus_per_worker=num_gpus)
    shapes = node_shapes()
    place(settings, shapes, most=1)
    return room(shapes, num_cpus, num_gpus)


def _call(fn: Callable[[T], R], argument: T, threads: int, extensions: tuple[Extension, ...]) -> R:
    """Call a function in a worker, which may have run a task with another number of CPUs before."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    load_extensions(extensions)
    return fn(argument)


def _task_result(ref: Any) -> Any:  # noqa: ANN401 - a Ray reference is untyped
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as err:
        # Ray raises a class that inherits from both; callers want what the function raised.
        if isinstance(err.cause, Exception):
            err.cause.add_note(_COLOUR.sub("", str(err)))
            raise err.cause from None
        raise
