"""How a command prints its answer."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import typer

from cluster.progress import is_quiet
from cluster.progress_text import counted
from commands.options.failure_report import note_failures

#: Whether the running command prints the last line of its answer alone.
_SHORT: ContextVar[bool] = ContextVar("_SHORT", default=False)

if TYPE_CHECKING:
    from featurestore import Vacuumed


@contextmanager
def short_answers(options: object) -> Iterator[None]:
    """Print the last line of answers alone inside the block, if the command was told to be quiet.

    SLIDELAKE_PROGRESS=none counts for commands that have `--quiet` only: the answer of others,
    as of `slidelake info`, is what they are for.
    """
    quiet = getattr(options, "quiet", None)
    before = _SHORT.set(quiet is not None and (quiet or is_quiet()))
    try:
        yield
    finally:
        _SHORT.reset(before)


def print_answer(
    answer: object,
    *,
    as_json: bool,
    text: str,
    errors: Sequence[str] = (),
    summary: str | None = None,
) -> None:
    """Print a command's answer as text or as one JSON object.

    Args:
        answer: the answer, for JSON.
        as_json: whether it is printed as JSON.
        text: the answer as lines of text.
        errors: lines on what failed; they come before the text. With --quiet they go to stderr.
        summary: the line of `text` that --quiet prints; its last line if None.
    """
    note_failures(list(errors))
    if _SHORT.get():
        for line in errors:
            typer.echo(line, err=True)
    if as_json:
        typer.echo(json.dumps(answer, default=str))
    elif _SHORT.get():
        typer.echo(summary or text.rpartition("\n")[2])
    else:
        typer.echo("\n".join([*errors, text]))


def freed_lines(freed: "Vacuumed | None") -> list[str]:
    """Return a line on what an automatic vacuum removed; none if it did not run."""
    if freed is None:
        return []
    return [f"freed {counted(freed.versions, 'old version')}, {freed.bytes / 1e6:,.1f} MB"]
