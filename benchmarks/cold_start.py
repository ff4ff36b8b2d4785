"""How long a command takes that only reads a few rows, from the shell to its answer.

    python -m benchmarks.cold_start demo-lake --before OTHER_CHECKOUT

Every command is a process of its own; files are in the page cache. The commands of both checkouts,
and the imports that are the floor (`import lance, polars`), take turns, so that all meet the same
load. Times are the best of all rounds: seconds of the CPU (user and system), and of the wall.
`compiled` is with the bytecode of all modules, as pip leaves it; `sources` without any, as where
`PYTHONDONTWRITEBYTECODE` is set and uv installed the packages.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import RESULTS, table, write_report

HERE = Path(__file__).resolve().parent.parent
SQL = "SELECT slide_id, count(*) FROM tiles_mpp0_5 GROUP BY slide_id"
IMPORTS = {"python": "pass", "import lance, polars": "import lance, polars"}


def cpu_and_wall(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of CPU and of wall that a process takes.

    Raises:
        SystemExit: it failed.
    """
    with Path(os.devnull).open("w") as nothing:
        start = time.perf_counter()
        files = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1)]
        process = os.posix_spawn(words[0], words, environment, file_actions=files)
        _, status, usage = os.wait4(process, 0)
        wall = time.perf_counter() - start
    if status:
        msg = f"{words} ended with {os.waitstatus_to_exitcode(status)}"
        raise SystemExit(msg)
    return usage.ru_utime + usage.ru_stime, wall


def lines_of(lake: str, before: Path | None) -> dict[str, tuple[list[str], Path]]:
    """Return the words of each process and the checkout that it runs in, by name."""
    commands = {
        "--help": ["--help"],
        "info": ["info", lake],
        "query": ["query", lake, SQL],
        "runs": ["runs", lake],
    }
    lines = {name: ([sys.executable, "-c", code], HERE) for name, code in IMPORTS.items()}
    for suffix, root in ((", before", before), ("", HERE)):
        for name, words in commands.items() if root else ():
            assert root is not None
            lines[name + suffix] = ([sys.executable, "-P", "-m", "slidelake", *words], root)
    return lines


def main(
    lake: Annotated[Path, typer.Argument(help="A small local lake, like that of the demo.")],
    before: Annotated[Path | None, typer.Option(help="A checkout to compare with.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that each is run.")] = 7,
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = RESULTS,
) -> None:
    """Measure, print a table and write the results."""
    lines = lines_of(str(lake.resolve()), before and before.resolve())
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as bytecode, tempfile.TemporaryDirectory() as empty:
        kinds = {
            "compiled": {"PYTHONPYCACHEPREFIX": bytecode},
            "sources": {"PYTHONPYCACHEPREFIX": empty, "PYTHONDONTWRITEBYTECODE": "1"},
        }
        for number in range(rounds + 1):
            for kind, variables in kinds.items():
                for name, (words, root) in lines.items():
                    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
                    environment = {**plain, "PYTHONPATH": str(root), **variables}
                    spent = cpu_and_wall(words, environment)
                    if number:  # the first round fills the page cache and writes the bytecode
                        times.setdefault((kind, name), []).append(spent)
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "modules": kind,
            "cpu s": round(min(cpu for cpu, _ in spent), 2),
            "wall s": round(min(wall for _, wall in spent), 2),
        }
        for (kind, name), spent in times.items()
    ]
    rows.sort(key=lambda row: row["modules"])
    typer.echo(table(rows))
    write_report(out, rows, {"rounds": rounds, "compared": before is not None}, name="cold-start")


if __name__ == "__main__":
    typer.run(main)
