"""Snapshots of a command's progress, and the texts that describe them.

All functions are pure; the texts are printed by
`cluster.progress` and `cluster.progress_bar`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["running", "done", "stopped"]

# A time left is guessed from the sixth result on and not in the first seconds: before, it would be
# from the smallest slides alone, or from how long workers take to start.
GROUNDED_STEPS = 6
GROUNDED_S = 10.0
BYTES = "bytes"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a command's progress at one moment.

    Attributes:
        title: name of the command, such as `ingest`.
        stage: name of the stage of a command of several, such as `extract` of `build`.
        unit: name of the counted units, in the plural, such as `slides`.
        done: number of finished units, including an earlier run's (`initial`).
        total: number of units, or None if unknown.
        initial: units that were finished before this run; they do not count for its speed.
        counters: further things counted in this run, as `{"tiles": 1204}`; `bytes` are shown as
            kB, MB or GB.
        elapsed_s: seconds since the start of this run.
        steps: number of times that units were finished in this run.
        first_s: seconds from the start of this run to the first of them.
        work: share of the work of this run that is done, 0 to 1: by the weight of units, as bytes,
            or by their number.
        first_work: the same at `first_s`.
        state: "running"; in the last snapshot "done", or "stopped" after an exception.
    """

    title: str
    unit: str
    stage: str = ""
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

    @property
    def heading(self) -> str:
        """Return the name of the command, and of its stage."""
        return f"{self.title} {self.stage}".rstrip()

    def rate(self, name: str | None = None) -> float:
        """Return the mean rate per second in this run, of the unit or a counter; 0 at first."""
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
    """Return a line of text that describes a snapshot.

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
    return f"{snapshot.heading}: {', '.join(parts)}"


def status_text(snapshot: Snapshot) -> str:
    """Return the counts and rates alone: `12/32 slides (1.5/s), 2,480 tiles (310/s)`."""
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
    """Return a number of bytes as text, in the largest unit of which there is at least one.

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
    """Return a duration as text, in seconds, minutes or hours.

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


def counted(number: float, noun: str, verb: str = "") -> str:
    """Return a number with its noun, in the singular or the plural, and perhaps a verb.

    Args:
        number: number of things.
        noun: the noun in the singular.
        verb: the verb in the plural.

    >>> counted(1, "slide"), counted(1200, "tile"), counted(0.5, "GPU")
    ('1 slide', '1,200 tiles', '0.5 GPUs')
    >>> counted(1, "mask", "match"), counted(2, "mask", "match"), counted(1, "class", "are")
    ('1 mask matches', '2 masks match', '1 class is')
    """
    text = f"{number:g}" if number % 1 else f"{int(number):,}"
    if number == 1:
        return f"{text} {noun} {_SINGULAR.get(verb, _with_s(verb))}".rstrip()
    return f"{text} {_with_s(noun)} {verb}".rstrip()


_SINGULAR = {"": "", "are": "is", "have": "has", "were": "was"}


def _with_s(word: str) -> str:
    """Return the plural of a noun, or a verb as it follows a singular."""
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"
