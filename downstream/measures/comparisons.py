"""Arms of a run against a reference, as rows of `result.json`: p values corrected by Holm.

The test is the one that carries the luck of training; the bootstrap of the fitted models stands
beside it, as what it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from downstream.measures.intervals import holm

if TYPE_CHECKING:
    from downstream.measures.fold_test import FoldTest
    from downstream.measures.intervals import Comparison

TEST = "corrected resampled t test (Nadeau and Bengio 2003)"


@dataclass(frozen=True, kw_only=True)
class ComparedArm:
    """An arm against the reference.

    Attributes:
        test: the test over test parts, which carries the luck of training.
        fitted: the bootstrap over patients of these fitted models; None where it is undefined.
    """

    test: "FoldTest"
    fitted: "Comparison | None"


def comparison_table(
    compared: Mapping[str, ComparedArm], *, other: str, measure: str, margin: float | None
) -> list[dict[str, Any]]:
    """Return comparisons with one reference as rows for `result.json`, p values by Holm.

    Args:
        compared: arm -> its comparison with the reference.
        other: name of the reference.
        measure: name of the measure that compares them.
        margin: non-inferiority margin; None for no such test.
    """
    p_values = {
        name: arm.test.p_value for name, arm in compared.items() if arm.test.p_value is not None
    }
    corrected = holm(p_values)
    return [
        {
            "one": name,
            "other": other,
            "measure": measure,
            "estimate": arm.test.estimate,
            "low": arm.test.low,
            "high": arm.test.high,
            "p_value": arm.test.p_value,
            "p_holm": corrected.get(name),
            "margin": margin,
            "p_worse": arm.test.p_worse,
            "not_inferior": arm.test.not_inferior,
            "test": TEST,
            "parts": arm.test.parts,
            "left_out": arm.test.left_out,
            "why": arm.test.why,
            "fitted_models": _fitted_row(arm.fitted),
        }
        for name, arm in compared.items()
    ]


def _fitted_row(fitted: "Comparison | None") -> dict[str, float] | None:
    """Return the bootstrap of the fitted models as JSON."""
    if fitted is None:
        return None
    difference = fitted.difference
    return {
        "estimate": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p_value": fitted.p_value,
    }
