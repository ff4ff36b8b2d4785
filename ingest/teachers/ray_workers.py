"""Workers of an extract as Ray actors: each runs one unit after the other; lost ones are replaced.

Plain actors and `ray.wait`, not Ray Data: nothing but units and outcomes travels, so that there is
nothing to stream, and its import of two seconds is spared. A worker gets units once it is up, so
that one that waits for a node keeps no unit from the others.
"""

import contextlib
import pickle
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster import ClusterError, NodeShape, Placement, node_shapes, room
from ingest.teachers.work.unit_queue import UnitQueue
from ingest.teachers.work.units import Join, Outcome, Unit, outcome_of

#: Seconds between two looks at the nodes, and until a word is said of workers that do not start.
LOOK_S, WAITING_S = 15.0, 60.0
#: Workers that may die one after the other before any of them was up.
STARTS = 5


def waiting_line(placement: Placement, shapes: Sequence[NodeShape]) -> str:
    """Return the line that says why no worker has started.

    Args:
        placement: the workers.
        shapes: the nodes that are up.

    >>> two = Placement(device="cpu", workers=2, cpus_per_worker=8.0, gpus_per_worker=0.0)
    >>> waiting_line(two, [NodeShape(cpus=16, gpus=0, count=1)])
    'no worker has started in 60 s: other jobs hold the nodes'
    """
    line = f"no worker has started in {WAITING_S:.0f} s"
    if room(shapes, placement.cpus_per_worker, placement.gpus_per_worker):
        return f"{line}: other jobs hold the nodes"
    nodes = ", ".join(map(str, shapes)) or "none with CPUs"
    return f"{line}: no node that is up holds one of {placement} (nodes up: {nodes})"


class UnitWorker:
    """The actor; `ready` is answered once it is up, and joins run beside units."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from ingest.teachers.extractor import Extractor

        self._settings = settings
        self._extractor, self._joiner = Extractor(), Extractor()

    def ready(self) -> str:
        """Return the id of the worker's node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def fill(self, unit: bytes) -> bytes:
        """Compute a pickled unit and return its pickled outcome."""
        outcome: bytes = self._extractor({**self._settings, "unit": unit})["outcome"]
        return outcome

    def join(self, join: bytes) -> bytes:
        """Join the parts of a fragment and return the pickled outcome."""
        outcome: bytes = self._joiner({**self._settings, "unit": join})["outcome"]
        return outcome


@dataclass(kw_only=True)
class _Worker:
    """An actor with the tasks that it has in hand; `node` is empty until it is up."""

    actor: Any
    node: str = ""
    busy: bool = False
    joins: int = 0


@dataclass(kw_only=True)
class _Flight:
    """A call of an actor that has not been answered; without a task it asks whether it is up."""

    worker: _Worker
    task: Unit | Join | None = None


