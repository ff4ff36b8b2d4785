"""Progress of one command: a bar on a terminal, JSON lines elsewhere, or plain lines on demand.

Everything is printed to stderr, so that stdout stays free for the answer. Counting is apart from
display: `cluster.progress_text` is pure, the three views only print its texts.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TextIO

from cluster.environment import patched_environ
from cluster.errors import ClusterError
from cluster.progress_text import Snapshot, State, progress_line

if TYPE_CHECKING:
    from cluster.progress_bar import Bars

VIEWS = ("auto", "bar", "plain", "json", "none")
VARIABLE = "SLIDELAKE_PROGRESS"


class View(Protocol):
    """The interface of a display of progress: a bar, plain lines or JSON lines."""

    def update(self, snapshot: Snapshot) -> None:
        """Show a new snapshot; a snapshot in a state other than "running" is the last."""

    def note(self, text: str) -> None:
        """Show a line of text above the progress, such as a failed slide."""


class Progress:
    """The counter that `progress` yields to its block. Use it from one thread."""

    def __init__(
        self, start: Snapshot, view: View, clock: Callable[[], float], work: float | None
    ) -> None:
        self._fixed = start
        self._all_work = work
        self._work = 0.0
        self._steps = 0
        self._first = (0.0, 0.0)
        self._view = view
        self._clock = clock
        self._started = clock()
        self._done = start.initial
        self._counters: dict[str, int] = {}

    def advance(self, count: int = 1, *, work: float | None = None, **counters: int) -> None:
        """Count `count` more units, and more of any further thing: `bar.advance(1, tiles=120)`.

        Args:
            count: number of units.
            work: weight of these units, if `progress` has the total weight.
            counters: numbers of further things.
        """
        self._done += count
        self._work += count if self._all_work is None or work is None else work
        self._steps += 1
        if self._steps == 1:
            self._first = (self._clock() - self._started, self._share())
        for name, more in counters.items():
            self._counters[name] = self._counters.get(name, 0) + more
        self._view.update(self.snapshot())

    def _share(self) -> float:
        """Return the share of this run's work that is done, 0 to 1."""
        units = (self._fixed.total or 0) - self._fixed.initial
        whole = units if self._all_work is None else self._all_work
        return min(1.0, self._work / whole) if whole > 0 else 0.0

    def note(self, text: str) -> None:
        """Print one line of text, such as the name of a failed slide, without breaking the bar."""
        self._view.note(text)

    def snapshot(self, state: State = "running") -> Snapshot:
        """Return the state of the progress at this moment."""
        return Snapshot(
            title=self._fixed.title,
            stage=self._fixed.stage,
            unit=self._fixed.unit,
            done=self._done,
            total=self._fixed.total,
            initial=self._fixed.initial,
            counters=dict(self._counters),
            elapsed_s=self._clock() - self._started,
            steps=self._steps,
            first_s=self._first[0],
            work=self._share(),
            first_work=self._first[1],
            state=state,
        )


class _Whole:
    """A command of several stages, each of which is a `progress` with the stage's title."""

    def __init__(self, title: str, stages: tuple[str, ...], stack: ExitStack) -> None:
        self.title = title
        self._stages, self._stack = stages, stack
        self._bars: Bars | None = None

    def bars(self, out: TextIO) -> "Bars":
        """Return the bars of all stages, which are drawn from the first stage on."""
        if self._bars is None:
            from cluster.progress_bar import open_bars

            self._bars = self._stack.enter_context(open_bars(out, self._stages))
        return self._bars


#: The command of which the next `progress` is a stage.
_WHOLE: ContextVar[_Whole | None] = ContextVar("_WHOLE", default=None)


