"""Scores over folds: scikit-survival's on one fold, sums of pairs over several, by weights too."""

import doctest
import time as clock
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from sksurv import metrics as sk
from sksurv.nonparametric import CensoringDistributionEstimator, SurvivalFunctionEstimator
from sksurv.util import Surv

from downstream.measures.intervals import compare
from downstream.survival import survival_weighted as survival_weighted
from downstream.survival.risks import SurvivalError, fold_ranks
from downstream.survival.survival_rows import SurvivalPredictions, follow_up, predictions_of
from downstream.survival.survival_scores import (
    SCORES,
    Question,
    questions,
    score_predictions,
)
from downstream.survival.survival_weighted import kaplan_meier
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Training = dict[tuple[int, int], tuple[Flags, Floats]]

SEEDS = st.integers(0, 10**6)
TIMES = np.array([2.0, 4.5, 6.0, 7.5, 9.0])


def run(
    seed: int, *, patients: int = 40, folds: int = 1, repeats: int = 1, skill: float = 0.5
) -> tuple[SurvivalPredictions, Training]:
    """Times and risks with ties; every fold has patients on both sides of all `TIMES`."""
    rng = np.random.default_rng(seed)
    event, time = rng.random(patients) < 0.6, rng.integers(1, 12, patients).astype(float)
    always = 4 * folds  # whom each fold has in every repetition
    time[:always] = np.repeat([1.0, 13.0, 3.0, 1.0], folds)
    event[:always] = np.repeat([False, False, True, True], folds)
    true = 2 - time / 3 + rng.standard_normal(patients)
    parts: list[dict[str, Any]] = []
    training: Training = {}
    for repeat in range(repeats):
        others = rng.permutation(patients - always)
        fold = np.concatenate([np.arange(always), others]) % folds
        for number in range(folds):
            train_event, train_time = rng.random(60) < 0.5, rng.integers(1, 20, 60).astype(float)
            train_time[:2], train_event[:2] = [30.0, 31.0], [False, True]
            training[repeat, number] = (train_event, train_time)
        noise = rng.standard_normal(patients)
        risk = np.round(skill * true + (1 - skill) * noise, 1) + 10.0 * fold
        curve = np.exp(-np.outer(np.exp(risk - 10.0 * fold), TIMES) / 12)
        parts.append({"repeat": np.full(patients, repeat), "fold": fold, "risk": risk,
                      "rank": fold_ranks(risk, fold), "curve": curve})  # fmt: skip
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return SurvivalPredictions(
        patient=[f"p{i:03}" for i in range(patients)] * repeats,
        seed=np.zeros(patients * repeats, int),
        event=np.tile(event, repeats),
        time=np.tile(time, repeats),
        high=joined["rank"] > 0.5,
        **joined,
    ), training


def question_arrays(rows: SurvivalPredictions, training: Training) -> dict[str, Question]:
    question_of = questions(rows, training, TIMES)
    assert not [why for why in question_of.values() if isinstance(why, str)]
    return {name: one for name, one in question_of.items() if isinstance(one, Question)}


def value(question: Question) -> float:
    return question.measure.value(*question.truth, question.prediction)


def by_scikit_survival(rows: SurvivalPredictions, training: Training) -> dict[str, float]:
    """Return the measures of one fold; NaN where scikit-survival has none."""
    event, time = training[0, 0]
    train, test = Surv.from_arrays(event, time), Surv.from_arrays(rows.event, rows.time)
    measures: dict[str, Callable[[], float]] = {
        "harrell_c": lambda: sk.concordance_index_censored(rows.event, rows.time, rows.rank)[0],
        "harrell_c_folds": lambda: sk.concordance_index_censored(rows.event, rows.time, rows.risk)[
            0
        ],
        "uno_c": lambda: sk.concordance_index_ipcw(train, test, rows.risk, tau=TIMES[-1])[0],
        "auc_t": lambda: sk.cumulative_dynamic_auc(train, test, rows.risk, TIMES)[1],
        "integrated_brier": lambda: sk.integrated_brier_score(train, test, rows.curve, TIMES),
    }
    values = {}
    for name, measure in measures.items():
        try:
            with warnings.catch_warnings(action="ignore"):
                values[name] = float(measure())
        except ValueError:
            values[name] = np.nan
    return values


