"""The settings of a tile probe, which determine its result. Imports nothing heavy."""

from dataclasses import dataclass, field

from downstream.run.model_tables import PROBES
from downstream.run.spec_json import JsonSettings
from downstream.run.study_errors import StudyError
from downstream.run.study_spec import ComparisonOptions, FeatureOptions, LabelOptions

MOST_TILES = 20_000


class ProbeError(ValueError):
    """An error for features, labels or settings that no probe can be fitted with.

    Examples:
        >>> sl.ProbeOptions(models=("forest",))
        Traceback (most recent call last):
            ...
        downstream.probes.probe_spec.ProbeError: models ['forest'], ...; models are linear, knn, ...
    """


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Settings of probes on labelled tiles.

    Attributes:
        models: Names of probes (`PROBES`), each of which is an arm with each feature set.
        folds: Folds over patients.
        shots: Labelled tiles of each class that a probe is fitted on (few-shot); None for all.
        draws: Number of few-shot draws.
        seed: Seed of folds, draws and bootstrap.
        tiles: Most labelled tiles, drawn by class.

    Raises:
        ProbeError: A number below 1, or an unknown model.

    Examples:
        >>> sl.ProbeOptions(shots=16, draws=5).models
        ('linear', 'knn')
    """

    models: tuple[str, ...] = ("linear", "knn")
    folds: int = 5
    shots: int | None = None
    draws: int = 10
    seed: int = 0
    tiles: int = MOST_TILES

    def __post_init__(self) -> None:
        """Check names and numbers."""
        unknown_models = [model for model in self.models if model not in PROBES]
        least = min(self.draws, self.tiles, 1 if self.shots is None else self.shots)
        if unknown_models or not self.models or least < 1:
            msg = (
                f"models {list(self.models)}, shots={self.shots}, draws={self.draws}, "
                f"tiles={self.tiles}; models are {', '.join(PROBES)}, the numbers at least 1"
            )
            raise ProbeError(msg)

    @property
    def rounds(self) -> int:
        """Return how often a probe is fitted in a fold: once, or once a draw.

        Examples:
            >>> sl.ProbeOptions(shots=16, draws=5).rounds
            5
        """
        return 1 if self.shots is None else self.draws


@dataclass(frozen=True, kw_only=True)
class ProbeSpec(JsonSettings):
    """A probe of feature sets by labelled tiles.

    Attributes:
        labels: The table of tiles, see `read_tile_labels`; `target` is one column of classes.
        features: The features that are measured, all on the tiles that all of them have; one mpp.
        probe: Settings of the probes.
        comparison: Settings of the comparison of arms; `accuracy` is ignored.

    Raises:
        StudyError: Not one target, or not one mpp.
    """

    labels: LabelOptions
    features: FeatureOptions
    probe: ProbeOptions = field(default_factory=ProbeOptions)
    comparison: ComparisonOptions = field(default_factory=ComparisonOptions)

    def __post_init__(self) -> None:
        """Check that there is one target and one mpp."""
        if len(self.labels.target) != 1 or len(self.features.mpps) != 1:
            msg = (
                f"targets {list(self.labels.target)}, mpps {list(self.features.mpps)}; a probe of "
                "tiles takes one of each"
            )
            raise StudyError(msg)
