"""Labelled slides that an ingest has not cut yet: a study without them notes it."""

from collections.abc import Iterable

import polars as pl

from cluster import counted
from downstream.cohorts.cohort_errors import listing


def pending_note(slides: pl.DataFrame, labelled: Iterable[str], id_column: str) -> list[str]:
    """Return a list with one sentence on the labelled slides that are pending, or without any.

    Args:
        slides: `slide_id`, `state`, and `id_column` per slide of the lake.
        labelled: ids that have a label.
        id_column: column of these ids: `slide_id` or `patient_id`.
    """
    is_pending = (pl.col("state") == "pending") & pl.col(id_column).is_in(list(labelled))
    pending_slides = slides.filter(is_pending)["slide_id"].sort().to_list()
    if not pending_slides:
        return []
    left_out = (
        f"{counted(len(pending_slides), 'slide')} pending, labelled and left out: "
        f"{listing(pending_slides)}"
    )
    return [f"{left_out}; slidelake ingest goes on with them"]
