"""A lake that is killed while Ray makes it: ingest, extract, a slide scanned again, extract.

    python -m tests.kill_drill LAKE SLIDES

does the work, and goes on where it was killed. `Drill` kills it, looks at the lake after each kill,
and in the end compares it with one that was left in peace.
"""

import hashlib
import json
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import ray_session
from examples.cohort import make_cohort
from featurestore import Lake, LakeConfig, open_lake, vacuum, verify
from tests.conftest import ROOT
from tests.kills import KINDS, end, kill, started, wait_for_work
from tests.small_lake import contents

CONFIG = LakeConfig(mpps=(0.5, 2.0))
ENCODER = str(ROOT / "examples" / "own_encoder.py")
LONGEST_WAIT_S = 4.0
TRIES = 4


def work(lake: Path, slides: Path) -> Lake:
    """Bring a lake to its known end; what is done already is left as it is."""
    from ingest import ray_extract, ray_ingest

    ray_extract.COMMIT_S = (
        0.0  # a commit for each fragment, so that there is something to be between
    )

    def cut() -> None:
        given = sorted(str(path) for path in slides.glob("*.svs"))
        result = ray_ingest.ingest(str(lake), given, CONFIG, commit_slides=1, retry_failed=True)
        assert not result.failed, result.failed
        assert not ray_extract.extract(str(lake), [ENCODER]).failed

    with ray_session(num_cpus=2):
        cut()
        scan_again(slides)
        cut()
    return open_lake(lake)


def scan_again(slides: Path) -> None:
    """Put another scan in the place of the first slide."""
    first, again = min(slides.glob("*.svs")), min(slides.glob("again/*"))
    if first.stat().st_size != again.stat().st_size:
        shutil.copy(again, slides / "copy.tmp")
        (slides / "copy.tmp").replace(first)


def make_slides(folder: Path) -> None:
    """Three small slides, and another scan of the first of them."""
    made = make_cohort(
        folder / "cohort", patients=2, slides=4, width_px=1024, height_px=768, workers=1
    )
    files = sorted((made.parent / "slides").glob("*.svs"))
    (folder / "again").mkdir()
    files[-1].rename(folder / "again" / files[-1].name)
    for file in files[:-1]:
        file.rename(folder / file.name)
    shutil.rmtree(folder / "cohort")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: of what, how many seconds after the first sign of work, and at which version."""

    kind: str
    after_s: float
    version: int


class Drill:
    """Kills one process after the other in a folder; goes on where an earlier drill was stopped.

    Args:
        folder: of the slides, the undisturbed lake, the lakes to be killed and `kills.json`.
        seed: another one draws other moments.

    Attributes:
        kills: those that hit, so far.
        lakes: lakes that came to their end after kills, and were as the undisturbed one.
    """

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self.folder = folder
        self._chance = random.Random(f"{seed} {time.time_ns()}" if seed else 0)
        self._failures = 0
        self._record = folder / "kills.json"
        value = json.loads(self._record.read_text()) if self._record.exists() else {}
        self.kills = [Kill(**one) for one in value.get("kills", [])]
        self.lakes = int(value.get("lakes", 0))

    def prepare(self) -> None:
        """Make the slides and the undisturbed lake, unless they are there."""
        if not (self.folder / "undisturbed.done").exists():
            for name in ("slides", "undisturbed", "undisturbed-slides"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / "slides").mkdir(parents=True)
            make_slides(self.folder / "slides")
            self._finish("undisturbed")
            (self.folder / "undisturbed.done").touch()
        self._end = self.digest("undisturbed")

    def digest(self, name: str) -> str:
        """What a lake holds, as a hash: all rows, features, checksums."""
        lake = open_lake(self.folder / name)
        verdict = verify(lake)
        assert verdict.ok, verdict.as_dict()
        return hashlib.sha256(repr(contents(lake)).encode()).hexdigest()

    def run(self, kills: int) -> None:
        """Kill until so many kills have hit, each kind in its turn; then let the last lake end."""
        while len(self.kills) < kills:
            kind = KINDS[len(self.kills) % len(KINDS)]
            if not self._killed(kind):
                self.close()
        self.close()

    def _killed(self, kind: str) -> bool:
        """Kill the work on the lake; False if it had ended before."""
        lake = self.folder / "lake"
        process = started(self._command("lake"), log=self.folder / "log.txt")
        try:
            wait_for_work(process, lambda: commits(lake))
            wait_s = self._chance.uniform(0.0, LONGEST_WAIT_S)
            time.sleep(wait_s)
            hit = kill(process, kind)
        finally:
            end(process)
        if not hit:
            # Ray itself may fail to start on a busy machine, which is no end of the work.
            return self._failed_to_start(process.returncode)
        self._failures = 0
        version = 0
        if (lake / "lake.json").exists():
            opened = open_lake(lake)
            version = opened.version
            verdict = verify(opened)
            assert verdict.ok, verdict.as_dict()
        self.kills.append(Kill(kind=kind, after_s=round(wait_s, 2), version=version))
        self._save()
        return True

    def _failed_to_start(self, code: int) -> bool:
        """Whether the work has to be tried again, since it ended by itself and not well."""
        self._failures += code != 0
        assert self._failures < TRIES, (self.folder / "log.txt").read_text()[-2000:]
        return code != 0

    def close(self) -> None:
        """Let the work on the lake end, and compare it; the next kill begins another lake."""
        if not (self.folder / "lake-slides").exists():
            return
        self._finish("lake")
        assert self.digest("lake") == self._end
        vacuum(open_lake(self.folder / "lake"))
        assert self.digest("lake") == self._end
        for name in ("lake", "lake-slides"):
            shutil.rmtree(self.folder / name)
        self.lakes += 1
        self._save()

    def _finish(self, name: str) -> None:
        codes: list[int] = []
        while 0 not in codes:
            assert len(codes) < TRIES, (self.folder / "log.txt").read_text()[-2000:]
            process = started(self._command(name), log=self.folder / "log.txt")
            codes.append(process.wait(timeout=900))
            end(process)

    def _command(self, name: str) -> list[str]:
        slides = self.folder / f"{name}-slides"
        if not slides.exists():  # each lake has its own: one of them is scanned again
            shutil.copytree(self.folder / "slides", slides)
        return ["-m", "tests.kill_drill", str(self.folder / name), str(slides)]

    def _save(self) -> None:
        value = {"kills": [asdict(one) for one in self.kills], "lakes": self.lakes}
        temporary = self._record.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.replace(self._record)


def commits(lake: Path) -> int:
    """How many manifests the tables of a lake have."""
    return sum(1 for _ in lake.glob("**/_versions/*.manifest"))


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
