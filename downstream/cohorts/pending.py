"""Labelled slides that an ingest has not cut yet: a study without them notes it."""

from collections.abc import Iterable

import polars as pl

from downstream.cohorts.cohort_errors import listing


def pending_note(slides: pl.DataFrame, labelled: Iterable[str], by: str) -> list[str]:
    """Return a sentence on slides that are labelled and pending; none if there are none.

    Args:
        slides: `slide_id`, `state`, and `by` per slide of the lake.
        labelled: Ids that have a label.
        by: Whether these are of slides (`slide_id`) or patients (`patient_id`).
    """
    which = (pl.col("state") == "pending") & pl.col(by).is_in(list(labelled))
    names = slides.filter(which)["slide_id"].sort().to_list()
    if not names:
        return []
    left_out = f"{len(names)} slides pending, labelled and left out: {listing(names)}"
    return [f"{left_out}; slidelake ingest goes on with them"]
