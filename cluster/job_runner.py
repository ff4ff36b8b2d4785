"""Runs a job's command where it may write, and prints what it has written into the job's log.

A command with an output (`--out table.csv`) runs in a new directory, which is removed at its end,
also where the command fails. It is a program of its own:

    python -m cluster.job_runner table.csv -- python -m slidelake runs LAKE --out table.csv
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.job_outputs import MARK
from cluster.job_package import FOLDER

#: Most bytes that come back through a log, compressed.
MOST_BYTES = 50_000_000

_LINE_BYTES = 9_000  # Ray passes a log on in pieces of up to 20,000 characters


def run_command(names: Sequence[str], words: Sequence[str]) -> int:
    """Run a command in a directory of its own, then print the outputs that it has written there.

    Args:
        names: files or folders that the command may write, relative to its working directory.
        words: program and arguments of the command.

    Returns:
        The command's exit code; 1 where an output is too large to come back.
    """
    submitted = Path(FOLDER).absolute()
    with tempfile.TemporaryDirectory(prefix="slidelake-job-") as directory:
        if submitted.is_dir():
            Path(directory, FOLDER).symlink_to(submitted)
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        environ = {**os.environ, "PYTHONPATH": path}
        with subprocess.Popen(list(words), cwd=directory, env=environ) as command:
            signal.signal(signal.SIGTERM, lambda number, _: command.send_signal(number))
            code = command.wait()
        too_large = [name for name in names if not _print_output(Path(directory), name)]
    for name in too_large:
        text = (
            f"slidelake: {name} is larger than {MOST_BYTES / 1e6:g} MB compressed, and was not "
            "brought back from the job; run this command where you are, on the lake's URL"
        )
        print(text, file=sys.stderr, flush=True)
    return code or int(bool(too_large))


def _print_output(directory: Path, name: str) -> bool:
    """Print a file or folder as lines for the log; return False where it is too large."""
    path = directory / name
    if not path.exists():
        return True
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", dereference=True) as archive:
        archive.add(path, arcname=name)
    content = packed.getvalue()
    if len(content) > MOST_BYTES:
        return False
    parts = range(0, len(content), _LINE_BYTES)
    last = {"parts": len(parts), "sha256": hashlib.sha256(content).hexdigest()}
    for number, start in enumerate(parts):
        part = {
            "name": name,
            "part": number,
            "data": base64.b64encode(content[start : start + _LINE_BYTES]).decode(),
            **(last if number == len(parts) - 1 else {}),
        }
        print(f"{MARK}{json.dumps(part)}", flush=True)
    return True


def main(words: Sequence[str]) -> int:
    """Run `NAME... -- COMMAND`."""
    at = list(words).index("--")
    with contextlib.suppress(KeyboardInterrupt):
        return run_command(words[:at], words[at + 1 :])
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
