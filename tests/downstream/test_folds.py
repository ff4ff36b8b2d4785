"""Splits cannot leak: every way that is tried is refused; tables of other tools are read."""

import json
from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downstream.cohorts.site_facts import site_facts, site_notes
from downstream.run.label_targets import event_strata
from downstream.splits import site_folds
from downstream.splits.folds import Split, few_shot, nested_folds, strata
from downstream.splits.site_folds import least_uneven, leave_site_out, preserved_site_folds
from downstream.splits.split import LeakageError, SplitError, assert_disjoint
from downstream.splits.split_tables import (
    from_table,
    read_clam,
    read_patho_bench,
    read_stamp,
    to_table,
)
from downstream.survival.survival_losses import fit_bins

IDS = [f"p{i:02d}" for i in range(60)]
LABELS = [("a", "b", "b")[i % 3] for i in range(60)]
SITES = [f"s{i % 4}" for i in range(60)]
SLIDES = {"a1": "A", "a2": "A", "b1": "B", "c1": "C", "d1": "D"}


@given(folds=st.integers(2, 5), inner=st.integers(1, 4), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_nested_folds_test_everybody_once_and_validate_the_rest_once(
    folds: int, inner: int, seed: int
) -> None:
    splits = nested_folds(IDS, LABELS, folds=folds, inner=inner, repeats=2, seed=seed)
    assert len(splits) == 2 * folds * inner
    for repeat in range(2):
        repetition = [s for s in splits if s.repeat == repeat]
        tested = [p for s in repetition if s.inner == 0 for p in s.test]
        assert sorted(tested) == IDS
        for fold in range(folds):
            inners = [s for s in repetition if s.fold == fold]
            assert len({s.test for s in inners}) == 1
            for s in inners:
                assert sorted(s.train + s.validation + s.test) == IDS
            if inner > 1:
                validated = [p for s in inners for p in s.validation]
                assert sorted(validated + list(inners[0].test)) == IDS
    assert splits[0].test != splits[folds * inner].test  # repetitions differ


def test_folds_are_stratified_and_a_function_of_the_seed() -> None:
    splits = nested_folds(IDS, LABELS, seed=0)
    label = dict(zip(IDS, LABELS, strict=True))
    for split in splits:
        assert Counter(label[p] for p in split.test) == {"a": 4, "b": 8}
        assert Counter(label[p] for p in split.validation) == {"a": 4, "b": 8}
    turned = nested_folds(IDS[::-1], LABELS[::-1], seed=0)
    assert turned == splits
    assert nested_folds(IDS, LABELS, seed=1) != splits


def test_sites_are_left_out_whole() -> None:
    splits = leave_site_out(IDS, LABELS, SITES, inner=2, seed=0)
    site = dict(zip(IDS, SITES, strict=True))
    assert len(splits) == 8
    for split in splits:
        assert {site[p] for p in split.test} == {f"s{split.fold}"}
        assert not {site[p] for p in split.train + split.validation} & {f"s{split.fold}"}
    with pytest.raises(SplitError, match="1 sites of 60"):
        leave_site_out(IDS, LABELS, ["s"] * 60, seed=0)


def test_whole_sites_are_spread_as_evenly_as_a_full_search_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        count_SV = rng.integers(0, 30, (7, 2))
        best = min(
            ((3 * np.stack([count_SV[np.array(one) == i].sum(axis=0) for i in range(3)])
              - count_SV.sum(axis=0)) ** 2).sum()
            for one in product(range(3), repeat=7)
        )  # fmt: skip
        for most in (20_000, 0):  # all assignments, and the local search
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(site_folds, "_MOST_TRIED", most)
                fold_S = least_uneven(count_SV, 3, seed=0)
            count_IV = np.stack([count_SV[fold_S == i].sum(axis=0) for i in range(3)])
            assert ((3 * count_IV - count_SV.sum(axis=0)) ** 2).sum() == best


def test_folds_of_whole_sites_test_everybody_once() -> None:
    rng = np.random.default_rng(1)
    sites = [f"s{at}" for at in rng.choice(9, 60, p=np.arange(1, 10) / 45)]
    splits = preserved_site_folds(IDS, LABELS, sites, folds=3, inner=2, seed=0)
    site = dict(zip(IDS, sites, strict=True))
    assert len(splits) == 6
    assert sorted(p for split in splits if split.inner == 0 for p in split.test) == IDS
    for split in splits:
        tested = {site[p] for p in split.test}
        assert not {site[p] for p in split.train + split.validation} & tested
    # 20 patients a fold would be even, of whom a third are of class a
    label = dict(zip(IDS, LABELS, strict=True))
    for split in splits:
        counts = Counter(label[p] for p in split.test)
        assert 4 <= counts["a"] <= 9
        assert 10 <= counts["b"] <= 17
    turned = preserved_site_folds(IDS[::-1], LABELS[::-1], sites[::-1], folds=3, inner=2, seed=0)
    assert turned == splits
    with pytest.raises(SplitError, match="5 folds of whole sites with 4 sites"):
        preserved_site_folds(IDS, LABELS, SITES, folds=5, seed=0)


def test_cramers_v_of_label_and_site() -> None:
    sites = ["a"] * 30 + ["b"] * 30
    even = site_facts(sites, [0, 1] * 30, "hospital")
    assert even["cramers_v"] == pytest.approx(0)
    assert even["patients"] == {"a": 30, "b": 30}
    labels = [0] * 28 + [1] * 2 + [1] * 25 + [0] * 5
    # Pearson's chi squared by hand: n (ad - bc)^2 / (row and column sums), over n
    by_hand = np.sqrt((28 * 25 - 2 * 5) ** 2 / (30 * 30 * 33 * 27))
    facts = site_facts(sites, labels, "hospital")
    assert facts["cramers_v"] == pytest.approx(by_hand)
    notes = site_notes(facts, kept_apart=False)
    assert "above 0.5: a model can score well by telling sites apart" in notes[0]
    assert "--split preserved-site" in notes[1]
    assert len(site_notes(even, kept_apart=True)) == 1
    assert site_facts(["a"] * 4, [0, 1, 0, 1], "hospital")["cramers_v"] is None


def test_failure_17_two_slides_of_a_patient_on_two_sides_are_refused() -> None:
    """Slide-level splits leak patients: refused from a table, and on construction."""
    leaking = b",train,val,test\n0,a1,c1,a2\n1,b1,,d1\n"
    with pytest.raises(LeakageError, match=r"fold 0 of the table .* in train and in test .* A;"):
        read_clam({0: leaking}, SLIDES)
    for train, validation, test in (("AB", "C", "DA"), ("AB", "BC", "D"), ("A", "CD", "D")):
        with pytest.raises(LeakageError, match="1 ids are both in"):
            Split(train=tuple(train), validation=tuple(validation), test=tuple(test))


def test_failure_17_the_test_part_decides_nothing() -> None:
    """Bins, statistics or a model that has seen a validation or test patient is refused."""
    split = nested_folds(IDS, LABELS, seed=0)[0]
    rng = np.random.default_rng(0)
    everybody = fit_bins(rng.random(60), np.ones(60, bool), patients=IDS)
    with pytest.raises(LeakageError, match=r"bins was fitted on 24 patients .*\(12 of them are"):
        split.check_fitted_on(everybody.patients, "bins")
    with pytest.raises(LeakageError, match=r"\(0 of them are its test"):
        split.check_fitted_on(split.validation, "a mean")
    split.check_fitted_on(split.train, "a mean")


def test_sites_on_both_sides_are_refused() -> None:
    sites = {"A": "s0", "B": "s1", "C": "s0", "D": "s2"}
    parts: dict[str, Any] = {"validation": ("B",), "test": ("C",)}
    with pytest.raises(LeakageError, match=r"1 site is on both sides .* s0"):
        Split(train=("A",), sites=sites, **parts)
    assert Split(train=("D",), sites=sites, **parts).test == ("C",)
    with pytest.raises(SplitError, match="1 patient has no site, for example E"):
        Split(train=("E",), sites=sites, **parts)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [("", "B", "train of fold 0: 0 ids"), ("A", "", "test of"), ("AA", "B", "2 ids, 1 diff")],
)
def test_empty_sides_and_repeated_patients_are_refused(train: str, test: str, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        Split(train=tuple(train), validation=(), test=tuple(test))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 21}, "21 folds with 20 patients in the rarest class"),
        ({"folds": 1}, "1 folds"),
        ({"folds": 2, "inner": 11}, "11 folds with 10 patients"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        nested_folds(IDS, LABELS, seed=0, **options)
    with pytest.raises(SplitError, match=r"60 patients \(59 different\)"):
        nested_folds([*IDS[:-1], "p00"], LABELS, seed=0)
    with pytest.raises(SplitError, match="with 3 labels"):
        nested_folds(IDS, LABELS[:3], seed=0)


def test_few_shot_takes_from_train_alone_and_grows() -> None:
    split, label = nested_folds(IDS, LABELS, seed=0)[3], dict(zip(IDS, LABELS, strict=True))
    few, more = (few_shot(split, label, shots=shots, seed=0) for shots in (2, 5))
    assert Counter(label[p] for p in few.train) == {"a": 2, "b": 2}
    assert set(few.train) < set(more.train) < set(split.train)
    assert (few.validation, few.test) == (split.validation, split.test)
    assert few_shot(split, label, shots=2, seed=0) == few
    assert few_shot(split, label, shots=2, seed=1) != few
    with pytest.raises(SplitError, match="shots=13 of class 'a' with 12"):
        few_shot(split, label, shots=13, seed=0)


def test_clams_tables_are_read() -> None:
    ragged = b",train,val,test\n0,a1,c1,d1\n1,a2,,gone\n"
    flags = b",train,val,test\na1,True,False,False\nc1,False,True,False\nd1,False,False,True\n"
    splits = read_clam({0: ragged, 1: flags}, SLIDES)
    assert [(s.train, s.validation, s.test) for s in splits.splits] == [
        (("A",), ("C",), ("D",))
    ] * 2
    assert [s.fold for s in splits.splits] == [0, 1]
    assert (splits.missing, splits.surplus) == (("gone",), ("B",))
    with pytest.raises(SplitError, match="CLAM's are train, val, test"):
        read_clam({0: b"train,test\nA,B\n"}, SLIDES)


def test_patho_benchs_table_is_read() -> None:
    rows = ["case_id\tslide_id\tgrade\tfold_0\tfold_1", "A\ta1\t1\ttrain\ttest",
            "A\ta2\t1\ttrain\ttest", "B\tb1\t0\ttest\ttrain", "C\tc1\t0\tval\t", ""]  # fmt: skip
    splits = read_patho_bench("\n".join(rows).encode(), SLIDES)
    one, other = splits.splits
    assert (one.train, one.validation, one.test) == (("A",), ("C",), ("B",))
    assert (other.train, other.validation, other.test) == (("B",), (), ("A",))
    assert splits.surplus == ("D",)
    with pytest.raises(LeakageError, match="fold 1 of the table has 1 patient both"):
        read_patho_bench(
            "\n".join([*rows[:2], rows[2].replace("test", "train"), rows[3]]).encode(), SLIDES
        )
    with pytest.raises(SplitError, match=r"fold_0 of a1 is 'Train'"):
        read_patho_bench(b"slide_id\tfold_0\na1\tTrain\n", SLIDES)
    with pytest.raises(SplitError, match="folds are named fold_0"):
        read_patho_bench(b"slide_id\tfold_x\na1\ttrain\n", SLIDES)


def test_stamps_splits_are_read() -> None:
    content = {"splits": [{"train_patients": ["A", "B", "Z"], "test_patients": ["C"]}]}
    splits = read_stamp(json.dumps(content).encode(), SLIDES)
    assert splits.splits[0].train == ("A", "B")
    assert splits.splits[0].validation == ()
    assert (splits.missing, splits.surplus) == (("Z",), ("D",))
    for bad in (b"{", b"[]", b'{"splits": [{"train": []}]}'):
        with pytest.raises(SplitError, match=r"no splits\.json of STAMP"):
            read_stamp(bad, SLIDES)
    with pytest.raises(SplitError, match="the table has no folds"):
        read_stamp(b'{"splits": []}', SLIDES)


def test_splits_kept_with_a_run_come_back() -> None:
    splits = nested_folds(IDS, LABELS, folds=3, inner=2, repeats=2, seed=0)
    table = to_table(splits)
    assert table.columns == ["repeat", "fold", "inner", "part", "patient_id"]
    assert from_table(table) == splits
    assert from_table(table.sample(fraction=1, shuffle=True, seed=0)) == splits
    with pytest.raises(SplitError, match=r"columns \['inner'\] are missing"):
        from_table(table.drop("inner"))


def test_strata_are_of_equal_size() -> None:
    numbers = np.random.default_rng(0).exponential(size=100).tolist()
    assert sorted(Counter(strata(numbers)).values()) == [25] * 4


def test_leakage_is_refused_and_named() -> None:
    assert_disjoint({"train": ["a", "b"], "validation": ["c"], "test": ["d"]})
    with pytest.raises(LeakageError, match="1 ids are both in train and in test, for example b"):
        assert_disjoint({"train": ["a", "b"], "validation": ["c"], "test": ["b"]})


@pytest.mark.parametrize(("patients", "censored"), [(60, 7), (60, 30), (61, 55), (57, 9)])
def test_events_are_spread_evenly_over_survival_folds(patients: int, censored: int) -> None:
    rng = np.random.default_rng(3)
    event = rng.permutation(np.arange(patients) >= censored)
    ids = [f"p{at:02d}" for at in range(patients)]
    had = dict(zip(ids, event, strict=True))
    strata = event_strata(event, folds=5)
    for seed in range(5):
        splits = nested_folds(ids, strata, folds=5, inner=1, repeats=2, seed=seed)
        for repeat in range(2):
            counts = [sum(had[one] for one in s.test) for s in splits if s.repeat == repeat]
            assert max(counts) - min(counts) <= 1
            sizes = [len(s.test) for s in splits if s.repeat == repeat]
            assert max(sizes) - min(sizes) <= 2


def test_a_handful_of_censored_patients_is_no_stratum() -> None:
    event = np.arange(40) >= 4
    assert set(event_strata(event, folds=5)) == {0}
    assert set(event_strata(np.arange(40) >= 7, folds=5, inner=6)) == {0}
