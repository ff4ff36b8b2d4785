"""The report of a command that failed, for `--on-failure`."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

#: Failures that the running command has printed, for its report; None without a hook.
_PRINTED: ContextVar[list[str] | None] = ContextVar("_PRINTED", default=None)
#: Most failures in one report; their number is always whole.
MOST_FAILURES = 20

VARIABLE = "SLIDELAKE_ON_FAILURE"
OnFailureOpt = Annotated[
    str | None,
    typer.Option(
        "--on-failure",
        metavar="CMD|URL",
        envvar=VARIABLE,
        help="Call this when the command fails or some slides did: a command gets a JSON report on "
        "stdin, a URL a POST. It has 30 s and changes nothing about the exit code.",
    ),
]


def note_failures(lines: list[str]) -> None:
    """Keep lines on failures, which a command prints, for its report."""
    if (printed := _PRINTED.get()) is not None:
        printed += lines


@contextlib.contextmanager
def reported_failure(command: str, options: object) -> Iterator[None]:
    """Call the hook of `--on-failure` if the block fails, and let it fail all the same.

    Ctrl-C is no failure.

    Args:
        command: name of the command.
        options: its options; those without `on_failure` have no hook.

    Raises:
        ClusterError: the hook can't be called at all; then the block is not entered.
    """
    target = getattr(options, "on_failure", None)
    if not target:
        yield
        return
    from cluster import checked_hook  # here: a command without a hook starts without it

    checked_hook(target)
    printed: list[str] = []
    before, start = _PRINTED.set(printed), time.time()
    try:
        yield
    except (KeyboardInterrupt, typer.Abort):
        raise
    except BaseException as error:
        if code := _exit_code(error):
            _call(target, command, options, printed, error, code, start)
        raise
    finally:
        _PRINTED.reset(before)


def _exit_code(error: BaseException) -> int | None:
    """Return the exit code of an exit, 0 for a success, and -1 where the error decides later."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return -1


# With seven parameters, one for each part of the report.
def _call(
    target: str,
    command: str,
    options: object,
    printed: list[str],
    error: BaseException,
    code: int,
    start: float,
) -> None:
    from cluster import call_hook, without_secrets

    report: dict[str, Any] = {
        "event": "failure",
        "command": command,
        "lake": without_secrets(str(getattr(options, "lake", ""))),
        "failed": len(printed),
        "failures": [without_secrets(line) for line in printed[:MOST_FAILURES]],
        "host": platform.node(),
        "pid": os.getpid(),
        "started": datetime.fromtimestamp(start, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - start, 3),
    }
    if code > 0:
        report["exit_code"] = code
    if code < 0:
        text = " ".join(str(error).split())
        report |= {"error": without_secrets(text), "error_type": type(error).__name__}
    call_hook(target, report)