class WorkerPool:
    """The actors of one extract.

    Args:
        settings: what `Extractor` gets with each unit.
        placement: number and size of the workers.
        grows: whether workers are added when the cluster grows.
        note: shows a line to the user.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        placement: Placement,
        *,
        grows: bool,
        note: Callable[[str], None],
    ) -> None:
        import ray

        self._settings = ray.put(settings)  # once, however many workers there are
        actor = ray.remote(concurrency_groups={"join": 1})(UnitWorker)
        self._actor = actor.options(
            num_cpus=placement.cpus_per_worker, num_gpus=placement.gpus_per_worker
        )
        self._placement, self._grows, self._note = placement, grows, note
        self._workers: list[_Worker] = []
        self._flights: dict[Any, _Flight] = {}
        self._looked = self._since = time.monotonic()
        self._lost_starts = 0

    def outcomes(self, tasks: UnitQueue) -> Generator[Outcome]:
        """Run all units and joins of a queue; yield the outcomes as they come.

        Raises:
            ClusterError: no worker can be started.
        """
        import ray

        try:
            for _ in range(self._placement.workers):
                self._hire()
            while not tasks.is_done:
                self._give(tasks)
                done, _ = ray.wait(list(self._flights), num_returns=1, timeout=LOOK_S)
                for ref in done:
                    flight = self._flights.pop(ref)
                    if (outcome := self._answer(ref, flight, tasks)) is not None:
                        yield outcome
                self._look(tasks)
        finally:
            self._dismiss()

    def _hire(self) -> None:
        """Start one more actor."""
        worker = _Worker(actor=self._actor.remote(self._settings))
        self._workers.append(worker)
        self._flights[worker.actor.ready.remote()] = _Flight(worker=worker)

    def _give(self, tasks: UnitQueue) -> None:
        """Give each worker that is up and free its next unit, and the joins that are due."""
        up = [worker for worker in self._workers if worker.node]
        while up and (join := tasks.take_join()) is not None:
            worker = min(up, key=lambda one: one.joins)
            worker.joins += 1
            call = worker.actor.join.options(concurrency_group="join")
            self._flights[call.remote(pickle.dumps(join))] = _Flight(worker=worker, task=join)
        for worker in up:
            if not worker.busy and (unit := tasks.take()) is not None:
                worker.busy = True
                ref = worker.actor.fill.remote(pickle.dumps(unit))
                self._flights[ref] = _Flight(worker=worker, task=unit)

    def _answer(self, ref: Any, flight: _Flight, tasks: UnitQueue) -> Outcome | None:  # noqa: ANN401 - a Ray reference is untyped
        """Return the outcome of a call; a lost worker is replaced, and its task taken back.

        Raises:
            ClusterError: workers die before they are up, again and again.
        """
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

        worker, task = flight.worker, flight.task
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if task is None or not isinstance(error.cause, Exception):
                raise
            outcome = outcome_of(task, f"{type(error.cause).__name__}: {error.cause}")
        except (RayActorError, OutOfMemoryError) as error:
            return self._lost(worker, task, tasks, error)
        else:
            if task is None:
                worker.node, self._lost_starts = answer, 0
                return None
            outcome = pickle.loads(answer)
        if isinstance(task, Join):
            worker.joins -= 1
        else:
            worker.busy = False
        tasks.finished(outcome)
        return outcome

    def _lost(
        self, worker: _Worker, task: Unit | Join | None, tasks: UnitQueue, error: Exception
    ) -> Outcome | None:
        """Take back the task of a lost worker; return the outcome if it is given up."""
        import ray

        if worker in self._workers:
            self._workers.remove(worker)
            with contextlib.suppress(Exception):  # it may only be out of reach
                ray.kill(worker.actor)
            if task is None and not worker.node:
                self._lost_starts += 1
                if self._lost_starts >= STARTS:
                    first = str(error).strip().partition("\n")[0]
                    msg = f"{self._lost_starts} workers died before they were up: {first}"
                    raise ClusterError(msg) from error
            self._note("a worker was lost; what it had in hand is done again")
            self._hire()
        if task is None:
            return None
        blamed = self._is_alive(worker.node)
        if (reason := tasks.put_back(task, worker_died=blamed)) is None:
            return None
        return outcome_of(task, reason)

    @staticmethod
    def _is_alive(node: str) -> bool:
        import ray

        return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())

    def _look(self, tasks: UnitQueue) -> None:
        """Now and then: hire for nodes that were added, and say that no worker starts."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if any(worker.node for worker in self._workers):
            self._since = now
        elif now - self._since > WAITING_S:
            self._since = now
            self._note(waiting_line(self._placement, node_shapes(to_come=False)))
        if self._grows and tasks.tiles_left:
            size = self._placement
            places = room(node_shapes(), size.cpus_per_worker, size.gpus_per_worker)
            for _ in range(min(places, tasks.most_workers) - len(self._workers)):
                self._hire()
            tasks.workers = max(tasks.workers, len(self._workers))

    def _dismiss(self) -> None:
        """End all actors: those at work when the job is stopped, and those that never started."""
        import ray

        for worker in self._workers:
            with contextlib.suppress(Exception):  # Ray may be gone, with all its actors
                ray.kill(worker.actor)
