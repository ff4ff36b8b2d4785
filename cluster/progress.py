"""Progress of one command: a bar on a terminal, JSON lines elsewhere, or plain lines on demand.

Everything goes to stderr, so that stdout stays the result's. What is counted is apart from how it
is shown: `Snapshot` and `progress_line` are pure, the three views only print them.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, TextIO

from cluster.errors import ClusterError

State = Literal["running", "done", "stopped"]

VIEWS = ("auto", "bar", "plain", "json")

# A time left is guessed from the sixth result on and not in the first seconds: before, it would be
# from the smallest slides alone, or from how long workers take to start.
GROUNDED_STEPS = 6
GROUNDED_S = 10.0
BYTES = "bytes"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where a command stands.

    Attributes:
        title: what runs, as `ingest`.
        unit: what is counted, in the plural, as `slides`.
        done: units finished, those of an earlier run (`initial`) included.
        total: units there are, or None when not known.
        initial: units that were finished before this run; they say nothing about its speed.
        counters: further things counted in this run, as `{"tiles": 1204}`; `bytes` are shown as
            kB, MB or GB.
        elapsed_s: seconds since the start of this run.
        steps: how often something was finished in this run.
        first_s: seconds from the start of this run to the first of them.
        work: share of the work of this run that was done by then and since, 0 to 1: by what units
            weigh, as bytes, or by their number.
        first_work: the same at `first_s`.
        state: "done" and "stopped" are for the last one only; "stopped" is an exception's end.
    """

    title: str
    unit: str
    done: int = 0
    total: int | None = None
    initial: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0
    steps: int = 0
    first_s: float = 0.0
    work: float = 0.0
    first_work: float = 0.0
    state: State = "running"

    def rate(self, name: str | None = None) -> float:
        """Mean per second over this run, of the unit or of the counter `name`; 0 at the start."""
        count = self.done - self.initial if name is None else self.counters[name]
        return count / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Return the seconds left at the pace since the first result; None where it is too early.

        None without a total, after fewer than 6 results or 10 s, and when the run has ended.
        """
        if self.state != "running" or self.total is None:
            return None
        if self.steps < GROUNDED_STEPS or self.elapsed_s < GROUNDED_S:
            return None
        done, seconds = self.work - self.first_work, self.elapsed_s - self.first_s
        return max(0.0, 1 - self.work) * seconds / done if done > 0 else None


def progress_line(snapshot: Snapshot) -> str:
    """One line for people.

    Example:
        >>> progress_line(Snapshot(title="ingest", unit="slides", done=12, total=32, steps=12,
        ...                        counters={"tiles": 2480}, elapsed_s=16.0, work=0.375))
        'ingest: 12/32 slides (0.8/s), 2,480 tiles (155/s), 16 s, about 27 s left'
    """
    parts = [status_text(snapshot), duration_text(snapshot.elapsed_s)]
    if snapshot.left_s is not None:
        parts.append(f"about {duration_text(snapshot.left_s)} left")
    if snapshot.state != "running":
        parts.append(snapshot.state)
    return f"{snapshot.title}: {', '.join(parts)}"


def status_text(snapshot: Snapshot) -> str:
    """Counts and rates only: `12/32 slides (1.5/s), 2,480 tiles (310/s)`."""
    of_total = "" if snapshot.total is None else f"/{snapshot.total:,}"
    counts = [f"{snapshot.done:,}{of_total} {snapshot.unit} ({_rate_text(snapshot.rate())})"]
    counts += [
        f"{bytes_text(count)} ({bytes_text(snapshot.rate(name))}/s)"
        if name == BYTES
        else f"{count:,} {name} ({_rate_text(snapshot.rate(name))})"
        for name, count in snapshot.counters.items()
    ]
    return ", ".join(counts)


def bytes_text(count: float) -> str:
    """Return a number of bytes as text, in the largest unit that gives at least one.

    Example:
        >>> [bytes_text(n) for n in (0, 83_000, 33_600_000, 4_200_000_000)]
        ['0 B', '83.0 kB', '33.6 MB', '4.2 GB']
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> [duration_text(s) for s in (8.2, 125, 3720)]
        ['8 s', '2 min 05 s', '1 h 02 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _rate_text(per_s: float) -> str:
    return f"{per_s:,.0f}/s" if per_s >= 10 else f"{per_s:.1f}/s"


class View(Protocol):
    """How progress is shown."""

    def update(self, snapshot: Snapshot) -> None:
        """Something was counted, or (state not "running") this was the last."""

    def note(self, text: str) -> None:
        """Show a line of text beside the progress."""


class Progress:
    """What `progress` hands to its block. Use it from one thread."""

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
            count: of units.
            work: what they weigh, where `progress` was given the weight of all.
            counters: of further things.
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
        """Print one line, as for a slide that failed, without breaking the bar."""
        self._view.note(text)

    def snapshot(self, state: State = "running") -> Snapshot:
        """Where it stands now."""
        return Snapshot(
            title=self._fixed.title,
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
    as JSON. The environment's SLIDELAKE_PROGRESS = bar, plain or json chooses another; json is one
    object a line with the keys `event` ("progress", "note", "done", "stopped"), `title`, `unit`,
    `done`, `total`, `counters`, `elapsed_s` and `left_s`, or `event`, `title` and `text`.

    Args:
        title: what runs, as `ingest`.
        total: how many units there are; None when not known, and then no time left is shown.
        unit: what is counted, in the plural.
        initial: units already there before this run, as after a restart.
        work: what all units of this run weigh together, as their bytes, where they differ much; the
            time left is then reckoned by it. None: all weigh the same.
        every_s: least seconds between two lines; a bar does not look at it.
        stream: where to write; None is `sys.stderr`.
        clock: seconds, for tests.

    Raises:
        ClusterError: SLIDELAKE_PROGRESS is none of the above.
    """
    out = sys.stderr if stream is None else stream
    start = Snapshot(title=title, unit=unit, done=initial, total=total, initial=initial)
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
    name = os.environ.get("SLIDELAKE_PROGRESS") or "auto"
    if name not in VIEWS:
        msg = f"SLIDELAKE_PROGRESS={name!r} is not known; set it to one of {', '.join(VIEWS)}"
        raise ClusterError(msg)
    if name == "auto":
        name = "bar" if out.isatty() and os.environ.get("TERM") != "dumb" else "json"
    if name == "bar":
        # Rich takes 0.1 s to import, which a command in a job or a pipe need not pay.
        from cluster.progress_bar import open_bar

        with open_bar(start, out) as bar:
            yield bar
    else:
        show = _json_line if name == "json" else progress_line
        note = _json_note if name == "json" else _plain_note
        yield _Lines(start.title, out, show=show, note=note, every_s=every_s, clock=clock)


class _Lines:
    """A line at most every `every_s` seconds, none before that, and always one at the end."""

    def __init__(
        self,
        title: str,
        out: TextIO,
        *,
        show: Callable[[Snapshot], str],
        note: Callable[[str, str], str],
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._title, self._out = title, out
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
        print(self._note(self._title, text), file=self._out, flush=True)


def _plain_note(title: str, text: str) -> str:
    return f"{title}: {text}"


def _json_note(title: str, text: str) -> str:
    return json.dumps({"event": "note", "title": title, "text": text})


def _json_line(snapshot: Snapshot) -> str:
    left_s = snapshot.left_s
    return json.dumps(
        {
            "event": "progress" if snapshot.state == "running" else snapshot.state,
            "title": snapshot.title,
            "unit": snapshot.unit,
            "done": snapshot.done,
            "total": snapshot.total,
            "counters": dict(snapshot.counters),
            "elapsed_s": round(snapshot.elapsed_s, 3),
            "left_s": None if left_s is None else round(left_s, 3),
        }
    )
