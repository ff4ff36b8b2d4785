"""Slides cut by child processes of this machine, where no Ray is up and none is named.

What Ray would run on one machine is a worker with such a child for each core; here the child alone
is started, so the first slide is cut seconds after the command.
"""

import contextlib
import pickle
from collections.abc import Generator, Sequence

from cluster import ChildPool, DiedError, loaded_extensions
from featurestore import LakeConfig, SlideCut, Store
from ingest.cut import failure
from ingest.errors import SlideError
from ingest.select.named_slides import Row

SLOWEST_BYTES_S = 1e6  # a slide may take so much longer


def cut_here(
    store: Store,
    config: LakeConfig,
    todo: Sequence[Row],
    slide_timeout_s: float,
    *,
    workers: int,
) -> Generator[SlideCut | Row]:
    """Yield each slide as it is cut, or its row with the reason why it was not.

    Args:
        store: the lake's files.
        config: settings of the lake.
        todo: rows of the slides.
        slide_timeout_s: seconds, plus one for each MB, after which a slide is given up.
        workers: number of processes.
    """
    extensions = loaded_extensions()
    jobs = (
        (
            pickle.dumps((store, config, row, extensions)),
            slide_timeout_s + (row["bytes"] or 0) / SLOWEST_BYTES_S,
        )
        for row in todo
    )
    pool = ChildPool("ingest.cut:cut_or_reason", min(workers, len(todo)))
    with contextlib.closing(pool.map(jobs)) as results:
        for number, outcome in results:
            if isinstance(outcome, DiedError):
                yield failure(todo[number], SlideError(f"cutting it {outcome}"))
            else:
                yield pickle.loads(outcome)
