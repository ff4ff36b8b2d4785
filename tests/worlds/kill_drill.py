"""Kills of the work of `kill_work`, on a Ray that stays up: of its driver, a worker, the group.

How it is made sure that a kill hits work: it comes after a drawn number of new files in the lake, a
worker is chosen while Ray's title of it names our task, and what a dead driver had last written of
its stage must not be its end. Kills that do not hit are not counted.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.cohort import make_cohort
from featurestore import open_lake, vacuum, verify
from tests.worlds.kill_work import END, STAGE
from tests.worlds.kills import children, command_of, descendants, end, started
from tests.worlds.small_lake import contents

#: A driver sees a worker of it die before it dies itself, alone or with all its workers.
KINDS = ("worker", "driver", "worker", "group")
MOST_FILES, LONGEST_WAIT_S = 30, 0.5
PATIENCE_S = 600.0
TRIES = 4


def make_slides(folder: Path) -> None:
    """Five small slides, and another scan of the first of them."""
    made = make_cohort(
        folder / "cohort", patients=2, slides=6, width_px=1024, height_px=768, workers=1
    )
    files = sorted((made.parent / "slides").glob("*.svs"))
    (folder / "again").mkdir()
    files[-1].rename(folder / "again" / files[-1].name)
    for file in files[:-1]:
        file.rename(folder / file.name)
    shutil.rmtree(folder / "cohort")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill that hit.

    Attributes:
        kind: of what; see `KINDS`.
        stage: what the driver was at.
        files: how many files the lake had.
        processes: how many were killed.
    """

    kind: str
    stage: str
    files: int
    processes: int


class Drill:
    """Kills one process after the other in a folder; goes on where an earlier drill was stopped.

    Ray must be initialised in this process.

    Args:
        folder: of the slides, the undisturbed lake, the lakes to be killed and `kills.json`.
        seed: another one draws other moments.

    Attributes:
        kills: those that hit, so far.
        lakes: lakes that came to their end after kills, and were as the undisturbed one.
        verified: how often a lake was found whole after a kill of a driver.
    """

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self.folder = folder
        self._lake, self._slides = folder / "lake", folder / "lake-slides"
        self._record = folder / "kills.json"
        value = json.loads(self._record.read_text()) if self._record.exists() else {}
        self.kills = [Kill(**one) for one in value.get("kills", [])]
        self.lakes, self.verified = int(value.get("lakes", 0)), int(value.get("verified", 0))
        self._chance = random.Random(f"{seed} {len(self.kills)}")
        self._failures = 0

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
        """Return a hash of a whole lake: all rows, features, checksums of all shards."""
        lake = open_lake(self.folder / name)
        verdict = verify(lake)
        assert verdict.ok, verdict.as_dict()
        return hashlib.sha256(repr(contents(lake)).encode()).hexdigest()

    def run(self, kills: int) -> None:
        """Kill until so many kills have hit, each kind in its turn; then let the last lake end."""
        while len(self.kills) < kills:
            self._one_driver(kills)
        self.close()

    def _one_driver(self, kills: int) -> None:
        """Start the work and kill: its workers first, then itself; compare the lake if it ends."""
        with self._driver("lake") as driver:
            while len(self.kills) < kills:
                kind = KINDS[len(self.kills) % len(KINDS)]
                kill = self._killed(driver, kind)
                if kill is None:
                    break
                self.kills.append(kill)
                self._save()
                if kind != "worker":
                    self._look()
                    return
            code = driver.wait(timeout=PATIENCE_S)
        if not self._never_began(code):
            # A worker's death is no end of its driver; a kill after the last act is no failure.
            assert code == 0 or self._stage() == END, (code, self._log())
            self.close()

    def _never_began(self, code: int) -> bool:
        """Whether a driver ended before its work, as when Ray does not answer a busy machine."""
        self._failures = self._failures + 1 if code and self._stage() == "start" else 0
        return 0 < self._failures < TRIES

    def _killed(self, driver: subprocess.Popen[bytes], kind: str) -> Kill | None:
        """Kill at a moment of the work; None if the work ended before."""
        files = self._files() + self._chance.randint(1, MOST_FILES)
        deadline = time.monotonic() + PATIENCE_S
        pids: list[int] = []
        while not pids:
            assert time.monotonic() < deadline, f"no {kind} at work: {self._log()}"
            if driver.poll() is not None or self._stage() == END:
                return None
            time.sleep(0.02)
            if self._files() >= files:
                time.sleep(self._chance.uniform(0.0, LONGEST_WAIT_S) if kind != "worker" else 0.0)
                pids = victims(driver.pid, kind)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if kind != "worker":
            driver.wait()
        if self._stage() == END:
            return None
        return Kill(kind=kind, stage=self._stage(), files=self._files(), processes=len(pids))

    def _look(self) -> None:
        """Verify the lake that a dead driver has left."""
        if (self._lake / "lake.json").exists():
            verdict = verify(open_lake(self._lake))
            assert verdict.ok, verdict.as_dict()
            self.verified += 1
            self._save()

    def close(self) -> None:
        """Let the work on the lake end, and compare it; the next kill begins another lake."""
        if not self._slides.exists():
            return
        self._finish("lake")
        assert self.digest("lake") == self._end, "the lake is not as the undisturbed one"
        vacuum(open_lake(self._lake))
        assert self.digest("lake") == self._end, "the vacuum changed the lake"
        shutil.rmtree(self._lake)
        shutil.rmtree(self._slides)
        self.lakes += 1
        self._save()

    def _finish(self, name: str) -> None:
        slides = self.folder / f"{name}-slides"
        if slides.exists() and (slides / STAGE).exists() and (slides / STAGE).read_text() == END:
            return
        with self._driver(name) as driver:
            assert driver.wait(timeout=PATIENCE_S) == 0, self._log()

    @contextlib.contextmanager
    def _driver(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        import ray

        slides = self.folder / f"{name}-slides"
        if not slides.exists():  # each lake has its own: one of them is scanned again
            shutil.copytree(self.folder / "slides", slides)
        command = ["-m", "tests.worlds.kill_work", str(self.folder / name), str(slides)]
        address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        driver = started(command, log=self.folder / "log.txt", environ=address)
        try:
            yield driver
        finally:
            end(driver)

    def _stage(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._slides / STAGE).read_text()
        return "start"

    def _files(self) -> int:
        """Return the number of the lake's files, without those of locks and of work in hand."""
        return sum(
            path.suffix not in (".tmp", ".lock") and path.parent.name != "leases"
            for path in self._lake.rglob("*.*")
        )

    def _log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]

    def _save(self) -> None:
        value = {
            "kills": [asdict(one) for one in self.kills],
            "lakes": self.lakes,
            "verified": self.verified,
        }
        temporary = self._record.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.replace(self._record)


def victims(driver: int, kind: str) -> list[int]:
    """The processes that a kill takes: a driver, one worker at work, or the driver and all workers.

    The group includes idle workers and the workers' own children, which decode slides, but not
    Ray's servers.
    """
    (raylet,) = (pid for pid in children(os.getpid()) if b"raylet/raylet" in command_of(pid))
    workers = [pid for pid in children(raylet) if b"gent" not in command_of(pid)]
    if kind == "worker":
        return [pid for pid in workers if at_work(command_of(pid))][:1]
    if kind == "driver":
        return [driver]
    return [driver, *(pid for worker in workers for pid in (worker, *descendants(worker)))]


def at_work(command: bytes) -> bool:
    """Whether a worker's title says that it cuts a slide or runs a teacher just now."""
    return command.startswith((b"ray::Map(", b"ray::UnitWorker."))
