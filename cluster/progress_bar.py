"""The view of progress on a terminal: one live line drawn by rich."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from cluster.progress_text import Snapshot, duration_text, status_text


class _Bar:
    """The view that draws a bar by rich."""

    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich = rich
        self._task = task

    def update(self, snapshot: Snapshot) -> None:
        left_s = snapshot.left_s
        self._rich.update(
            self._task,
            completed=snapshot.done,
            status=status_text(snapshot),
            left=snapshot.state if left_s is None else f"{duration_text(left_s)} left",
        )

    def note(self, text: str) -> None:
        self._rich.console.print(text, markup=False, highlight=False)


@contextmanager
def open_bar(start: Snapshot, out: TextIO) -> Iterator[_Bar]:
    """Draw the bar on `out` for as long as the block runs; its last state stays on the screen.

    stdout is left alone, since a command's answer is printed there; other text on stderr is
    printed above the bar.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with RichProgress(*columns, console=Console(file=out), redirect_stdout=False) as rich:
        task = rich.add_task(
            start.title,
            total=start.total,
            completed=start.done,
            status=status_text(start),
            left="",
        )
        yield _Bar(rich, task)
