"""How a command prints its answer."""

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from featurestore import Vacuumed


def print_answer(answer: object, *, as_json: bool, text: str) -> None:
    """Print a command's answer as text or as one JSON object."""
    typer.echo(json.dumps(answer, default=str) if as_json else text)


def freed_lines(freed: "Vacuumed | None") -> list[str]:
    """Return a line on what an automatic vacuum removed; none if it did not run."""
    if freed is None:
        return []
    return [f"freed {freed.versions:,} old versions, {freed.bytes / 1e6:,.1f} MB"]
