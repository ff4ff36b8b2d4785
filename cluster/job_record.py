"""The facts of a job on a cluster, and a table of several."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.progress_text import duration_text

_COMMAND_WIDTH = 60
_ENDED = frozenset({"succeeded", "failed", "stopped"})


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the cluster records it.

    Attributes:
        id: id of the job.
        state: pending, running, succeeded, failed or stopped.
        command: words after `slidelake`, as one line; the whole line of another program.
        started: time of the submission, in seconds since 1970.
        ended: time of the end, in seconds since 1970; None while it runs.
        exit_code: exit code of the command; None while it runs, and where it never ran.
        message: the cluster's own words on the state.
    """

    id: str
    state: str
    command: str
    started: float
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Return whether the job is over."""
        return self.state in _ENDED

    @property
    def seconds(self) -> float:
        """Return the time since the submission, up to the end of the job."""
        return max(0.0, (self.ended or time.time()) - self.started)


def job_table(jobs: Sequence[JobRecord]) -> str:
    """Return a line for each job under a line of headings; the newest job comes first.

    Example:
        >>> job = JobRecord(
        ...     id="nightly-7", state="failed", command="info s3://lab/lake", started=0.0,
        ...     ended=62.0, exit_code=2, message="",
        ... )
        >>> heading, line = job_table([job]).splitlines()
        >>> heading.split()
        ['id', 'state', 'exit', 'started', 'took', 'command']
        >>> line.startswith("nightly-7  failed  2 "), line.endswith("1 min 02 s  info s3://lab/lake")
        (True, True)
    """
    rows = [("id", "state", "exit", "started", "took", "command")]
    rows += [
        (
            job.id,
            job.state,
            "" if job.exit_code is None else str(job.exit_code),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)),
            duration_text(job.seconds),
            _shortened(job.command),
        )
        for job in sorted(jobs, key=lambda job: job.started, reverse=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join(
            [*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    )


def _shortened(command: str) -> str:
    one_line = " ".join(command.split())
    if len(one_line) <= _COMMAND_WIDTH:
        return one_line
    return f"{one_line[: _COMMAND_WIDTH - 3]}..."
