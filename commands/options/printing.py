"""How a command prints its answer."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from cluster.progress import is_quiet

if TYPE_CHECKING:
    from featurestore import Vacuumed


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
    if is_quiet():
        for line in errors:
            typer.echo(line, err=True)
    if as_json:
        typer.echo(json.dumps(answer, default=str))
    elif is_quiet():
        typer.echo(summary or text.rpartition("\n")[2])
    else:
        typer.echo("\n".join([*errors, text]))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or the plural.

    >>> counted(1, "slide"), counted(1200, "tile")
    ('1 slide', '1,200 tiles')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def freed_lines(freed: "Vacuumed | None") -> list[str]:
    """Return a line on what an automatic vacuum removed; none if it did not run."""
    if freed is None:
        return []
    return [f"freed {counted(freed.versions, 'old version')}, {freed.bytes / 1e6:,.1f} MB"]
