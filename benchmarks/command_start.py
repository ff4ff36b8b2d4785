"""What a command costs beyond its own work, on small inputs: from the shell to the prompt.

    python -m benchmarks.command_start --before OTHER_CHECKOUT

An ingest of 12 small slides, an extract of their tiles, a distillation of some steps, a study of 10
cells; each into a fresh copy, in a process of its own, in turns with the other checkout. `wall` is
the whole command. `work` is what the command itself noted of its work: the seconds of each slide or
cell (the sum over the cores that share them), of the network, of each step. `beyond` is the rest:
imports, the start of workers, commits, waits. `first` is from the command to the first slide being
cut: wall time until the first slide ended, less what cutting it took. With `--ray` all commands
join, by RAY_ADDRESS, a Ray that `ray start --head` has started before.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from benchmarks.report import RESULTS, table, write_report

HERE = Path(__file__).resolve().parent.parent
BATCH_TILES, SLIDES = 16, 12
TEACHER = "efficientnet_lite0"
CORES = os.cpu_count() or 1


def run(root: Path, words: list[str], variables: Mapping[str, str]) -> dict[str, Any]:
    """Run a command of a checkout; return its answer, its wall time, and its lines of JSON.

    Raises:
        SystemExit: it failed.
    """
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SLIDELAKE_"))}
    environment = {**plain, "PYTHONPATH": str(root), "SLIDELAKE_PROGRESS": "json", **variables}
    command = [sys.executable, "-P", "-m", "slidelake", *words, "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    events, lines = [], []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("{"):
            events.append({**json.loads(line), "wall_s": time.perf_counter() - start})
    answer = process.stdout.read()
    if process.wait():
        raise SystemExit("".join(lines[-20:]))
    wall_s = time.perf_counter() - start
    return {"wall": wall_s, "events": events, "answer": json.loads(answer.splitlines()[-1])}


def ingest(root: Path, base: Path, folder: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """Cut the slides into a new lake."""
    lake = folder / "lake"
    one = run(root, ["ingest", str(lake), str(base / "slides"), "--mpp", "0.5"], variables)
    seconds = _columns(lake, "SELECT seconds FROM slides")["seconds"]
    first = next(
        (event["wall_s"] for event in one["events"] if event.get("done") or event.get("slide")), 0.0
    )
    return {"wall": one["wall"], "work": sum(seconds) / CORES, "first": first - min(seconds)}


def extract(root: Path, base: Path, folder: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """Run a teacher on a copy of the lake before it had features."""
    lake = _copied(base / "cut", folder)
    one = run(root, ["extract", str(lake), "--teacher", TEACHER], variables)
    counts = one["answer"]["teachers"][TEACHER]
    return {"wall": one["wall"], "work": counts["seconds"], "tiles": counts["tiles"]}


def distill(root: Path, base: Path, folder: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """Train a student for a few steps on a copy of the lake."""
    lake = _copied(base / "lake", folder)
    words = ["distill", str(lake), "--teacher", TEACHER, "--recipe", "agglomerate"]
    words += ["--name", "small", "--architecture", "test_efficientnet", "--input-px", "32"]
    words += ["--epochs", "1", "--batch-tiles", str(BATCH_TILES)]
    one = run(root, words, variables)
    report = one["answer"]
    work = report["steps"] * BATCH_TILES / report["tiles_per_s"]
    return {"wall": one["wall"], "work": work}


def mil(root: Path, base: Path, folder: Path, variables: Mapping[str, str]) -> dict[str, float]:
    """Cross-validate on a copy of the lake."""
    lake = _copied(base / "lake", folder)
    words = ["mil", str(lake), "--labels", str(base / "labels.csv"), "--target", "label"]
    words += ["--features", TEACHER, "--folds", "2", "--repeats", "5"]
    words += ["--epochs", "2", "--model", "abmil"]
    one = run(root, words, variables)
    cells = list((lake / "runs").rglob("cells/**/*.json"))
    seconds = [json.loads(path.read_text())["seconds"] for path in cells]
    return {"wall": one["wall"], "work": sum(seconds) / CORES}


COMMANDS = {"ingest": ingest, "extract": extract, "distill": distill, "mil": mil}


def _copied(lake: Path, folder: Path) -> Path:
    shutil.copytree(lake, folder / "lake")
    return folder / "lake"


def _columns(lake: Path, sql: str) -> dict[str, list[float]]:
    from featurestore import open_lake, query

    return query(open_lake(lake), sql).to_dict(as_series=False)


def prepare(base: Path) -> None:
    """Make 12 small slides, and a lake with features of a teacher."""
    from examples.cohort import make_cohort

    made = make_cohort(
        base / "cohort", patients=SLIDES, slides=SLIDES, width_px=1280, height_px=1024, workers=1
    )
    shutil.copytree(base / "cohort" / "slides", base / "slides")
    pl.read_csv(made).select("slide_id", "patient_id", "label").write_csv(base / "labels.csv")
    run(HERE, ["ingest", str(base / "lake"), str(made), "--mpp", "0.5"], {})
    shutil.copytree(base / "lake", base / "cut")
    run(HERE, ["extract", str(base / "lake"), "--teacher", TEACHER], {})


def main(
    before: Annotated[Path | None, typer.Option(help="A checkout to compare with.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that each is run.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Commands to run.")] = None,
    ray: Annotated[bool, typer.Option(help="Have all join a Ray that is up.")] = False,  # noqa: FBT002
    out: Annotated[Path, typer.Option(help="Where the result goes.")] = RESULTS,
) -> None:
    """Measure, print a table and write the results."""
    roots = {"before": before.resolve()} if before else {}
    roots["now"] = HERE
    times: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="slidelake-bench-") as scratch:
        base = Path(scratch)
        prepare(base)
        variables = {"RAY_ADDRESS": "auto"} if ray else {}
        for number in range(rounds):
            for command in only or COMMANDS:
                for name, root in roots.items():
                    folder = base / f"{command}-{name}-{number}"
                    folder.mkdir()
                    spent = COMMANDS[command](root, base, folder, variables)
                    typer.echo(f"{command} {name}: {spent}")
                    times.setdefault((command, name), []).append(spent)
    rows = [
        {
            "command": command,
            "which": name,
            "wall s": round(min(one["wall"] for one in spent), 1),
            "work s": round(min(one["work"] for one in spent), 1),
            "beyond s": round(min(one["wall"] - one["work"] for one in spent), 1),
            "first slide s": round(min(one.get("first", 0.0) for one in spent), 1) or "",
        }
        for (command, name), spent in times.items()
    ]
    typer.echo(table(rows))
    settings = {"rounds": rounds, "compared": before is not None, "ray": ray}
    write_report(out, rows, settings, name=f"command-start{'-ray' if ray else ''}")


if __name__ == "__main__":
    typer.run(main)
