"""Files that a job's command writes, brought back to whoever sent the job, through its log.

A Ray job has a log and no other way back. What `cluster.job_runner` prints into it is taken out
again by `submit` and `slidelake jobs logs`.
"""

import base64
import binascii
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cluster.errors import ClusterError

#: Start of a line of the log that holds a part of an output.
MARK = "slidelake-output "


class OutputLines:
    """Takes a job's outputs out of the lines of its log.

    Args:
        places: name of an output -> path on this machine to which it is written. An output without
            a place goes into `folder`.
        folder: folder for outputs without a place; None leaves them in the log.

    Attributes:
        written: paths of the outputs that were written.
        left: names of the outputs that the log has and that have no place.
    """

    def __init__(self, places: Mapping[str, Path], folder: Path | None = None) -> None:
        self.places, self.folder = places, folder
        self.written: list[Path] = []
        self.left: list[str] = []
        self._parts: dict[str, list[bytes]] = {}

    def takes(self, line: str) -> bool:
        """Return whether a line of the log is part of an output; the last part writes it.

        Raises:
            ClusterError: parts are missing or damaged, or the output can't be written.
        """
        if not line.startswith(MARK):
            return False
        try:
            part = json.loads(line.removeprefix(MARK))
            name = str(part["name"])
            self._parts.setdefault(name, []).append(base64.b64decode(part["data"]))
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            msg = f"a line of the job's log with a part of an output is damaged: {error}"
            raise ClusterError(msg) from error
        if "sha256" in part:
            self._write(name, b"".join(self._parts.pop(name)), str(part["sha256"]))
        return True

    def _write(self, name: str, content: bytes, sha256: str) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            msg = f"{name} did not come back whole from the job's log; read it again"
            raise ClusterError(msg)
        place = self.places.get(name)
        plain = PurePosixPath(name).name
        if place is None and self.folder is not None and plain not in {"", ".."}:
            place = self.folder / plain
        if place is None:
            self.left.append(name)
            return
        try:
            _unpack(content, place)
        except (OSError, tarfile.TarError) as error:
            msg = f"{name} of the job can't be written to {place}: {error}"
            raise ClusterError(msg) from error
        self.written.append(place)


def _unpack(content: bytes, place: Path) -> None:
    """Write the one file or folder of an archive to a place; nothing lands outside of it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive,
        tempfile.TemporaryDirectory(prefix=".slidelake-", dir=place.parent) as directory,
    ):
        archive.extractall(directory, filter="data")
        (unpacked,) = Path(directory).iterdir()
        if not unpacked.is_dir():
            unpacked.replace(place)
            return
        for source in sorted(unpacked.rglob("*")):
            target = place / source.relative_to(unpacked)
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
