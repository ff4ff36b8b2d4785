"""Requests to a bucket side by side: the time of a request is mostly that of its way.

One pool of threads for a whole process: as many pools as there are readers would open as many
connections. A local file is read in place, where threads would only cost.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from featurestore.storage.store import Store

AT_ONCE = 16

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

_inside = threading.local()


def side_by_side(
    store: Store, work: Callable[[Item], Outcome], items: Iterable[Item]
) -> list[Outcome]:
    """Return the outcomes of some work on each item, in the order of the items.

    Within the work it runs one item after the other, so that no thread waits for a thread that it
    keeps busy itself.

    Args:
        store: the files that are read; of a local lake one item is worked on after the other.
        work: called with each item; the first error is raised.
        items: the items.
    """
    waiting = list(items)
    if store.is_local or len(waiting) < 2 or getattr(_inside, "pool", False):
        return [work(one) for one in waiting]
    return list(_pool(os.getpid()).map(functools.partial(_marked, work), waiting))


def _marked(work: Callable[[Item], Outcome], argument: Item) -> Outcome:
    _inside.pool = True
    return work(argument)


@functools.lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """Return the pool of this process: a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="slidelake-requests")
