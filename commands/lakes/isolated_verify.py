"""`verify` in a child process: a file so damaged that Lance ends its process costs only the child.

The child shows its own progress, writes the name of what it reads next into a file before it reads
it, and the verdict as JSON at the end. What Rust prints on a panic stays in the child.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore import Verdict

ANSWER, READING = "answer.json", "reading"
#: Signals by which a process ends itself; others come from outside, as where memory is short.
OWN_SIGNALS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}


def verify_isolated(uri: str, *, at: str | None = None, sample: float = 1.0) -> "Verdict":
    """Check a lake in a child process.

    Args:
        uri: folder or URL of the lake.
        at: version or snapshot; the newest if None.
        sample: share of slides that are read in full.

    Returns:
        The verdict. If a damaged table ended the child process, the verdict names that table.

    Raises:
        LakeError: the lake can't be checked, as in `check_lake`.
        RuntimeError: any other error of the child, with its name and text.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = json.dumps({"uri": uri, "at": at, "sample": sample, "folder": folder})
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", "commands.lakes.isolated_verify", request],
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        answer = Path(folder, ANSWER)
        if not answer.exists():
            return _verdict_of_dead_child(Path(folder, READING), done.returncode)
        return _verdict(json.loads(answer.read_text()))


def _verdict(answer: dict[str, Any]) -> "Verdict":
    from featurestore import Damage, Verdict, errors

    if "error" in answer:
        kind = getattr(errors, answer["error"], None)
        raise (
            RuntimeError(f"{answer['error']}: {answer['text']}")
            if kind is None
            else kind(answer["text"])
        )
    damage = [Damage(**one) for one in answer.pop("damage")]
    return Verdict(**answer, damage=damage)


def _verdict_of_dead_child(reading: Path, code: int) -> "Verdict":
    """Return the verdict on a child process that died: its last table is damaged.

    Raises:
        AccessError: the process was ended from outside, or before it read anything.
    """
    from featurestore import AccessError, Damage, Verdict

    if not reading.exists():
        msg = f"the check ended with code {code} before it read anything; run it again"
        raise AccessError(msg)
    if code < 0 and -code not in OWN_SIGNALS:
        msg = (
            f"the check was ended by {signal.Signals(-code).name} while it read "
            f"{reading.read_text()}, as where memory is short; that is no damage: run it again"
        )
        raise AccessError(msg)

    path = reading.read_text()
    damage = f"table {path}: reading it ended the process that read it (code {code})"
    return Verdict(version=0, damage=[Damage(description=damage, part="table", path=path)])


# ---------------------------------------------------------------------- the child


@dataclass
class _Bar:
    """A progress bar that starts once the number of slides is known."""

    stack: contextlib.ExitStack
    advance: Callable[[int], None] = lambda _: None

    def start(self, slides: int) -> None:
        from cluster import progress

        bar = self.stack.enter_context(progress("verify", total=slides, unit="slides"))
        self.advance = bar.advance


@contextlib.contextmanager
def _without_rust_messages() -> Iterator[None]:
    """Keep Python's stderr, and drop the text that libraries print to descriptor 2."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    sys.stderr = os.fdopen(kept, "w", buffering=1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    yield


def main(request: str) -> None:
    """Run the check that a request describes, and write its answer."""
    from featurestore.keep.verify.lance_checking import check_lake

    check_request = json.loads(request)
    folder = Path(check_request["folder"])
    try:
        with _without_rust_messages(), contextlib.ExitStack() as stack:
            bar = _Bar(stack)
            verdict = check_lake(
                check_request["uri"],
                at=check_request["at"],
                sample=check_request["sample"],
                on_total=bar.start,
                on_slide=lambda count: bar.advance(count),
                on_table=lambda path: _write(folder / READING, path),
            )
        answer = asdict(verdict)
    except Exception as error:  # noqa: BLE001 - it is raised again by the parent
        answer = {"error": type(error).__name__, "text": str(error)}
    _write(folder / ANSWER, json.dumps(answer))


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    main(sys.argv[1])