@contextmanager
def progress_of_stages(title: str, *stages: str) -> Iterator[None]:
    """Show each `progress` inside the block as a stage of one command.

    A terminal shows a bar for each stage together, the later ones as waiting. Lines in JSON have
    `title` for the command, and `stage` for the title of the `progress`.

    Args:
        title: name of the command, such as `build`.
        stages: titles of the `progress` of its stages, in order.

    Example:
        >>> with progress_of_stages("build", "ingest", "extract"):
        ...     with progress("ingest", total=2, unit="slides") as bar:
        ...         bar.snapshot().heading
        'build ingest'
    """
    with ExitStack() as stack:
        outer = _WHOLE.set(_Whole(title, stages, stack))
        try:
            yield
        finally:
            _WHOLE.reset(outer)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Show no progress inside the block, nor in processes that are started there.

    Example:
        >>> with quiet_progress():
        ...     is_quiet()
        True
    """
    with patched_environ({VARIABLE: "none"}):
        yield


def is_quiet() -> bool:
    """Return whether no progress is shown, by `quiet_progress` or SLIDELAKE_PROGRESS=none."""
    return os.environ.get(VARIABLE) == "none"


def print_note(title: str, text: str) -> None:
    """Print one line of text about a command on stderr, while it shows no progress of its own.

    Args:
        title: name of the command.
        text: the line.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name == "none":
        return
    is_json = name == "json" or (name == "auto" and not sys.stderr.isatty())
    start = Snapshot(title=title, unit="", done=0, initial=0, total=None)
    line = _json_note(start, text) if is_json else _plain_note(start, text)
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(
    title: str,
    *,
    total: int | None = None,
    unit: str = "items",
    initial: int = 0,
    work: float | None = None,
    every_s: float = 5.0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Show the progress of the block on stderr.

    A terminal gets a bar; anything else a line at most every `every_s` seconds and one at the end,
    as JSON. The environment's SLIDELAKE_PROGRESS = bar, plain, json or none chooses the view; json
    is one object a line with the keys `event` ("progress", "note", "done", "stopped"), `title`,
    `unit`, `done`, `total`, `counters`, `elapsed_s` and `left_s`, or `event`, `title` and `text`;
    and `stage` inside `progress_of_stages`.

    Args:
        title: name of the command, such as `ingest`.
        total: number of units; None if unknown, and then no time left is shown.
        unit: name of the counted units, in the plural.
        initial: units already there before this run, as after a restart.
        work: weight of all units of this run, such as their bytes, where they differ much; the time
            left is then estimated by it. None: all weigh the same.
        every_s: least seconds between two lines; a bar ignores it.
        stream: stream to write to; None is `sys.stderr`.
        clock: function that returns the time in seconds, for tests.

    Raises:
        ClusterError: SLIDELAKE_PROGRESS is none of the above.
    """
    out = sys.stderr if stream is None else stream
    whole = _WHOLE.get()
    names = (title, "") if whole is None else (whole.title, title)
    start = Snapshot(
        title=names[0], stage=names[1], unit=unit, done=initial, total=total, initial=initial
    )
    with _view(start, out, every_s=every_s, clock=clock) as view:
        bar = Progress(start, view, clock, work)
        try:
            yield bar
        except BaseException:
            view.update(bar.snapshot("stopped"))
            raise
        view.update(bar.snapshot("done"))


@contextmanager
def _view(
    start: Snapshot, out: TextIO, *, every_s: float, clock: Callable[[], float]
) -> Iterator[View]:
    name = os.environ.get(VARIABLE) or "auto"
    if name not in VIEWS:
        msg = f"{VARIABLE}={name!r} is not known; set it to one of {', '.join(VIEWS)}"
        raise ClusterError(msg)
    if name == "auto":
        name = "bar" if out.isatty() and os.environ.get("TERM") != "dumb" else "json"
    if name == "none":
        yield _NoView()
    elif name == "bar" and (whole := _WHOLE.get()) is not None:
        yield whole.bars(out).start(start)
    elif name == "bar":
        # Rich takes 0.1 s to import, which a command in a job or a pipe need not pay.
        from cluster.progress_bar import open_bars

        with open_bars(out) as bars:
            yield bars.start(start)
    else:
        show = _json_line if name == "json" else progress_line
        note = _json_note if name == "json" else _plain_note
        yield _LinesView(start, out, show=show, note=note, every_s=every_s, clock=clock)


class _NoView:
    """The view that shows nothing; what failed is in the command's answer."""

    def update(self, snapshot: Snapshot) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class _LinesView:
    """The view that prints a line at most every `every_s` seconds, and a last line at the end."""

    def __init__(
        self,
        start: Snapshot,
        out: TextIO,
        *,
        show: Callable[[Snapshot], str],
        note: Callable[[Snapshot, str], str],
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._start, self._out = start, out
        self._show, self._note = show, note
        self._every_s, self._clock = every_s, clock
        self._last = clock()

    def update(self, snapshot: Snapshot) -> None:
        now = self._clock()
        if snapshot.state == "running" and now - self._last < self._every_s:
            return
        self._last = now
        print(self._show(snapshot), file=self._out, flush=True)

    def note(self, text: str) -> None:
        print(self._note(self._start, text), file=self._out, flush=True)


def _plain_note(start: Snapshot, text: str) -> str:
    return f"{start.heading}: {text}"


def _json_note(start: Snapshot, text: str) -> str:
    return json.dumps({"event": "note", **_names(start), "text": text})


def _names(snapshot: Snapshot) -> dict[str, str]:
    """Return the title and, of a command of several stages, the stage."""
    stage = {"stage": snapshot.stage} if snapshot.stage else {}
    return {"title": snapshot.title, **stage}


def _json_line(snapshot: Snapshot) -> str:
    left_s = snapshot.left_s
    return json.dumps(
        {
            "event": "progress" if snapshot.state == "running" else snapshot.state,
            **_names(snapshot),
            "unit": snapshot.unit,
            "done": snapshot.done,
            "total": snapshot.total,
            "counters": dict(snapshot.counters),
            "elapsed_s": round(snapshot.elapsed_s, 3),
            "left_s": None if left_s is None else round(left_s, 3),
        }
    )
