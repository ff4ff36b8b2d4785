"""Words that the shell completes after an option: names that are found without opening a lake.

A key press waits for it, so nothing here may take more than a few hundredths of a second: cards
of teachers are read, and the folders of a local lake are listed; a bucket is never asked.
"""

from pathlib import Path

import typer


def complete_teacher(context: typer.Context, incomplete: str) -> list[str]:
    """Return the cards, and the students of a local lake, that start with what was typed."""
    from ingest.teachers.cards.card_table import CARDS

    return _starting(incomplete, [*CARDS, *_names_in_lake(context, "students")])


def complete_student(context: typer.Context, incomplete: str) -> list[str]:
    """Return the students of a local lake that start with what was typed."""
    return _starting(incomplete, _names_in_lake(context, "students"))


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the runs of a local lake that start with what was typed."""
    return _starting(incomplete, _names_in_lake(context, "runs"))


def _starting(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _names_in_lake(context: typer.Context, folder: str) -> list[str]:
    """Return the names in a folder of the lake that was typed already, if it lies on a disk."""
    # while an option lacks its value, arguments are not assigned to their names yet
    lake = context.params.get("lake") or next(iter(context.args), None)
    if not isinstance(lake, str) or "://" in lake:
        return []
    path = Path(lake) / folder
    return sorted(one.name for one in path.iterdir() if one.is_dir()) if path.is_dir() else []
