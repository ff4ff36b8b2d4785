"""What a job says of itself: an event in the log for each slide and commit, and its metrics.

Events are lines of the JSON progress (`cluster.progress`); metrics go to Prometheus through Ray.
A job that can't be counted goes on: whoever watches must not be able to stop it.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from cluster.progress import Progress
from cluster.watch.ray_metrics import Metrics
from cluster.watch.reasons import reason_class
from cluster.watch.secret_texts import without_secrets

log = logging.getLogger(__name__)


class JobWatch:
    """The counter of one job's slides, commits and waits, beside its progress.

    Args:
        command: name of the command, such as `ingest`.
        lake: URI of the lake.
        bar: progress of the job, whose log gets the events.
    """

    def __init__(self, command: str, lake: str, bar: Progress) -> None:
        self._bar = bar
        self._metrics = Metrics(command, without_secrets(lake))
        self._is_counted = True
        self._started: float | None = time.perf_counter()

    def slide(
        self,
        slide_id: str,
        *,
        reason: str | None = None,
        seconds: float | None = None,
        counted: bool = True,
        **counts: int | float | str,
    ) -> None:
        """Note that a slide ended.

        Args:
            slide_id: the slide.
            reason: why it failed; None if it did not.
            seconds: seconds of work that it took.
            counted: whether it counts as a slide of the metrics; False where a job sees a slide
                several times, as an extract does at each mpp.
            **counts: further facts of the event; `tiles`, `bytes` and `tile_features` are metrics,
                too.
        """
        state = "ready" if reason is None else "failed"
        facts: dict[str, object] = {"slide": slide_id, "state": state, **counts}
        if seconds is not None:
            facts["seconds"] = round(seconds, 3)
        if reason is not None:
            facts |= {"class": reason_class(reason), "reason": without_secrets(reason)}
        self._bar.event("slide", facts)
        with self._counting():
            if counted:
                self._metrics.add("slidelake_slides", 1, state=state)
            if reason is not None:
                self._metrics.add("slidelake_failures", 1, reason=reason_class(reason))
            self._count(counts)
            self._progressed()

    def _count(self, counts: Mapping[str, int | float | str]) -> None:
        names = {"tiles": "tiles", "bytes": "slide_bytes", "tile_features": "tile_features"}
        for name, metric in names.items():
            self._metrics.add(f"slidelake_{metric}", float(counts.get(name) or 0))

    def features(self, tile_features: int) -> None:
        """Count embeddings of a slide that has not ended."""
        with self._counting():
            self._count({"tile_features": tile_features})
            self._progressed()

    @contextlib.contextmanager
    def commit(self, **facts: int | float | str) -> Iterator[None]:
        """Note a commit, with its seconds and what it holds, once the block has made it."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._bar.event("commit", {**facts, "seconds": round(seconds, 3)})
        with self._counting():
            self._metrics.add("slidelake_commits", 1)
            self._metrics.add("slidelake_commit_seconds", seconds)

    def waited(self, cause: str, seconds: float) -> None:
        """Count seconds that were waited, by their cause, such as `data`."""
        with self._counting():
            self._metrics.add("slidelake_wait_seconds", seconds, cause=cause)

    def steps(self, steps: int, *, tiles: int, waited_s: float) -> None:
        """Count steps of training, their tiles, and the seconds in which they waited for data."""
        with self._counting():
            self._metrics.add("slidelake_train_steps", steps)
            self._metrics.add("slidelake_tiles", tiles)
            self._metrics.add("slidelake_wait_seconds", waited_s, cause="data")
            if steps:
                self._progressed()

    def epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """Note that an epoch of training ended, with its losses by term."""
        self._bar.event("epoch", {"epoch": epoch, "losses": dict(losses)})
        with self._counting():
            for term, loss in losses.items():
                self._metrics.set("slidelake_train_loss", loss, term=term)

    def _progressed(self) -> None:
        if self._started is not None:  # nodes that have to come, and workers that start
            waited_s = time.perf_counter() - self._started
            self._metrics.add("slidelake_wait_seconds", waited_s, cause="start")
            self._started = None
        now = self._bar.snapshot()
        if now.total is not None:
            self._metrics.set("slidelake_units_left", max(0, now.total - now.done), unit=now.unit)
        self._metrics.set("slidelake_last_progress_timestamp_seconds", time.time())

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Go on without a metric that Ray does not take, and warn of the first."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a job must not fail by being watched
            if self._is_counted:
                log.warning("metrics are not counted: %s: %s", type(error).__name__, error)
            self._is_counted = False
