"""The metrics of jobs, which Ray exports for Prometheus; `METRICS` names them all.

Ray puts `ray_` before each name, and Prometheus `_total` behind a counter's. The process that
commits counts, and no worker: what a metric counts is then in the lake, or is known to have failed.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Labels that all metrics have: the command, as `ingest`, and the lake's URI.
COMMON_LABELS = ("command", "lake")


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """The kind, the meaning and the further labels of one metric.

    Attributes:
        kind: "counter" only rises, "gauge" is the newest value.
        help: what is counted, in one line.
        labels: labels beside the command and the lake; each has few values.
    """

    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


#: Name -> metric. Names have the unit (seconds, bytes) in the plural, as Prometheus has it.
METRICS: dict[str, MetricSpec] = {
    "slidelake_slides": MetricSpec(
        kind="counter",
        help="Slides that ended: ready in the lake, or failed.",
        labels=("state",),
    ),
    "slidelake_failures": MetricSpec(
        kind="counter",
        help="Slides or fragments that failed, by the class of the reason.",
        labels=("reason",),
    ),
    "slidelake_slide_bytes": MetricSpec(
        kind="counter", help="Bytes of the slide files that were cut."
    ),
    "slidelake_tiles": MetricSpec(kind="counter", help="Tiles that were cut, or seen in training."),
    "slidelake_tile_features": MetricSpec(
        kind="counter", help="Embeddings that were computed, one per tile and teacher."
    ),
    "slidelake_train_steps": MetricSpec(kind="counter", help="Steps of training."),
    "slidelake_commits": MetricSpec(kind="counter", help="Commits to the lake."),
    "slidelake_commit_seconds": MetricSpec(
        kind="counter", help="Seconds that commits took, the wait for the lake's lock included."
    ),
    "slidelake_wait_seconds": MetricSpec(
        kind="counter",
        help="Seconds waited: by networks for data, or at the start for the first result.",
        labels=("cause",),
    ),
    "slidelake_units_left": MetricSpec(
        kind="gauge",
        help="Units of the job that are still to be done.",
        labels=("unit",),
    ),
    "slidelake_train_loss": MetricSpec(
        kind="gauge", help="Mean loss of the last epoch, by its term.", labels=("term",)
    ),
    "slidelake_last_progress_timestamp_seconds": MetricSpec(
        kind="gauge", help="Time at which a unit of the job was last finished, since 1970."
    ),
}


def exported_name(name: str) -> str:
    """Return the name under which Prometheus finds a metric.

    >>> exported_name("slidelake_slides"), exported_name("slidelake_units_left")
    ('ray_slidelake_slides_total', 'ray_slidelake_units_left')
    """
    return f"ray_{name}_total" if METRICS[name].kind == "counter" else f"ray_{name}"


class Metrics:
    """The metrics of one job. Without a Ray that is up, nothing is kept.

    Args:
        command: name of the command, such as `ingest`.
        lake: URI of the lake, without credentials.
    """

    def __init__(self, command: str, lake: str) -> None:
        self._common = {"command": command, "lake": lake}
        self._made: dict[str, Any] = {}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Raise a counter; an amount of 0 changes nothing."""
        if amount > 0 and (metric := self._metric(name)) is not None:
            metric.inc(amount, tags=self._tags(name, labels))

    def set(self, name: str, amount: float, **labels: str) -> None:
        """Set a gauge."""
        if (metric := self._metric(name)) is not None:
            metric.set(amount, tags=self._tags(name, labels))

    def _tags(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        if set(labels) != set(METRICS[name].labels):
            msg = f"{name} has the labels {METRICS[name].labels}, and {tuple(labels)} were given"
            raise ValueError(msg)
        return {**self._common, **labels}

    def _metric(self, name: str) -> Any:  # noqa: ANN401 - of ray.util.metrics
        """Return Ray's object for a metric, or None without Ray."""
        ray = sys.modules.get("ray")  # its import takes a second, which a job without Ray spares
        if ray is None or not ray.is_initialized():
            return None
        if name not in self._made:
            from ray.util.metrics import Counter, Gauge

            spec = METRICS[name]
            kind = Counter if spec.kind == "counter" else Gauge
            self._made[name] = kind(name, spec.help, (*COMMON_LABELS, *spec.labels))
        return self._made[name]
