"""The work that `test_isolated` runs in another process; light, since each process imports it."""

import os
import signal
import time
from pathlib import Path


def work(kind: str, path: str = "") -> str:
    """Do a kind of work in the other process."""
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "once" and not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    if kind == "hang":
        time.sleep(600)
    return f"{kind} in {os.getpid()}"
