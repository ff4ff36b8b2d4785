"""Cumulative incidence of competing events in the predicted risk groups of an arm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from downstream.survival.incidence import cumulative_incidence

GROUPS = ("low risk", "high risk")


def incidence_of_groups(rows: pl.DataFrame, causes: Sequence[str]) -> dict[str, Any]:
    """Return the cumulative incidence of each cause at one time, by risk group, as JSON.

    Args:
        rows: test rows of one arm; a patient counts once, by the first repetition and seed.
        causes: names of the causes, the event of interest first.

    Returns:
        `at`, the median time of the events of interest; and for `low risk` and `high risk` the
        number of `patients` and by cause `estimate`, `low` and `high` (95 %). Empty without groups
        or without an event.
    """
    once = rows.unique(["patient_id"], keep="first", maintain_order=True).drop_nulls("high")
    times = once.filter(pl.col("event"))["time"]
    if times.is_empty():
        return {}
    at = float(np.median(times.to_numpy()))
    content: dict[str, Any] = {"at": at}
    for name, is_high in zip(GROUPS, (False, True), strict=True):
        group = once.filter(pl.col("high") == is_high)
        if group.is_empty():
            continue
        incidence = cumulative_incidence(
            group["time"].to_numpy(), group["cause"].to_numpy().astype(np.int64), len(causes)
        )
        content[name] = {"patients": group.height}
        for number, cause in enumerate(causes, start=1):
            estimate, low, high = incidence.at(at, number)
            content[name][cause] = {"estimate": estimate, "low": low, "high": high}
    return content