def drawn(rows: SurvivalPredictions, at: NDArray[np.int64]) -> SurvivalPredictions:
    names = ("repeat", "fold", "seed", "event", "time", "risk", "rank", "high", "curve")
    picked = {name: getattr(rows, name)[at] for name in names}
    return SurvivalPredictions(patient=[rows.patient[i] for i in at], **picked)


@given(seed=SEEDS)
@examples(max_examples=60, deadline=None)
def test_one_fold_is_scikit_survival(seed: int) -> None:
    rows, training = run(seed)
    value_of = {
        name: value(one) for name, one in question_arrays(rows, training).items() if name in SCORES
    }
    assert list(value_of) == list(SCORES)
    expected = by_scikit_survival(rows, training)
    assert np.isfinite(list(expected.values())).all()
    assert value_of == pytest.approx(expected, abs=1e-9)


@given(seed=SEEDS, folds=st.sampled_from([1, 3]))
@examples(max_examples=40, deadline=None)
def test_weights_are_repeated_patients(seed: int, folds: int) -> None:
    """Compare one fold with scikit-survival, and several with the rows written out."""
    rows, training = run(seed, folds=folds)
    whole = question_arrays(rows, training)
    rng = np.random.default_rng(seed)
    for w in rng.multinomial(40, np.full(40, 1 / 40), size=3):
        again = drawn(rows, np.repeat(np.arange(40), w))
        expected = by_scikit_survival(again, training) if folds == 1 else by_hand(again, training)
        if folds > 1:
            # its times are fixed by all patients of a fold, which draws must not shorten
            expected["integrated_brier"] = np.repeat(whole["integrated_brier"].prediction, w).mean()
        for name, one in expected.items():
            question = whole[name]
            assert question.measure.resampled is not None
            resampled = question.measure.resampled(
                w[None].astype(float), *question.truth, question.prediction
            )[0]
            # scikit-survival has none where no draw is followed long enough
            assert np.isnan(one) or resampled == pytest.approx(one, abs=1e-9), name


def by_hand(rows: SurvivalPredictions, training: Training) -> dict[str, float]:
    """Pairs within folds, one by one."""
    right, pairs = {"harrell_c_folds": 0.0, "uno_c": 0.0}, {"harrell_c_folds": 0.0, "uno_c": 0.0}
    area = np.zeros((2, len(TIMES)))
    for key, (train_event, train_time) in training.items():
        free = CensoringDistributionEstimator().fit(Surv.from_arrays(train_event, train_time))
        rows_of_fold = np.flatnonzero((rows.repeat == key[0]) & (rows.fold == key[1]))
        for i in rows_of_fold[rows.event[rows_of_fold]]:
            inverse = 1 / free.predict_proba(rows.time[i : i + 1])[0]
            for j in rows_of_fold:
                score = (rows.risk[i] > rows.risk[j]) + (rows.risk[i] == rows.risk[j]) / 2
                is_later = rows.time[j] > rows.time[i]
                if is_later or (rows.time[j] == rows.time[i] and not rows.event[j]):
                    used = rows.time[i] < TIMES[-1]
                    for name, weight in (("harrell_c_folds", 1.0), ("uno_c", used * inverse**2)):
                        right[name] += weight * score
                        pairs[name] += weight
                between = (rows.time[i] <= TIMES) & (rows.time[j] > TIMES)
                area += np.outer([score, 1], between * inverse)
    test = SurvivalFunctionEstimator().fit(Surv.from_arrays(rows.event, rows.time))
    lost = -np.diff(test.predict_proba(TIMES), prepend=1.0)
    with np.errstate(invalid="ignore"):
        auc = np.where(lost > 0, area[0] / area[1] * lost, 0).sum() / lost.sum()
    return {name: right[name] / pairs[name] for name in right} | {"auc_t": auc}


