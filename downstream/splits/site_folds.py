"""Splits in which no site is on both sides of the test: each site once, or folds of whole sites.

Shape letters: P patients, S sites, V classes.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from downstream.splits.folds import (
    inner_part_count,
    inner_splits,
    sorted_ids_and_classes,
    stratified,
)
from downstream.splits.split import Split, SplitError

Counts = NDArray[np.int64]

#: All assignments are tried up to so many; beyond, a local search from so many starts.
_MOST_TRIED = 20_000
_STARTS = 50


def leave_site_out(
    patients: Sequence[str],
    labels: Sequence[object],
    sites: Sequence[str],
    *,
    inner: int = 4,
    seed: int,
) -> list[Split]:
    """Return splits that test each site once; the other sites are split for validation, stratified.

    Validation patients share sites with training patients: they decide when to stop, and are no
    estimate for a new site.

    Args:
        patients: ids of the patients.
        labels: stratum of each patient, for the inner splits.
        sites: site of each patient (TCGA: the second part of the barcode), at least 2 of them.
        inner: inner folds, at least 2; or 1 for one split with a quarter of the patients
            (more where the rarest class has fewer).
        seed: seed of the inner splits.

    Returns:
        The splits, ordered by site and inner fold; sites in sorted order are the folds.

    Raises:
        SplitError: See `nested_folds`; also if there is one site only.
    """
    tests = [[site] for site in sorted(set(sites))]
    return _splits(patients, labels, sites, tests, inner=inner, seed=seed)


def preserved_site_folds(
    patients: Sequence[str],
    labels: Sequence[object],
    sites: Sequence[str],
    *,
    folds: int = 5,
    inner: int = 4,
    seed: int,
) -> list[Split]:
    """Return folds of whole sites, with shares of each class as like as sites allow.

    Among assignments of sites to folds it takes one with the least sum over classes v and folds i
    of (folds * n_vi - n_v)^2: the best of all where there are few sites, else the best that a local
    search finds.

    Args:
        patients: ids of the patients.
        labels: stratum of each patient.
        sites: site of each patient.
        folds: number of folds, at most that of the sites.
        inner: see `leave_site_out`.
        seed: seed of the search and of the inner splits.

    Returns:
        The splits, ordered by fold and inner fold.

    Raises:
        SplitError: See `nested_folds`; also with fewer sites than folds.

    Source:
        Howard et al. 2021, "The impact of site-specific digital histology signatures on deep
        learning model accuracy and bias", Nature Communications 12: 4423.
    """
    names = sorted(set(sites))
    if not 2 <= folds <= len(names):
        msg = (
            f"{folds} folds of whole sites with {len(names)} sites ({', '.join(names[:8])}); "
            "allowed is 2 to that number"
        )
        raise SplitError(msg)
    classes = sorted_ids_and_classes(patients, labels)[1]
    order = np.argsort(np.asarray(patients))
    site_P = np.searchsorted(names, np.asarray(sites)[order])
    count_SV = np.zeros((len(names), int(classes.max()) + 1), dtype=np.int64)
    np.add.at(count_SV, (site_P, classes), 1)
    fold_S = least_uneven(count_SV, folds, seed=seed)
    tests = [[names[at] for at in np.flatnonzero(fold_S == fold)] for fold in range(folds)]
    return _splits(patients, labels, sites, tests, inner=inner, seed=seed)


def least_uneven(count_SV: Counts, folds: int, *, seed: int) -> Counts:
    """Return the fold of each site [S]; see `preserved_site_folds`.

    Args:
        count_SV: patients of each site and class.
        folds: number of folds.
        seed: seed of the local search.

    >>> least_uneven(np.array([[4, 4], [3, 3], [1, 1]]), 2, seed=0).tolist()
    [0, 1, 1]
    """
    sites = len(count_SV)
    if folds ** (sites - 1) <= _MOST_TRIED:  # folds have no order: the first site is in fold 0
        tried = [(0, *rest) for rest in product(range(folds), repeat=sites - 1)]
        return min((np.array(one) for one in tried), key=lambda one: _cost(count_SV, one, folds))
    rng = np.random.default_rng(seed)
    descents = [_descended(count_SV, rng.integers(0, folds, sites), folds) for _ in range(_STARTS)]
    return min(descents, key=lambda one: _cost(count_SV, one, folds))


def _cost(count_SV: Counts, fold_S: Counts, folds: int) -> int:
    """Return the unevenness of an assignment."""
    count_IV = np.zeros((folds, count_SV.shape[1]), dtype=np.int64)
    np.add.at(count_IV, fold_S, count_SV)
    return int(((folds * count_IV - count_SV.sum(axis=0)) ** 2).sum())


def _descended(count_SV: Counts, fold_S: Counts, folds: int) -> Counts:
    """Return the assignment that moves of one site and swaps of two no longer improve."""
    best, cost = fold_S.copy(), _cost(count_SV, fold_S, folds)
    improved = True
    while improved:
        improved = False
        for tried in _neighbours(best, folds):
            if (at := _cost(count_SV, tried, folds)) < cost:
                best, cost, improved = tried, at, True
    return best


def _neighbours(fold_S: Counts, folds: int) -> list[Counts]:
    """Return the assignments with one site in another fold, or two sites changed over."""
    moved = []
    for site, fold in product(range(len(fold_S)), range(folds)):
        if fold_S[site] != fold:
            moved.append(fold_S.copy())
            moved[-1][site] = fold
    for one in range(len(fold_S)):
        for other in range(one):
            if fold_S[one] != fold_S[other]:
                moved.append(fold_S.copy())
                moved[-1][[one, other]] = fold_S[[other, one]]
    return moved


def _splits(
    patients: Sequence[str],
    labels: Sequence[object],
    sites: Sequence[str],
    tests: Sequence[Sequence[str]],
    *,
    inner: int,
    seed: int,
) -> list[Split]:
    """Return the splits that test some sites each, the other patients split for validation."""
    if len(sites) != len(patients) or len(set(sites)) < 2:
        msg = f"{len(set(sites))} sites of {len(sites)} for {len(patients)} patients; give one "
        msg += "each, at least two different"
        raise SplitError(msg)
    ids, classes = sorted_ids_and_classes(patients, labels)
    site_of = dict(zip(patients, sites, strict=True))
    site_P = np.array([site_of[patient] for patient in ids])
    splits: list[Split] = []
    for fold, tested in enumerate(tests):
        is_tested = np.isin(site_P, list(tested))
        test, rest = np.flatnonzero(is_tested), np.flatnonzero(~is_tested)
        count = inner_part_count(classes[rest], 5, inner)
        parts = stratified(classes[rest], count, seed, 0, fold + 1)
        splits += inner_splits(ids, test, rest, parts[:inner], fold=fold, sites=site_of)
    return splits
