"""The measures' names as people write them, and their values at chance, for pages and docs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MeasureName:
    """The name of a measure on pages, and its value at chance.

    Attributes:
        shown: name of the measure as people write it.
        chance: value of the measure at chance; None where that depends on the cohort.
    """

    shown: str
    chance: float | None = None


MEASURE_NAMES: dict[str, MeasureName] = {
    "auroc_folds": MeasureName(shown="AUROC within folds", chance=0.5),
    "auroc": MeasureName(shown="AUROC, pooled", chance=0.5),
    "auprc": MeasureName(shown="AUPRC"),
    "f1": MeasureName(shown="F1"),
    "kappa": MeasureName(shown="kappa", chance=0.0),
    "kappa_quadratic": MeasureName(shown="quadratic kappa", chance=0.0),
    "class_distance": MeasureName(shown="mean absolute error in classes"),
    "ece": MeasureName(shown="ECE"),
    "brier": MeasureName(shown="Brier score"),
    "observed_expected": MeasureName(shown="observed / expected (1 is right)"),
    "harrell_c_folds": MeasureName(shown="Harrell's C within folds", chance=0.5),
    "harrell_c": MeasureName(shown="Harrell's C, pooled by rank", chance=0.5),
    "uno_c": MeasureName(shown="Uno's C", chance=0.5),
    "auc_t": MeasureName(shown="AUC(t)", chance=0.5),
    "integrated_brier": MeasureName(shown="integrated Brier"),
    "r2": MeasureName(shown="R\N{SUPERSCRIPT TWO}", chance=0.0),
    "pearson": MeasureName(shown="Pearson's r", chance=0.0),
    "mae": MeasureName(shown="mean absolute error"),
}
"""Measures that are not here are shown by their names with blanks, without a value at chance."""
