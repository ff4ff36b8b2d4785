"""Lines of a benchmark's report: ratio to a peer, machine and versions."""

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

RESULTS = Path(__file__).parent / "results"
FOLDERS = ("featurestore", "ingest", "distill", "downstream", "cluster", "benchmarks")
PACKAGES = (
    "pylance",
    "pyarrow",
    "polars",
    "numpy",
    "torch",
    "h5py",
    "simplejpeg",
    "opencv-python-headless",
    "openslide-bin",
    "tifffile",
    "ray",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The comparison of our arm with a peer's.

    Attributes:
        title: title of our arm.
        peer: title of the peer's arm.
        ratio: the peer's time over ours, median over rounds (for bytes: written over new).
        target: least ratio that is required, or None without a target.
        met: whether the ratio reaches the target.
        rate: rate of our arm, as text.
        ratios: ratio of each round.
        seconds: median seconds of our arm and the peer's.
    """

    title: str
    peer: str
    ratio: float
    target: float | None = None
    met: bool | None = None
    rate: str = ""
    ratios: tuple[float, ...] = ()
    seconds: tuple[float, float] | None = None

    @classmethod
    def of(
        cls,
        title: str,
        peer: str,
        seconds: dict[str, list[float]],
        arms: tuple[str, str],
        target: float | None = None,
    ) -> Self:
        """Return the line of two arms from their seconds in the same rounds."""
        ours, peers = (seconds[arm] for arm in arms)
        ratios = tuple(round(b / a, 3) for a, b in zip(ours, peers, strict=True))
        ratio = statistics.median(ratios)
        return cls(
            title=title,
            peer=peer,
            ratio=ratio,
            target=target,
            met=None if target is None else ratio >= target,
            ratios=ratios,
            seconds=(statistics.median(ours), statistics.median(peers)),
        )

    def at(self, amount: float, unit: str, scale: float = 1.0) -> Self:
        """Return the line with our arm's rate, for `amount` units in a round."""
        if self.seconds is None:
            return self
        return replace(self, rate=f"{amount * scale / self.seconds[0]:,.0f} {unit}/s")

    def text(self) -> str:
        """Return the line as readable text."""
        verdict = (
            ""
            if self.target is None
            else f"(target {self.target:g}: {'met' if self.met else 'NO'})"
        )
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}" if self.ratios else ""
        return f"{self.ratio:8.3f} x {spread:13} {self.title} / {self.peer}  {self.rate} {verdict}"


def write_report(
    folder: Path, lines: Sequence[Any], settings: dict[str, Any], *, name: str
) -> Path:
    """Write the table `name`, with date, machine, versions and commit."""
    now = dt.datetime.now(dt.UTC)
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "load_at_end": os.getloadavg()[0],
    }
    report = {
        "date": now.isoformat(timespec="seconds"),
        "machine": machine,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "settings": settings,
        "lines": [line if isinstance(line, dict) else asdict(line) for line in lines],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{machine['cores']}cpu-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().split("model name\t: ")[1:] if info.exists() else []
    return names[0].partition("\n")[0] if names else platform.processor()


def _commit() -> str:
    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+changes" if git("status", "--short", *FOLDERS) else ""
    )


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return lines with the same keys as a Markdown table; None becomes an empty cell."""
    rows = [[_shown(value) for value in line.values()] for line in lines]
    head = [list(lines[0]), ["---"] * len(lines[0])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
