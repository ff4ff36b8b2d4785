"""The whole way on a small cohort, written with the functions that `slidelake` exports.

They are imported from their packages, since the command `slidelake demo` imports this module.

Every stage checks the lake and computes what is missing, so running it again after a
kill goes on, and running it again after the end takes seconds. What each stage took the first
time is kept in `demo.json` in the lake.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import is_quiet
from distill import distill, extract, make_recipe, stats
from downstream import Plan, run_mil, run_survival, write_report
from downstream.survival import has_scikit_survival
from examples.cohort import make_cohort
from examples.sample_slide import REAL_SLIDE
from featurestore import LakeConfig
from ingest import ingest

TEACHERS = ("efficientnet_lite0", "efficientnet_lite1")
STUDENT = "student"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """The size of the demo.

    Attributes:
        patients: number of synthetic patients.
        slides: number of synthetic slides; the first patients have two.
        width_px: width of a synthetic slide at level 0.
        height_px: height of a synthetic slide at level 0.
        mpps: microns per pixel of the tiles.
        epochs: number of epochs of the student's training.
        folds: number of folds of the cross-validations.
        teachers: teachers that the student learns from.
        survival: whether Cox regression is run.
        seed: random seed of all stages.
    """

    patients: int = 24
    slides: int = 32
    width_px: int = 2560
    height_px: int = 2304
    mpps: tuple[float, ...] = (0.5, 2.0)
    epochs: int = 12
    folds: int = 5
    teachers: tuple[str, ...] = TEACHERS
    survival: bool = True
    seed: int = 0


#: The whole way in less than a minute on two cores; so few patients that no figure means a thing.
QUICK = DemoSettings(
    patients=8,
    slides=8,
    width_px=1280,
    height_px=1024,
    mpps=(0.5,),
    epochs=2,
    folds=2,
    teachers=TEACHERS[:1],
    survival=False,
)


class Stages:
    """A clock of stages; a stage that was finished before keeps the time that it took then."""

    def __init__(self, lake: Path) -> None:
        self._file = lake / "demo.json"
        self.seconds: dict[str, float] = {}
        self._done: list[str] = []
        if self._file.exists():
            kept = json.loads(self._file.read_text())
            self.seconds, self._done = kept["stages"], kept["done"]

    def run(self, name: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Run a stage and keep its time; the times of unfinished tries add up."""
        start = time.perf_counter()
        try:
            result = work()
            seconds = time.perf_counter() - start
            _say(f"demo: {name} done in {seconds:.1f} s")
        except BaseException:
            self._keep(name, time.perf_counter() - start, done=False)
            raise
        self._keep(name, seconds, done=True)
        return result

    def _keep(self, name: str, seconds: float, *, done: bool) -> None:
        if name not in self._done:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
            self._done += [name] if done else []
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"stages": self.seconds, "done": self._done}, indent=2))
        temporary.replace(self._file)


def run_demo(folder: Path, settings: DemoSettings) -> dict[str, Any]:
    """Make a lake in `folder` with all stages of the demo, and return its report.

    Raises:
        RuntimeError: slides of the demo's own cohort failed; the message names them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages, lake = Stages(folder), str(folder)
    _stages(stages, lake, folder, settings)
    description = {
        "synthetic": True,
        "cohort": asdict(settings),
        "real_slide": REAL_SLIDE.name,
    }
    report: dict[str, Any] = write_report(lake, stages=stages.seconds, about=description)
    return report


def _stages(stages: Stages, lake: str, folder: Path, settings: DemoSettings) -> None:
    labels = stages.run("cohort", lambda: _cohort(folder, settings))
    stages.run("ingest", lambda: _ingest(lake, labels, settings))
    stages.run("extract", lambda: _extract(lake, settings.teachers))
    stages.run("stats", lambda: stats(lake, settings.teachers, seed=settings.seed))
    stages.run("distill", lambda: _distill(lake, settings))
    stages.run("extract student", lambda: _extract(lake, (STUDENT,)))
    features = [*settings.teachers, STUDENT]
    stages.run("mil", lambda: _mil(lake, labels, features, settings))
    if settings.survival and has_scikit_survival():
        stages.run("survival", lambda: _survival(lake, labels, features, settings))


def _cohort(folder: Path, settings: DemoSettings) -> Path:
    def report_progress(done: int, total: int) -> None:
        if done % 8 == 0 or done == total:
            _say(f"cohort: {done}/{total} slides")

    labels = make_cohort(
        folder / "cohort",
        patients=settings.patients,
        slides=settings.slides,
        width_px=settings.width_px,
        height_px=settings.height_px,
        seed=settings.seed,
        on_slide=report_progress,
    )
    real = folder / "cohort" / REAL_SLIDE.name
    if not real.exists():
        temporary = real.with_suffix(".tmp")
        shutil.copyfile(REAL_SLIDE, temporary)
        temporary.replace(real)
    return labels


def _say(line: str) -> None:
    """Print a line on the progress, unless none is shown."""
    if not is_quiet():
        sys.stderr.write(f"{line}\n")


def _ingest(lake: str, labels: Path, settings: DemoSettings) -> None:
    config = LakeConfig(tile_px=256, mpps=settings.mpps)
    inputs = [str(labels), str(labels.parent / REAL_SLIDE.name)]
    # Small commits: a fragment is the unit of extract, and two cores want several of them.
    result = ingest(lake, inputs, config, commit_slides=8, retry_failed=True)
    _refuse(result.failed)


def _extract(lake: str, teachers: tuple[str, ...]) -> None:
    _refuse(extract(lake, teachers).failed)


def _distill(lake: str, settings: DemoSettings) -> None:
    recipe = make_recipe(
        "agglomerate",
        settings.teachers,
        epochs=settings.epochs,
        split_seed=settings.seed,
        seed=settings.seed,
    )
    distill(lake, recipe, name=STUDENT)


def _mil(lake: str, labels: Path, features: list[str], settings: DemoSettings) -> None:
    plan = Plan(folds=settings.folds)
    run_mil(lake, labels, "label", features, mpps=(0.5,), plan=plan, seed=settings.seed)


def _survival(lake: str, labels: Path, features: list[str], settings: DemoSettings) -> None:
    run_survival(
        lake,
        labels,
        "time_months",
        "event",
        features,
        mpps=(0.5,),
        plan=Plan(folds=settings.folds),
        seed=settings.seed,
    )


def _refuse(failed: list[dict[str, str]]) -> None:
    if failed:
        reasons = "; ".join(f"{f['slide']}: {f['reason']}" for f in failed)
        msg = f"slides of the demo's own cohort failed: {reasons}"
        raise RuntimeError(msg)
