"""What `test_isolated` has done in another process; light, since each process imports it."""

import os
import signal
import time
from pathlib import Path


def work(what: str, path: str = "") -> str:
    """Runs in the other process."""
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "once" and not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    return f"{what} in {os.getpid()}"
