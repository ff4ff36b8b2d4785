"""Results of the tissue benchmarks: a table for people, and a file that says where it was run."""

import datetime as dt
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "opencv-python-headless", "simplejpeg", "tifffile", "openslide-bin")

Line = dict[str, Any]


def about_run(name: str, settings: dict[str, Any], lines: list[Line]) -> None:
    """Print lines as a table and write them to `results/<name>-<cores>cpu-<date>.json`."""
    print(table(lines))
    now = dt.datetime.now(dt.UTC)
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_at_end": os.getloadavg()[0],
    }
    report = {
        "date": now.isoformat(timespec="seconds"),
        "machine": machine,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "settings": settings,
        "lines": lines,
    }
    path = RESULTS / f"{name}-{machine['cores']}cpu-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)


def table(lines: list[Line]) -> str:
    """Lines with the same keys as a Markdown table; None is left empty."""
    rows = [[_shown(value) for value in line.values()] for line in lines]
    head = [list(lines[0]), ["---"] * len(lines[0])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().split("model name\t: ")[1:] if info.exists() else []
    return names[0].partition("\n")[0] if names else platform.processor()


def _commit() -> str:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    used = ("ingest/tissue.py", "ingest/scores.py", "benchmarks/tissue*.py")
    changed = git("status", "--short", *used)
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