@given(seed=SEEDS)
@examples(max_examples=30, deadline=None)
def test_folds_are_added_pair_by_pair(seed: int) -> None:
    rows, training = run(seed, folds=3, repeats=2)
    expected = by_hand(rows, training)
    # and one score a fold, weighted by its patients
    total = 0.0
    for repeat, fold in training:
        rows_of_fold = np.flatnonzero((rows.repeat == repeat) & (rows.fold == fold))
        part = by_scikit_survival(drawn(rows, rows_of_fold), {(0, 0): training[repeat, fold]})
        total += part["integrated_brier"] * len(rows_of_fold)
    expected["integrated_brier"] = total / len(rows.time)
    # pairs of two repetitions are not compared
    each = [sk.concordance_index_censored(rows.event[at], rows.time[at], rows.rank[at])[0]
            for at in (rows.repeat == 0, rows.repeat == 1)]  # fmt: skip
    expected["harrell_c"] = float(np.mean(each))
    value_of = question_arrays(rows, training)
    assert {name: value(value_of[name]) for name in expected} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7])
def test_pairs_by_blocks_are_all_pairs(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(survival_weighted, "_BLOCK", block)
    rows, training = run(5)
    value_of = {
        name: value(one) for name, one in question_arrays(rows, training).items() if name in SCORES
    }
    assert value_of == pytest.approx(by_scikit_survival(rows, training), abs=1e-9)


def test_a_higher_risk_is_worse() -> None:
    rows, training = run(4)
    right = replace(rows, risk=-rows.time, rank=(-rows.time).argsort().argsort() / 40)
    value_of = question_arrays(replace(right, event=np.ones(40, dtype=bool)), training)
    for name in ("harrell_c", "harrell_c_folds", "uno_c", "auc_t"):
        assert value(value_of[name]) == pytest.approx(1), name


@given(seed=SEEDS)
@examples(max_examples=20, deadline=None)
def test_reversed_risks_are_the_rest_to_one(seed: int) -> None:
    rows, training = run(seed, folds=2)
    back = replace(rows, risk=-rows.risk, rank=1 - rows.rank)
    one, other = question_arrays(rows, training), question_arrays(back, training)
    for name in ("harrell_c", "harrell_c_folds", "uno_c", "auc_t"):
        assert value(other[name]) == pytest.approx(1 - value(one[name]), abs=1e-9), name


@given(seed=SEEDS)
@examples(max_examples=20, deadline=None)
def test_the_weighted_kaplan_meier_is_that_of_repeated_patients(seed: int) -> None:
    rows, _ = run(seed)
    w = np.random.default_rng(seed).multinomial(40, np.full(40, 1 / 40), size=4)
    survival = kaplan_meier(w.astype(float), rows.event, rows.time, TIMES)
    for number in range(4):
        again = drawn(rows, np.repeat(np.arange(40), w[number]))
        curve = SurvivalFunctionEstimator().fit(Surv.from_arrays(again.event, again.time))
        inside = again.time.max() >= TIMES
        assert survival[number, inside] == pytest.approx(
            curve.predict_proba(TIMES[inside]), abs=1e-9
        )


def test_observed_over_expected() -> None:
    rows, training = run(3)
    curve = SurvivalFunctionEstimator().fit(Surv.from_arrays(rows.event, rows.time))
    died = 1 - curve.predict_proba(TIMES[2:3])[0]
    assert rows.curve is not None
    expected = died / (1 - rows.curve[:, 2]).mean()
    scores = score_predictions(rows, training, TIMES, seed=0, resamples=1000)
    assert scores.horizon == 6.0
    assert scores.observed_expected is not None
    assert scores.observed_expected.estimate == pytest.approx(expected)
    # curves that say everybody's chance right
    right = replace(rows, curve=np.tile(curve.predict_proba(TIMES), (40, 1)))
    part = score_predictions(right, training, TIMES, seed=0, resamples=1000).observed_expected
    assert part is not None
    assert part.estimate == pytest.approx(1)
    assert part.low < 1 < part.high


def test_weights_are_the_training_patients() -> None:
    rows, training = run(1, folds=2)
    event, time = training[0, 0]
    other: Training = training | {(0, 0): (~event, time)}
    one, two = question_arrays(rows, training), question_arrays(rows, other)
    moved = {name: abs(value(one[name]) - value(two[name])) > 1e-6 for name in SCORES}
    assert moved == {"harrell_c": False, "harrell_c_folds": False,
                     "uno_c": True, "auc_t": True, "integrated_brier": True}  # fmt: skip


def test_times_end_where_training_patients_do() -> None:
    rows, training = run(2)
    event, time = training[0, 0]
    short: Training = {(0, 0): (event & (time <= 7), np.minimum(time, 7.0))}
    follow = follow_up(rows, short, TIMES)
    # at 7 the last training patients are censored, and nothing is known from then on
    assert set(follow.until) == {6.0}
    assert (follow.inverse[rows.time > 6] == 0).all()
    assert (follow.inverse[rows.event & (rows.time <= 6)] >= 1).all()
    test = Surv.from_arrays(rows.event, np.minimum(rows.time, 6.9))
    train = Surv.from_arrays(*short[0, 0])
    assert rows.curve is not None
    expected = sk.integrated_brier_score(train, test, rows.curve[:, :3], TIMES[:3])
    assert value(question_arrays(rows, short)["integrated_brier"]) == pytest.approx(expected)
    expected = sk.cumulative_dynamic_auc(train, test, rows.risk, TIMES[:3])[1]
    assert value(question_arrays(rows, short)["auc_t"]) == pytest.approx(expected)


def test_a_run_has_intervals_and_directions() -> None:
    rows, training = run(4, patients=60, folds=3, repeats=2)
    scores = score_predictions(rows, training, TIMES, seed=0, resamples=1000)
    assert list(scores.intervals) == list(SCORES) == list(scores.higher_is_better)
    assert scores.left_out == {}
    for one in scores.intervals.values():
        assert one.low <= one.estimate <= one.high
        assert (one.method, one.resamples, one.level) == ("bca", 1000, 0.95)
    assert [name for name, higher in scores.higher_is_better.items() if not higher] == [
        "integrated_brier"
    ]
    assert scores == score_predictions(rows, training, TIMES, seed=0, resamples=1000)
    wide = score_predictions(rows, training, TIMES, seed=0, resamples=1000, level=0.99)
    assert wide.intervals["harrell_c"].low < scores.intervals["harrell_c"].low
    # the second repetition is of the same patients, so the interval hardly shrinks
    half = drawn(rows, np.flatnonzero(rows.repeat == 0))
    alone = score_predictions(half, training, TIMES, seed=0, resamples=1000).intervals
    width, before = (part["harrell_c"].high - part["harrell_c"].low
                     for part in (scores.intervals, alone))  # fmt: skip
    assert width > 0.75 * before


def test_what_is_undefined_is_left_out_with_its_reason() -> None:
    rows, training = run(5, folds=2)
    bare = score_predictions(replace(rows, curve=None), training, TIMES, seed=0, resamples=1000)
    assert list(bare.intervals) == ["harrell_c_folds", "harrell_c", "uno_c", "auc_t"]
    assert bare.left_out == {"integrated_brier": "the model gives risks and no curves"}
    assert bare.observed_expected is None
    early = replace(rows, time=np.where(rows.fold == 1, np.minimum(rows.time, 4.5), rows.time))
    scores = score_predictions(early, training, TIMES, seed=0, resamples=1000)
    assert scores.left_out == {
        "integrated_brier": "1 of 5 times are within the follow-up of repeat 0, fold 1, seed 0; "
        "2 are needed: use fewer folds"
    }
    none = score_predictions(
        replace(rows, event=rows.event & False), training, TIMES, seed=0, resamples=1000
    )
    assert sorted(none.left_out) == ["auc_t", "harrell_c", "harrell_c_folds", "uno_c"]
    assert "harrell_c is undefined on 40 predictions" in none.left_out["harrell_c"]


def test_percentiles_where_one_patient_has_all_pairs() -> None:
    """There is no concordance without that patient, and so no acceleration."""
    rows, training = run(6)
    only = rows.time == 3.0
    event = (np.arange(40) == np.flatnonzero(only & rows.event)[0]) & rows.event
    scores = score_predictions(replace(rows, event=event), training, TIMES, seed=0, resamples=1000)
    assert scores.intervals["harrell_c"].method == "percentile"
    assert scores.intervals["harrell_c"].redrawn > 0
    assert scores.intervals["integrated_brier"].method == "bca"


def test_two_thousand_resamples_of_five_hundred_patients_take_seconds() -> None:
    rows, training = run(7, patients=500, folds=5)
    begin = clock.process_time()
    scores = score_predictions(rows, training, TIMES, seed=0)
    assert len(scores.intervals) == 5
    assert clock.process_time() - begin < 10  # 1 s on an idle core


def test_arms_on_the_same_patients() -> None:
    good, training = run(8, patients=80, folds=2, skill=0.9)
    poor, _ = run(8, patients=80, folds=2, skill=0.1)
    arms = [question_arrays(part, training) for part in (good, poor)]
    for name in ("harrell_c_folds", "integrated_brier"):
        one, other = (part[name] for part in arms)
        comparison = compare(
            one.measure, one.truth, one.prediction, other.prediction, seed=0, patients=good.patient
        )
        # above 0 is better, also where lower is better
        assert comparison.difference.low > 0
        assert comparison.p_value < 0.05
        gap = value(one) - value(other)
        assert abs(comparison.difference.estimate) == pytest.approx(abs(gap))


def test_a_table_of_predictions() -> None:
    rows, training = run(11, folds=2)
    assert rows.curve is not None
    names = ("repeat", "fold", "seed", "event", "time", "risk", "rank", "high")
    table = pl.DataFrame({"patient_id": list(rows.patient)} | {n: getattr(rows, n) for n in names})
    whole = predictions_of(table.with_columns(pl.Series("curve", rows.curve.tolist())))
    expected = score_predictions(rows, training, TIMES, seed=0, resamples=1000)
    assert score_predictions(whole, training, TIMES, seed=0, resamples=1000) == expected
    assert predictions_of(table).curve is None
    empty = table.with_columns(curve=pl.lit(None, dtype=pl.List(pl.Float64)))
    assert predictions_of(empty).curve is None


def test_rows_that_do_not_fit() -> None:
    rows, training = run(12, folds=2)
    with pytest.raises(SurvivalError, match="repeat 0, fold 1 has 0 training patients and 0"):
        questions(rows, {(0, 0): training[0, 0]}, TIMES)
    with pytest.raises(SurvivalError, match="60 training patients and 0 events"):
        questions(rows, training | {(0, 0): (np.zeros(60, bool), np.ones(60))}, TIMES)
    with pytest.raises(SurvivalError, match=r"curves of shape \(40, 5\) at 4 times"):
        questions(rows, training, TIMES[:4])
    with pytest.raises(SurvivalError, match="'rank': 39"):
        replace(rows, rank=rows.rank[1:])


def test_the_page_says_what_happens() -> None:
    tested = doctest.testfile(str(ROOT / "docs" / "survival.md"), module_relative=False)
    assert tested.failed == 0
    assert tested.attempted > 9
