"""What a Ray worker does with a slide: hand it to a child process and pass on what comes back.

Nothing of ours is imported here that takes time, so that a worker is ready as soon as Ray is.
"""

import functools
from typing import Any

from cluster import DiedError, Isolated


def cut_apart(unit: dict[str, Any]) -> list[dict[str, Any]]:
    """Cut slides in this worker's child process, which a decoder may crash or hang.

    Args:
        unit: of each slide `jobs`, pickled arguments of `cut_or_reason`; `limits_s`, its time; and
            `numbers`.

    Returns:
        Of each slide `number`; `outcome`, pickled, or empty if the child died; `died`, how the
        child died.
    """
    outcomes = []
    for number, job, limit_s in zip(unit["numbers"], unit["jobs"], unit["limits_s"], strict=True):
        outcome, died = b"", ""
        try:
            outcome = _child().call_pickled(job, limit_s=limit_s)
        except DiedError as error:
            died = str(error)
        outcomes.append({"number": number, "outcome": outcome, "died": died})
    return outcomes


@functools.cache
def _child() -> Isolated:
    return Isolated("ingest.cut:cut_or_reason")
