"""What a Ray worker does with a slide: hand it to a child process and pass on what comes back.

Nothing of ours is imported here that takes time, so that a worker is ready as soon as Ray is.
"""

import functools
from typing import Any

from cluster import DiedError, Isolated


def cut_apart(task_row: dict[str, Any]) -> dict[str, Any]:
    """Cut a slide in this worker's child process, which a decoder may crash or hang.

    Args:
        task_row: `job`, pickled arguments of `cut_or_reason`; `limit_s`, its time; and `number`.

    Returns:
        `number`; `outcome`, pickled, or empty if the child died; `died`, how the child died.
    """
    outcome, died = b"", ""
    try:
        outcome = _child().call_pickled(task_row["job"], limit_s=task_row["limit_s"])
    except DiedError as error:
        died = str(error)
    return {"number": task_row["number"], "outcome": outcome, "died": died}


@functools.cache
def _child() -> Isolated:
    return Isolated("ingest.cut:cut_or_reason")
