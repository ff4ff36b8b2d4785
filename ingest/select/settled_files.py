"""Files that have stopped growing, of those that a look at a folder finds.

A copy that is under way looks like a slide that is damaged at its end. No look can tell a copy that
has stalled from a finished one, so a file is left alone until it has been the same for a time.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import NamedTuple

from ingest.remote.remote_files import is_local, open_fs
from ingest.select.listed_files import ListedFile

#: The clocks of a file server and of this machine may differ by less than this.
LONG_AGO_S = 3600.0
#: Slides of several files, by the suffix of the one that stands for it: the rest lies in a folder
#: of its name, or around it.
IN_FOLDER, AROUND = (".mrxs",), (".dcm", ".vms", ".vmu")


class _Look(NamedTuple):
    """What one look saw of a slide: its file, and the number, bytes and time of those with it."""

    file: ListedFile
    companions: tuple[int, int, int]


class SettledFiles:
    """What earlier looks have seen of files, and which of them may still grow.

    Objects of buckets appear whole and are settled at once.

    Args:
        quiet_s: seconds that a file must have been the same.
        clock: function that returns the time in seconds since 1970.
    """

    def __init__(self, quiet_s: float, clock: Callable[[], float] = time.time) -> None:
        self._quiet_s, self._clock = quiet_s, clock
        self._since: dict[str, tuple[_Look, float]] = {}

    def growing(self, files: Mapping[str, ListedFile]) -> set[str]:
        """Return the URIs of files that have changed too lately, to be looked at again.

        A file is settled once two looks, `quiet_s` or more apart, saw the same of it; or at the
        first look if it says that it changed over an hour (or `quiet_s`) ago.
        """
        now_s, growing = self._clock(), set[str]()
        long_ago_s = now_s - max(self._quiet_s, LONG_AGO_S)
        for uri, file in files.items():
            if not is_local(uri) or file.changed_s is None:
                continue  # what can't be looked at fails with its reason
            if file.changed_s <= long_ago_s:
                self._since.pop(uri, None)
                continue
            look = _Look(file, _companions(uri))
            earlier, since_s = self._since.get(uri, (None, now_s))
            if earlier != look:
                self._since[uri] = (look, now_s)
            if earlier != look or now_s - since_s < self._quiet_s:
                growing.add(uri)
        return growing


def _companions(uri: str) -> tuple[int, int, int]:
    """Return number, bytes and newest time of the files that belong to a slide of several."""
    suffix = PurePath(uri).suffix.lower()
    if suffix not in {*IN_FOLDER, *AROUND}:
        return 0, 0, 0
    path = PurePath(open_fs(uri)[1])
    folder = path.with_suffix("") if suffix in IN_FOLDER else path.parent
    try:
        with os.scandir(folder) as entries:
            stats = [entry.stat() for entry in entries if entry.is_file()]
    except OSError:
        return 0, 0, 0
    return len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
