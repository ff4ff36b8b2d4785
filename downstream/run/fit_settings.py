"""Settings of MIL models and of survival models on pooled features.

Plain dataclasses, apart from the code that uses them: the front door names them without importing
torch or scikit-survival (3-5 s each from a cold disk).
"""

from dataclasses import dataclass
from typing import Literal

_CHOICES = {"fusion": ("none", "concat", "shazam"), "precision": ("float32", "bfloat16")}
_AT_LEAST_ONE = (
    "hidden",
    "epochs",
    "patience",
    "batch_patients",
    "joint_patients",
    "batch_rows",
    "max_tiles",
)


class SettingsError(ValueError):
    """An error for settings that no model can be trained with.

    Examples:
        >>> sl.MilSettings(epochs=0)
        Traceback (most recent call last):
            ...
        downstream.run.fit_settings.SettingsError: epochs=0, ...; counts are at least 1, ...
    """


@dataclass(frozen=True, kw_only=True)
class MilSettings:
    """Settings of a MIL model and of its training.

    Attributes:
        hidden: Width of a tile's embedding after the first layer.
        dropout: Probability with which an embedding's unit is dropped in training.
        fusion: How several teachers of a feature set are joined: `none` side by side, `concat` a
            layer each, `shazam` a gate and attention between them.
        reconstruct: Weight of the loss of rebuilding teachers from their fusion (`shazam`).
        learning_rate: AdamW step size.
        weight_decay: AdamW decoupled weight decay.
        clip: Largest norm of a step's gradient.
        epochs: Most passes over the training patients.
        patience: Epochs without a better validation loss after which it stops.
        weighted: Whether every class counts the same, however rare.
        experts: Two heads, one of which sees rare classes as often as common ones (MDE-MIL).
        soft_labels: Share of out-of-fold predictions in each patient's training label, in 0..1;
            needs several inner splits.
        pseudo_tiles: Surest tiles at either end of a bag that train a tile classifier
            (`mil.pseudo`, MILTS); 0 for none.
        batch_patients: Patients in a training step.
        joint_patients: Least patients per step of a Cox head, whose batch is its risk set.
        batch_rows: Most tiles per step, padding included.
        max_tiles: Most tiles of one patient in one training step; a larger bag is reduced to a
            fresh random subset each step.
        bins: Time bins, for hazards.
        inverse_penalty: `logistic`: inverse penalty of the regression, scikit-learn's C.
        precision: `float32`, or `bfloat16` for the forward pass.

    Raises:
        SettingsError: An unknown word, or a number out of range.

    Examples:
        >>> sl.MilSettings(hidden=128, epochs=10).max_tiles
        4096
    """

    hidden: int = 256
    dropout: float = 0.25
    fusion: Literal["none", "concat", "shazam"] = "none"
    reconstruct: float = 0.01
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    clip: float = 5.0
    epochs: int = 30
    patience: int = 8
    weighted: bool = True
    experts: bool = False
    soft_labels: float = 0.0
    pseudo_tiles: int = 0
    batch_patients: int = 1
    joint_patients: int = 32
    batch_rows: int = 65536
    max_tiles: int = 4096
    bins: int = 4
    inverse_penalty: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        """Check words and numbers."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                msg = f"{name} {getattr(self, name)!r}; it is one of {', '.join(allowed)}"
                raise SettingsError(msg)
        low = [name for name in _AT_LEAST_ONE if getattr(self, name) < 1]
        rates = self.learning_rate > 0 and self.inverse_penalty > 0
        if low or not rates or not 0 <= self.dropout < 1:
            named = [*low, "learning_rate", "inverse_penalty", "dropout"]
            settings = ", ".join(f"{name}={getattr(self, name)}" for name in named)
            msg = (
                f"{settings}; counts are at least 1, a learning rate and an inverse penalty above "
                "0, dropout in 0..1"
            )
            raise SettingsError(msg)


@dataclass(frozen=True, kw_only=True)
class SurvivalSettings:
    """Settings of survival models on pooled features; each model reads its own.

    Attributes:
        components: Principal components that `cox`, `forest` and `boosting` see, fewer where the
            training fold has fewer patients; `coxnet` sees all features and selects.
        alpha: `cox`: ridge penalty per unit of total feature variance (so that wide and narrow
            teachers are shrunk alike). None: that of `PENALTIES` with the least loss of the
            validation patients, 0.1 without any.
        l1_ratio: `coxnet`, `coxnet_fixed`: share of the lasso, above 0 and at most 1.
        penalties: `coxnet`: number of penalties that are tried, from the one that shrinks all to 0.
        least_penalty: `coxnet`: the least as a share of the greatest. Far below 0.05 the fit of
            more features than patients does not converge.
        penalty: `coxnet_fixed`: its penalty (alpha of scikit-survival).
        trees: `forest`: number of trees.
        leaf: `forest`, `boosting`: least patients in a leaf.
        most_trees: `boosting`: trees at most; validation patients choose how many of them are kept.
        depth: `boosting`: depth of a tree; 1 has no interactions.
        learning_rate: `boosting`: weight of a tree.
        subsample: `boosting`: share of the patients that a tree is fitted on.

    Examples:
        >>> sl.SurvivalSettings(components=8).trees
        300
    """

    components: int = 16
    alpha: float | None = None
    l1_ratio: float = 0.5
    penalties: int = 50
    least_penalty: float = 0.05
    penalty: float = 0.07
    trees: int = 300
    leaf: int = 5
    most_trees: int = 200
    depth: int = 2
    learning_rate: float = 0.05
    subsample: float = 0.5
