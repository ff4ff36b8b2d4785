"""The settings of a robustness passport, which determine its result. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from downstream.run.spec_json import JsonSettings
from downstream.run.study_spec import FeatureOptions, LabelOptions

Unit = Literal["auto", "slide", "tile"]

#: Fewest samples that any measure is taken of, and most: all their distances are in memory.
LEAST_SAMPLES, MOST_SAMPLES = 8, 10_000


class RobustnessError(ValueError):
    """An error for samples or settings for which no measure of robustness is defined.

    Examples:
        >>> sl.RobustnessOptions(samples=2)
        Traceback (most recent call last):
            ...
        downstream.robustness.robustness_spec.RobustnessError: unit 'auto', samples=2, ...
    """


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions:
    """Settings of the measures of robustness.

    Attributes:
        unit: `slide` for a vector a slide (the mean over its tiles), `tile` for single tiles;
            `auto` is `tile` where the labels name tiles, else `slide`.
        samples: Most slides or tiles, drawn in turn from each class at each site, and there in turn
            from each patient.
        folds: Folds over patients of the site probe.
        replicates: Draws of patients for the probes whose training is more and more confounded
            (APD and nIPD).
        trials: Clusterings with different random numbers.
        seed: Seed of draws, folds, clusterings and bootstrap.

    Raises:
        RobustnessError: An unknown unit, or a number that is too small.

    Examples:
        >>> sl.RobustnessOptions(samples=600).unit
        'auto'
    """

    unit: Unit = "auto"
    samples: int = 2000
    folds: int = 5
    replicates: int = 20
    trials: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the unit and the numbers."""
        least = min(self.folds, self.replicates)
        in_range = LEAST_SAMPLES <= self.samples <= MOST_SAMPLES
        if self.unit not in get_args(Unit) or not in_range or least < 2:
            msg = (
                f"unit {self.unit!r}, samples={self.samples}, folds={self.folds}, "
                f"replicates={self.replicates}; the unit is one of {', '.join(get_args(Unit))}, "
                f"samples are {LEAST_SAMPLES} to {MOST_SAMPLES:,}, folds and replicates at least 2"
            )
            raise RobustnessError(msg)
        if self.trials < 1:
            msg = f"trials={self.trials}; give at least 1"
            raise RobustnessError(msg)


@dataclass(frozen=True, kw_only=True)
class RobustnessSpec(JsonSettings):
    """A robustness passport of some columns of features.

    Attributes:
        labels: The table of slides, patients or tiles, with their class (`target`) and their site.
            An empty `target` leaves the site probe alone.
        features: The columns; all are measured on the same samples; one mpp.
        sites: Column of the site, or `tcga` to read it off TCGA barcodes.
        measures: Settings of the measures.

    Raises:
        RobustnessError: Several targets, or several mpps.
    """

    labels: LabelOptions
    features: FeatureOptions
    sites: str
    measures: RobustnessOptions = field(default_factory=RobustnessOptions)

    def __post_init__(self) -> None:
        """Check that there is at most one target, and one mpp."""
        if len(self.labels.target) > 1 or len(self.features.mpps) != 1:
            msg = (
                f"targets {list(self.labels.target)}, mpps {list(self.features.mpps)}; a passport "
                "has one column of classes and one mpp"
            )
            raise RobustnessError(msg)
