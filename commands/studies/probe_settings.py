"""The settings of a tile probe, as `slidelake probe` reads and saves them."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TileLabels:
    """The table of tiles' labels and its columns.

    Attributes:
        table: Table of tiles: slide_id, tile_id or x and y (level 0), target.
        target: Column of classes.
        patient_column: Column of the patient.
        slide_column: Column of the slide.
        distinct_ids: Treat ids, sites and classes that differ only by case, blanks or Unicode form
            as different; else they are refused.
    """

    table: str
    target: str
    patient_column: str | None = None
    slide_column: str | None = None
    distinct_ids: bool = False

    def id_options(self) -> dict[str, Any]:
        """Return the options that say how ids are read, as `read_tile_labels` takes them."""
        options = {
            "patient_column": self.patient_column,
            "slide_column": self.slide_column,
            "distinct_ids": self.distinct_ids or None,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TileFeatures:
    """The features that probes are fitted on.

    Attributes:
        names: A teacher, or several joined by +; repeat to compare.
        mpp: Microns per pixel of the tiles.
        version: Version number or snapshot to read; the newest if not given.
    """

    names: tuple[str, ...]
    mpp: float = 0.5
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeFit:
    """The drawing of tiles, and the fit of probes.

    Attributes:
        models: Probes: linear, knn.
        folds: Folds over patients.
        shots: Fit on so many tiles of each class; all if not given.
        draws: Random draws of so few tiles.
        tiles: Most labelled tiles, drawn by class.
        seed: Random seed of folds, draws and bootstrap.
    """

    models: tuple[str, ...] = ("linear", "knn")
    folds: int = 5
    shots: int | None = None
    draws: int = 10
    tiles: int = 20_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ProbeComparison:
    """The comparison of arms.

    Attributes:
        reference: Arm that the others are compared with; the first if not given.
        margin: Non-inferiority margin: how much worse than the reference still counts as not
            inferior.
    """

    reference: str | None = None
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The settings that decide the result of a tile probe.

    Attributes:
        labels: The table of tiles' labels.
        features: The features that probes are fitted on.
        fit: How tiles are drawn and probes fitted.
        comparison: How arms are compared.
    """

    labels: TileLabels
    features: TileFeatures
    fit: ProbeFit = field(default_factory=ProbeFit)
    comparison: ProbeComparison = field(default_factory=ProbeComparison)
