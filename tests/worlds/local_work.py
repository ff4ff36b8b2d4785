"""Functions that tests have child processes call."""

import os
import signal
import time
from pathlib import Path


class OwnError(ValueError):
    """An error with a type of its own."""


class StubbornError(Exception):
    """An error that can't be unpickled."""

    def __init__(self, number: int, other: int) -> None:
        super().__init__(number)


def squared(number: int) -> int:
    return number**2


def process(_: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def refuse_three(number: int) -> int:
    if number == 3:
        raise OwnError("no 3")  # noqa: EM101
    return number


def stubborn(number: int) -> None:
    raise StubbornError(number, 1)


def threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def die_once(mark: str) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plain_die_at_two(number: int) -> int:
    if number == 2:
        die(number)
    return number


def slow_after_first(number: int) -> int:
    if number:
        time.sleep(300)
    return os.getpid()
