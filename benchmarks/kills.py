"""Sixty kills of ingest and extract with Ray: a worker, the driver, the whole group, in turn.

    python -m benchmarks.kills /tmp/kills --kills 60

Each kill comes at a random moment of the work; the lake is verified after each kill of a driver,
and each lake that comes to its end must be equal to one that was left in peace: rows, features,
checksums. Stopped, it goes on when the same command is given again.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import RESULTS, write_report
from cluster import ray_session
from tests.worlds.kill_drill import LONGEST_WAIT_S, MOST_FILES, Drill


def main(
    folder: Annotated[Path, typer.Argument(help="Where slides, lakes and the record are kept.")],
    kills: Annotated[int, typer.Option(help="How many must have hit, earlier runs included.")] = 60,
    seed: Annotated[int, typer.Option(help="Draws the moments.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = RESULTS,
) -> None:
    """Kill and compare; an unequal or damaged lake ends it with an error."""
    folder.mkdir(parents=True, exist_ok=True)
    with ray_session(num_cpus=2):
        drill = Drill(folder, seed=seed)
        drill.prepare()
        drill.run(kills)
    line = {
        "kills": len(drill.kills),
        "by_kind": dict(Counter(kill.kind for kill in drill.kills)),
        "by_stage": dict(Counter(kill.stage for kill in drill.kills)),
        "processes_killed": sum(kill.processes for kill in drill.kills),
        "lakes_verified_after_a_kill": drill.verified,
        "lakes_ended_equal": drill.lakes,
        "lakes_damaged_or_unequal": 0,
    }
    settings = {"seed": seed, "most_files": MOST_FILES, "longest_wait_s": LONGEST_WAIT_S}
    path = write_report(out, [line], settings, name="kills")
    typer.echo(f"{path}: {line}")


if __name__ == "__main__":
    typer.run(main)
