"""Arms of a study against the reference: the test over folds, and the bootstrap beside it."""

from functools import partial
from typing import TYPE_CHECKING, Any

from downstream.measures.arm_scores import main_measure, main_name
from downstream.measures.class_measures import UndefinedMetricError
from downstream.measures.comparisons import ComparedArm, comparison_table
from downstream.measures.fold_test import FoldTest, corrected_test, overlap_of, part_values
from downstream.measures.intervals import bca_or_percentile, compare
from downstream.run.study_errors import StudyError

if TYPE_CHECKING:
    import polars as pl

    from downstream.measures.arm_scores import MeasuredArrays
    from downstream.measures.intervals import Comparison
    from downstream.run.study import Study


def compare_arms(study: "Study", predictions: "pl.DataFrame") -> list[dict[str, Any]]:
    """Compare every arm with the reference on the same test parts, p values corrected by Holm.

    Args:
        study: the run.
        predictions: test rows of all arms, sorted alike within each.
    """
    import polars as pl

    def of(name: str) -> "pl.DataFrame":
        """Return the test rows of one arm."""
        return predictions.filter(pl.col("arm") == name)

    reference = of(study.reference)
    compared = {
        arm.name: _compared(study, of(arm.name), reference)
        for arm in study.arms
        if arm.name != study.reference
    }
    return comparison_table(
        compared, other=study.reference, measure=main_name(study), margin=study.margin
    )


def _compared(study: "Study", one: "pl.DataFrame", other: "pl.DataFrame") -> ComparedArm:
    """Return the comparison of two arms by the main measure.

    Raises:
        StudyError: The rows of the two arms differ in patients or cells.
    """
    import polars as pl

    keys = ("patient_id", "repeat", "fold", "seed")
    if not one.select(keys).equals(other.select(keys)):
        msg = f"{one.height} and {other.height} rows of other patients, folds or seeds;"
        msg += " sort both arms alike, and compare arms of the same run"
        raise StudyError(msg)
    arrays, reference = main_measure(study, one), main_measure(study, other)
    if isinstance(arrays, str) or isinstance(reference, str):
        why = arrays if isinstance(arrays, str) else str(reference)
        return ComparedArm(test=FoldTest(parts=0, why=why), fitted=None)
    measure, truth, prediction = arrays
    part_S = other.select(pl.struct("repeat", "fold").rank("dense").cast(pl.Int64) - 1)
    numbers = part_S.to_series().to_numpy()
    values = [part_values(measure, truth, one_S, numbers) for one_S in (prediction, reference[2])]
    test = corrected_test(
        *values,
        overlap=overlap_of(study.splits),
        higher_is_better=measure.higher_is_better,
        margin=study.margin,
    )
    patients = other["patient_id"].to_list()
    return ComparedArm(test=test, fitted=_fitted(study, arrays, reference, patients))


def _fitted(
    study: "Study", one: "MeasuredArrays", other: "MeasuredArrays", patients: list[str]
) -> "Comparison | None":
    """Return the bootstrap comparison of the fitted models; None where it is undefined."""
    measure, truth, prediction = one
    comparison = partial(
        compare,
        measure,
        truth,
        prediction,
        other[2],
        seed=study.seed,
        margin=study.margin,
        patients=patients,
    )
    try:
        return bca_or_percentile(comparison)
    except UndefinedMetricError:
        return None
