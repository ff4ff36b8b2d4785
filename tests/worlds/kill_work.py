"""The work that `kill_drill` kills: ingest, extract, a slide scanned again, and both once more.

    python -m tests.worlds.kill_work LAKE SLIDES

goes on where it was killed. It imports nothing of the tests, so that it is at work soon. In
`SLIDES/stage.txt` stands what it is at; "end" is its last act.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from cluster import ray_session
from featurestore import LakeConfig
from ingest import ray_ingest
from ingest.teachers import ray_extract
from ingest.teachers.work.unit_queue import SIZES, UnitSizes

CONFIG = LakeConfig(mpps=(0.5, 2.0))
ENCODER = str(Path(__file__).resolve().parents[2] / "examples" / "own_encoder.py")
STAGE, END = "stage.txt", "end"
TRIES = 4


class Result(Protocol):
    """The result of a job."""

    @property
    def failed(self) -> Sequence[dict[str, str]]:
        """Return the failures, with reasons."""


def work(lake: Path, slides: Path) -> None:
    """Bring a lake to its last state; what is done already is left as it is."""
    ray_extract.COMMIT_S = 0.0  # a commit for each fragment: more places to be killed at
    ray_extract.HERE_TILES = 0
    SIZES["cpu"] = UnitSizes(first=8, least=8, most=8, grain=4)  # and parts of columns
    say(slides, "start")
    with ray_session(num_cpus=None if "RAY_ADDRESS" in os.environ else 2):
        cut_and_extract(lake, slides, "first")
        scan_again(slides)
        cut_and_extract(lake, slides, "again")
    say(slides, END)


def cut_and_extract(lake: Path, slides: Path, scan: str) -> None:
    """One ingest and one extract over all slides."""
    paths = sorted(str(path) for path in slides.glob("*.svs"))
    say(slides, f"ingest {scan}")
    insist(lambda: ray_ingest.ingest(str(lake), paths, CONFIG, commit_slides=1, retry_failed=True))
    say(slides, f"extract {scan}")
    insist(lambda: ray_extract.extract(str(lake), [ENCODER]))


def insist(job: Callable[[], Result]) -> None:
    """Run a job until nothing fails: what a dead worker had in hand may have to be asked again."""
    for tries_left in reversed(range(TRIES)):
        failed = job().failed
        if not failed:
            return
        print(f"failed, {tries_left} tries left: {failed}", file=sys.stderr, flush=True)
    raise SystemExit(3)


def say(slides: Path, stage: str) -> None:
    """Write down what is being done."""
    temporary = slides / f"{STAGE}.tmp"
    temporary.write_text(stage)
    temporary.replace(slides / STAGE)


def scan_again(slides: Path) -> None:
    """Put another scan in the place of the first slide."""
    first, again = min(slides.glob("*.svs")), min(slides.glob("again/*"))
    if first.stat().st_size != again.stat().st_size:
        shutil.copy(again, slides / "copy.tmp")
        (slides / "copy.tmp").replace(first)


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
