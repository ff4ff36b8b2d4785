"""A table of all measures of all finished runs of a lake, for instance for a paper."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from downstream.run.run_result import find_result

if TYPE_CHECKING:
    from featurestore import Lake

SCHEMA: dict[str, Any] = {
    "run": pl.String,
    "kind": pl.String,
    "task": pl.String,
    "target": pl.String,
    "arm": pl.String,
    "features": pl.String,
    "model": pl.String,
    "measure": pl.String,
    "main": pl.Boolean,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "patients": pl.Int64,
    "folds": pl.Int64,
    "repeats": pl.Int64,
    "seeds": pl.Int64,
    "seed": pl.Int64,
    "lake_version": pl.Int64,
}


def run_table(lake: "Lake") -> pl.DataFrame:
    """Return the measures of all finished runs, one row per run, arm and measure.

    `run` ends in the hash of all that determined the run (settings, patients, splits); `estimate`,
    `low` and `high` are null where a measure is undefined.

    Args:
        lake: the lake of the runs.

    Returns:
        The columns of `SCHEMA`, sorted by run, arm and measure, the main measure first.
    """
    rows = [
        row
        for name in lake.store.names("runs")
        if (run_result := find_result(lake, name)) is not None
        for row in _rows(name, run_result)
    ]
    table = pl.DataFrame(rows, schema=SCHEMA)
    return table.sort("run", "arm", "main", "measure", descending=[False, False, True, False])


def _rows(run: str, run_result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one run: a row per arm and measure."""
    shared = {name: run_result.get(name) for name in SCHEMA if name in run_result}
    shared["seed"] = run_result.get("config", {}).get("seed")
    for arm, metric in run_result.get("metrics", {}).items():
        arm_entry = run_result.get("arms", {}).get(arm, {})
        for measure, measured in metric.get("measures", {}).items():
            limits = {name: measured.get(name) for name in ("estimate", "low", "high")}
            yield {
                **shared,
                "run": run,
                "arm": arm,
                "features": arm_entry.get("features"),
                "model": arm_entry.get("model"),
                "measure": measure,
                "main": measure == metric.get("metric"),
                **limits,
            }
