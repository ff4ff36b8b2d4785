"""The corrected resampled t test against scipy's, and on differences whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score

from downstream.measures.class_measures import Measure, classification_measures, measure_of
from downstream.measures.comparisons import ComparedArm, comparison_table
from downstream.measures.fold_test import corrected_test, overlap_of, part_values
from downstream.measures.weighted import auroc_folds
from downstream.splits.folds import nested_folds

Floats = NDArray[np.float64]


def gains(seed: int, parts: int = 10) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.6, 0.9, parts), rng.uniform(0.55, 0.85, parts)


@pytest.mark.parametrize("parts", [2, 5, 30])
def test_it_is_scipys_t_test_with_a_larger_variance(parts: int) -> None:
    one, other = gains(parts, parts)
    overlap = 0.25
    test = corrected_test(one, other, overlap=overlap, margin=0.02)
    plain = stats.ttest_rel(one, other)
    shrunk = plain.statistic / np.sqrt(1 + parts * overlap)
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(shrunk), parts - 1))
    error = (one - other).std(ddof=1) * np.sqrt(1 / parts + overlap)
    low, high = stats.t.interval(0.95, parts - 1, loc=(one - other).mean(), scale=error)
    assert (test.low, test.high) == pytest.approx((low, high))
    worse = stats.t.sf(((one - other).mean() + 0.02) / error, parts - 1)
    assert test.p_worse == pytest.approx(worse)
    assert test.not_inferior == (low > -0.02)
    # no margin changes nothing, and neither does the direction of the measure but the sign
    assert corrected_test(one, other, overlap=overlap).p_value == test.p_value
    assert corrected_test(one, other, overlap=overlap).not_inferior is None
    back = corrected_test(one, other, overlap=overlap, higher_is_better=False)
    assert back.estimate == pytest.approx(-(one - other).mean())


def test_five_of_a_hundred_null_differences_are_found() -> None:
    """Test parts whose training parts overlap by 4 of 5 patients have correlated differences."""
    parts, shared = 5, 0.2  # correlation n_test / (n_test + n_train) of 5 folds
    rng = np.random.default_rng(0)
    common = rng.standard_normal((4000, 1)) * np.sqrt(shared)
    gain = common + rng.standard_normal((4000, parts)) * np.sqrt(1 - shared)
    tests = [corrected_test(row, np.zeros(parts), overlap=0.25).p_value for row in gain]
    found = np.mean(np.array(tests, dtype=np.float64) < 0.05)
    naive = np.mean(stats.ttest_1samp(gain, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.05, abs=0.011)  # three standard errors
    assert naive > 0.09


def test_what_is_equal_is_no_difference_and_what_has_no_spread_is_not_tested() -> None:
    same = np.array([0.8, 0.7, 0.9])
    equal = corrected_test(same, same, overlap=0.5, margin=0.05)
    assert (equal.estimate, equal.low, equal.high, equal.p_value) == (0, 0, 0, 1)
    assert (equal.p_worse, equal.not_inferior) == (0, True)
    apart = corrected_test(same, same - 0.1, overlap=0.5)
    assert (apart.p_value, apart.parts) == (None, 3)
    assert apart.why == "the difference is the same on all 3 test parts"
    single = corrected_test(same[:1], same[:1] - 0.1, overlap=0.5, margin=0.05)
    assert single.estimate == pytest.approx(0.1)
    assert single.p_value is single.not_inferior is None
    assert "use several folds or repetitions" in single.why


def test_parts_without_the_measure_are_left_out_and_counted() -> None:
    one, other = gains(1)
    whole = corrected_test(one[:8], other[:8], overlap=0.25)
    one[8], other[9] = np.nan, np.nan
    part = corrected_test(one, other, overlap=0.25)
    assert (part.parts, part.left_out) == (8, 2)
    assert part.p_value == whole.p_value
    nothing = corrected_test(np.full(3, np.nan), np.zeros(3), overlap=0.25)
    assert (nothing.parts, nothing.left_out, nothing.estimate) == (0, 3, None)


def test_a_measure_on_each_part_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 2, 60)
    score = rng.standard_normal(60) + label
    part = np.repeat(np.arange(4), 15)
    label[part == 3] = 1  # one class only: no AUROC
    expected = [roc_auc_score(label[part == at], score[part == at]) for at in range(3)]
    within = measure_of("auroc_folds", auroc_folds)
    found = part_values(within, (label, part), score, part)
    assert found[:3] == pytest.approx(expected)
    assert np.isnan(found[3])
    # a measure that is known on single samples only
    pooled = classification_measures("binary")[0]
    slow = Measure(name="slow", value=pooled.value)
    assert part_values(slow, (label,), score, part)[:3] == pytest.approx(expected)


def test_the_overlap_of_five_folds_is_a_quarter() -> None:
    patients = [f"p{at}" for at in range(50)]
    splits = nested_folds(patients, [at % 2 for at in range(50)], folds=5, inner=4, seed=0)
    assert overlap_of(splits) == pytest.approx(0.25)


def test_an_arm_without_a_test_is_not_corrected_for() -> None:
    one, other = gains(2)
    tested = corrected_test(one, other, overlap=0.25)
    untested = corrected_test(one[:1], other[:1], overlap=0.25)
    rows = comparison_table(
        {"a": ComparedArm(test=tested, fitted=None), "b": ComparedArm(test=untested, fitted=None)},
        other="c",
        measure="auroc_folds",
        margin=None,
    )
    assert rows[0]["p_holm"] == rows[0]["p_value"] == tested.p_value
    assert (rows[1]["p_value"], rows[1]["p_holm"]) == (None, None)
    assert rows[1]["why"] == untested.why
