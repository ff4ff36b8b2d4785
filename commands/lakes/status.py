"""`slidelake status`: who writes to a lake now, what is pending, what failed, the last commits."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from cluster.progress_text import counted, duration_text
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

if TYPE_CHECKING:
    from featurestore.keep.lance_status import LakeStatus
    from featurestore.storage.lease_view import LeaseView

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Options of `slidelake status`.

    Attributes:
        last: Number of failures and commits to name.
    """

    lake: LakeArg
    last: int = 5
    json: JsonOpt = False


@command(app, "status", without_pandas=True)
def status_command(options: StatusOptions) -> None:
    """Print who writes to a lake now and since when, what is pending, what failed, last commits.

    Example: slidelake status my-lake

    It reads leases and tables, and writes nothing. The lake may lie in a bucket, where the last
    sign of a job is named beside its start: a job renews its lease every 15 s.
    """
    from featurestore import open_lake
    from featurestore.keep.lance_status import lake_status

    status = lake_status(open_lake(options.lake), last=options.last)
    print_answer(status.to_json(), as_json=options.json, text="\n".join(_lines(status)))


def _lines(status: "LakeStatus") -> list[str]:
    slides = ", ".join(f"{count:,} {state}" for state, count in status.slides.items())
    missing = [
        f"{one['teacher']} at {one['mpp']:g} mpp lacks {counted(one['tiles'], 'tile')}"
        for one in status.missing
    ]
    failures = [f"{one['slide']}: {one['reason']}" for one in status.failures]
    if status.failed > len(failures):
        failures.append(f"and {status.failed - len(failures):,} more")
    commits = [f"{one['version']}, {one['at']}: {_tables(one['tables'])}" for one in status.commits]
    trainings = [
        f"{one['run']}: step {one['step']:,} of {one['steps']:,}, last sign "
        f"{duration_text(one['last_sign_s'])} ago"
        for one in status.trainings
    ]
    parts = {
        "writes now": [_lease_line(lease) for lease in status.leases if lease.state == "held"],
        "left behind": [_lease_line(lease) for lease in status.leases if lease.state != "held"],
        "trains": trainings,
        "slides": [slides],
        "features": missing or ["complete" if status.columns else "none"],
        "failed last": failures,
        "commits": commits,
    }
    always = ("writes now", "failed last")
    lines = [f"{status.lake}, version {status.version}"]
    for kind, rows in parts.items():
        for at, row in enumerate(rows or (["none"] if kind in always else [])):
            lines.append(f"{kind if at == 0 else '':13}{row}")
    return lines


def _lease_line(lease: "LeaseView") -> str:
    job = lease.purpose or lease.command or lease.kind
    command = f" by {lease.command}" if lease.purpose and lease.command else ""
    sign = "" if lease.last_sign_s is None else f", last sign {lease.last_sign_s:.0f} s ago"
    return f"{job}{command} (pid {lease.pid} on {lease.host}, since {lease.since}{sign})"


def _tables(tables: list[str]) -> str:
    names = [table.removesuffix(".lance").rpartition("/")[2] for table in tables]
    return ", ".join(names) or "nothing but the catalog"
