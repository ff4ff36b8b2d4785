"""The view of progress on a terminal: one live line drawn by rich."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from cluster.progress_text import Snapshot, duration_text, status_text


class _BarView:
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

    def event(self, name: str, facts: Mapping[str, object]) -> None:
        """Show nothing: events are for programs."""


class Bars:
    """The lines of one command on a terminal, a bar for each of its stages."""

    def __init__(self, rich: RichProgress, stages: Sequence[str]) -> None:
        self._rich = rich
        self._waiting = {
            stage: rich.add_task(stage, start=False, total=None, status="waits", left="")
            for stage in stages
        }

    def start(self, start: Snapshot) -> _BarView:
        """Start the bar of a stage, or a further bar if the stage was not named beforehand."""
        name = start.stage or start.title
        task = self._waiting.pop(name, None)
        if task is None:
            task = self._rich.add_task(name, start=False, total=None, status="", left="")
        self._rich.start_task(task)
        self._rich.update(task, total=start.total, completed=start.done, status=status_text(start))
        return _BarView(self._rich, task)

    def end(self) -> None:
        """Show that the stages which never started had nothing to do."""
        for task in self._waiting.values():
            self._rich.update(task, total=1, completed=1, status="nothing to do")


@contextmanager
def open_bars(out: TextIO, stages: Sequence[str] = ()) -> Iterator[Bars]:
    """Draw bars on `out` for as long as the block runs; their last state stays on the screen.

    stdout is left alone, since a command's answer is printed there; other text on stderr is
    printed above the bars.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with RichProgress(*columns, console=Console(file=out), redirect_stdout=False) as rich:
        bars = Bars(rich, stages)
        yield bars
        bars.end()
