"""The content of a lake for a report: slides, students and runs, read from files alone."""

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from ingest.pages import CARD_COLUMNS

if TYPE_CHECKING:
    from featurestore import Lake

Json = dict[str, Any]

PACKAGES = {
    "Ray": "ray",
    "Lance": "pylance",
    "PyTorch": "torch",
    "timm": "timm",
    "OpenSlide (binding)": "openslide-python",
    "OpenSlide (library)": "openslide-bin",
    "Polars": "polars",
    "PyArrow": "pyarrow",
    "WebDataset": "webdataset",
    "scikit-learn": "scikit-learn",
    "scikit-survival": "scikit-survival",
    "matplotlib": "matplotlib",
    "NumPy": "numpy",
}
_KINDS = ("mil", "survival")


@dataclass(frozen=True, kw_only=True)
class HoldingPart:
    """The report of a student, or the result of a finished run.

    Attributes:
        name: name of its folder.
        content: content of `report.json` or `result.json`.
        modified: time when that file was written.
    """

    name: str
    content: Json
    modified: datetime

    @property
    def lake_version(self) -> int:
        """Return the version of the lake that was read; 0 if it is not recorded."""
        return int(self.content.get("lake_version", 0))


@dataclass(frozen=True, kw_only=True)
class Holding:
    """The content of a lake that a report shows, apart from pictures and predictions.

    Attributes:
        info: `Lake.info()`.
        slides: one row per slide, by slide number.
        students: finished students, newest first.
        runs: kind -> finished runs, newest first.
        unfinished: names of runs that have started and have no result.
    """

    info: Json
    slides: pl.DataFrame
    students: list[HoldingPart]
    runs: dict[str, list[HoldingPart]]
    unfinished: list[str]

    def newest(self, kind: str) -> HoldingPart | None:
        """Return the newest finished run of a kind, or None."""
        return next(iter(self.runs[kind]), None)

    @property
    def failed(self) -> list[Json]:
        """Return the slides that failed, and why."""
        rows = self.slides.filter(pl.col("state") == "failed")
        return [
            {"slide": name, "reason": reason or "no reason was kept"}
            for name, reason in rows.select("slide_id", "reason").iter_rows()
        ]


def read_holding(lake: "Lake") -> Holding:
    """Return the slides, students and runs of a lake."""
    finished = _parts(lake, "runs", "result.json")
    names = {part.name for part in finished}
    begun = [name for name in lake.store.names("runs") if name.startswith(("mil-", "survival-"))]
    return Holding(
        info=lake.info(),
        slides=lake.slides().select(CARD_COLUMNS).collect().sort("slide"),
        students=_parts(lake, "students", "report.json"),
        runs={
            kind: [part for part in finished if part.content.get("kind") == kind] for kind in _KINDS
        },
        unfinished=[name for name in begun if name not in names],
    )


def _parts(lake: "Lake", folder: str, file: str) -> list[HoldingPart]:
    """Return the students or runs that are finished, newest first."""
    parts = []
    for name in lake.store.names(folder):
        rel = f"{folder}/{name}/{file}"
        if lake.exists(rel):
            modified = lake.store.fs.modified(lake.store.path(rel))
            parts.append(HoldingPart(name=name, content=lake.read_json(rel), modified=modified))
    return sorted(parts, key=lambda p: (p.lake_version, p.modified, p.name), reverse=True)


def read_earlier(lake: "Lake") -> Json:
    """Return the content of an earlier `report.json`, or an empty dict."""
    if not lake.exists("report.json"):
        return {}
    earlier: Json = json.loads(lake.read_bytes("report.json"))
    return earlier


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that determine a lake's content."""
    versions = {"Python": platform.python_version()}
    for shown, name in PACKAGES.items():
        try:
            versions[shown] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[shown] = "not installed"
    return versions
