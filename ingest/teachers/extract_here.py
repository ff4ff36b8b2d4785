"""An extract in this process, for work that is smaller than the start of Ray."""

import pickle
from collections.abc import Generator, Sequence

from featurestore import Store
from ingest.teachers.extractor import Extractor
from ingest.teachers.find_teacher import Teacher
from ingest.teachers.work.unit_queue import UnitQueue
from ingest.teachers.work.units import Outcome


def outcomes_here(
    store: Store, teachers: Sequence[Teacher], tasks: UnitQueue, *, threads: int
) -> Generator[Outcome]:
    """Run all units and joins of a queue in this process; yield the outcomes as they come.

    Args:
        store: the lake's files.
        teachers: encoders of the columns.
        tasks: the work.
        threads: number of threads of the networks.
    """
    import torch

    extractor, threads_before = Extractor(), torch.get_num_threads()
    settings = {
        "teachers": pickle.dumps(list(teachers)),
        "store": store.uri,
        "threads": threads,
        "device": "cpu",
    }
    try:
        while (task := tasks.take_join() or tasks.take()) is not None:
            answer = extractor({**settings, "unit": pickle.dumps(task)})
            outcome: Outcome = pickle.loads(answer["outcome"])
            tasks.finished(outcome)
            yield outcome
    finally:
        torch.set_num_threads(threads_before)
