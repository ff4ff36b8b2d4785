"""A finished run as its pages see it: `result.json`, and the test rows of `predictions.parquet`.

Validation rows only ever chose thresholds, so no page reads them.
"""

import difflib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from featurestore import Lake

Json = dict[str, Any]
Estimate = tuple[float, float, float]

_ORDER = ("patient_id", "repeat", "seed", "fold")
_SHOWN_NAMES = 8


class RunError(ValueError):
    """An error for a run that does not exist, or that lacks an arm or a slide."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its result, and the predictions of its test parts.

    Attributes:
        name: name of the run's folder.
        result: the content of `result.json`.
        scored: rows of the test parts, sorted by patient, repetition, seed and fold.
    """

    name: str
    result: Json
    scored: pl.DataFrame

    @property
    def task(self) -> str:
        """Return the task: `binary`, `multiclass`, `multilabel`, `regression` or `survival`."""
        return str(self.result["task"])

    @property
    def unit(self) -> str:
        """Return the unit of a prediction: `patient`, or `tile` in a probe of tiles."""
        return "tile" if self.result["kind"] == "probe" else "patient"

    @property
    def arms(self) -> list[str]:
        """Return the names of the arms, in the order of the run."""
        return list(self.result["metrics"])

    @property
    def classes(self) -> list[str]:
        """Return the names of classes or labels; of two classes the last is the positive one."""
        return list(self.result["config"]["classes"])

    @property
    def metric(self) -> str:
        """Return the measure that arms are compared by."""
        return next((str(metrics["metric"]) for metrics in self.result["metrics"].values()), "")

    @property
    def measures(self) -> list[str]:
        """Return the names of all measures of all arms, the main measure first.

        With two classes the quadratic kappa equals the plain kappa, and is left out.
        """
        names = {self.metric: None}
        for metrics in self.result["metrics"].values():
            names |= dict.fromkeys(metrics.get("measures", {}))
        twice = "kappa_quadratic" if self.task == "binary" else ""
        return [name for name in names if name not in ("", twice)]

    def rows(self, arm: str) -> pl.DataFrame:
        """Return the test rows of an arm: a patient has one for each repetition and seed."""
        return self.scored.filter(pl.col("arm") == arm)

    def once(self, arm: str) -> pl.DataFrame:
        """Return one test row per patient or tile, from its first repetition, seed and fold."""
        keys = ["slide_id", "tile_id"] if self.unit == "tile" else ["patient_id"]
        return self.rows(arm).unique(keys, keep="first", maintain_order=True)

    def measure(self, arm: str, name: str) -> Json | None:
        """Return a measure of an arm, or None; it lacks `estimate` where it is undefined."""
        metrics: Json = self.result["metrics"][arm]
        part: Json | None = metrics.get("measures", {}).get(name)
        if part is None and name == metrics["metric"]:
            return metrics
        return part

    def estimates(self, name: str) -> dict[str, Estimate]:
        """Return (estimate, low, high) of a measure by arm, for the arms where it is defined."""
        measure_of_arm = {arm: self.measure(arm, name) for arm in self.arms}
        return {
            arm: (part["estimate"], part["low"], part["high"])
            for arm, part in measure_of_arm.items()
            if part is not None and part.get("estimate") is not None
        }


def read_run(lake: "Lake", name: str) -> Run:
    """Read a finished run.

    Raises:
        RunError: No run has this name, or it is not finished; the message lists finished runs.
        DamageError: Files of the run differ from what was written.
    """
    from featurestore.storage import read_named, read_sealed  # with it comes Lance

    path = f"runs/{name}/result.json"
    if not name or "/" in name or not lake.exists(path):
        raise RunError(_missing_run_message(lake, name))
    result = read_sealed(lake.store, path)
    if result.get("kind") == "robustness":
        msg = f"run {name!r} measures columns and has no predictions; name one of mil or survival"
        raise RunError(msg)
    predictions = read_named(lake.store, f"runs/{name}/predictions.parquet", result)
    table = pl.read_parquet(io.BytesIO(predictions))
    scored = table.filter(pl.col("part") == "test").sort(*_ORDER, maintain_order=True)
    return Run(name=name, result=result, scored=scored)


def _missing_run_message(lake: "Lake", name: str) -> str:
    """Return a message on a run that does not exist or is not finished."""
    runs = lake.store.names("runs")
    if name in runs:
        return f"run {name!r} of {lake.uri} is not finished; run its command again to finish it"
    done = [one for one in runs if lake.exists(f"runs/{one}/result.json")]
    return f"{lake.uri} has no finished run {name!r}; {nearest(name, done, 'it has')}"


def nearest(name: str, names: list[str], introduction: str) -> str:
    """Return existing names as the end of a message, those most like `name` first.

    >>> nearest("mil-12", ["survival-9", "mil-13"], "it has"), nearest("a", [], "it has")
    ('it has: mil-13, survival-9', 'it has: none')
    """
    close = difflib.get_close_matches(name, names, n=_SHOWN_NAMES, cutoff=0.3)
    shown = [*close, *(one for one in sorted(names) if one not in close)]
    left = len(shown) - _SHOWN_NAMES
    more = f" and {left} more" if left > 0 else ""
    return f"{introduction}: {', '.join(shown[:_SHOWN_NAMES]) or 'none'}{more}"
