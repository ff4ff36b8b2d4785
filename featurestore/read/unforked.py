"""Readers can be sent to spawned processes; in forked processes, where Lance hangs, they raise."""

import os
from typing import Any

from featurestore.errors import LakeError


class Unforked:
    """A base of what holds a lake open."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def check_process(self) -> None:
        """Raise LakeError in a process that was forked after this object was created."""
        if os.getpid() != self._process:
            msg = (
                "a lake can't be read in a forked process, where Lance hangs: give the DataLoader "
                "multiprocessing_context='spawn', or read in this process with num_workers=0"
            )
            raise LakeError(msg)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Only a process that does not share its memory with the first gets here: a fork does not.
        self.__dict__.update(state, _process=os.getpid())
