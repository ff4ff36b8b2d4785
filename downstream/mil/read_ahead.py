"""Items made ahead in a thread, in their order, so that who takes them need not wait."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

_WAIT_S = 0.1  # between two looks at whether anyone still takes items


def read_ahead(items: Iterable[Item], *, depth: int = 2) -> Generator[Item]:
    """Yield the items of an iterable, which a thread of its own runs through.

    An exception of the iterable is raised in place of the item that it could not make, with its
    traceback. The thread ends with the generator, also when it is closed early.

    Args:
        items: run through once, in the thread alone.
        depth: number of finished items that wait to be taken.

    >>> list(read_ahead(number**2 for number in range(4)))
    [0, 1, 4, 9]
    """
    ready: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=_WAIT_S)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for finished in items:
                put((finished,))
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=work, name="slidelake-bags", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stopped.set()
        thread.join()
