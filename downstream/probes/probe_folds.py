"""Training and test tiles of tile probes: folds over patients, few shots.

Shape letters: N labelled tiles, D width of a feature set, T draws of few shots (1 without), C
classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cluster import counted
from downstream.probes.fit import fit_probe
from downstream.probes.probe_spec import ProbeOptions
from downstream.splits.folds import nested_folds
from downstream.splits.split import SplitError

if TYPE_CHECKING:
    import polars as pl

    from downstream.splits.split import Split

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """The scores of an arm on every labelled tile, each in the fold that tests its patient.

    Attributes:
        scores: scores [N, T, C].
        fold: number of the fold in which each tile is tested [N].
    """

    scores: Floats
    fold: NDArray[np.int64]

    def only(self, is_kept_N: NDArray[np.bool_]) -> "ProbeScores":
        """Return the scores of some tiles."""
        return ProbeScores(scores=self.scores[is_kept_N], fold=self.fold[is_kept_N])


def tile_splits(rows: "pl.DataFrame", options: ProbeOptions) -> list["Split"]:
    """Return folds over patients, stratified by each patient's commonest label."""
    commonest = (
        rows.group_by("patient_id", "label")
        .len()
        .sort("patient_id", "len", "label", descending=[False, True, False])
        .unique("patient_id", keep="first", maintain_order=True)
    )
    strata = _merged_strata(commonest["label"].to_list(), options.folds)
    patients = commonest["patient_id"].to_list()
    return nested_folds(patients, strata, folds=options.folds, inner=1, seed=options.seed)


def _merged_strata(labels: list[int], folds: int) -> list[int]:
    """Return the strata, with those that are too small for every fold merged.

    >>> _merged_strata([0] * 6 + [1, 1, 2], 3), _merged_strata([0] * 6 + [1], 3)
    ([0, 0, 0, 0, 0, 0, -1, -1, -1], [0, 0, 0, 0, 0, 0, 0])
    """
    least = folds if folds > 2 else 4
    counts = {label: labels.count(label) for label in labels}
    rare = {label for label, count in counts.items() if count < least}
    common = [label for label in counts if label not in rare]
    together = -1
    if common and sum(counts[label] for label in rare) < least:
        together = min(common, key=lambda label: (counts[label], label))
    return [together if label in rare else label for label in labels]


def scored(
    x_ND: NDArray[np.float32],
    rows: "pl.DataFrame",
    splits: Sequence["Split"],
    model: str,
    classes: int,
    options: ProbeOptions,
) -> ProbeScores:
    """Return the scores of every tile, by a probe trained without the tile's patient."""
    scores_NTC = np.full((rows.height, options.rounds, classes), np.nan)
    fold_N = np.full(rows.height, -1, np.int64)
    task: Literal["binary", "multiclass"] = "binary" if classes == 2 else "multiclass"
    label_N = rows["label"].to_numpy()
    for split in splits:
        train, validation, test = (
            np.flatnonzero(rows["patient_id"].is_in(list(split.patients(part))))
            for part in ("train", "validation", "test")
        )
        fold_N[test] = split.fold
        for draw in range(options.rounds):
            chosen, others = train, validation
            if options.shots is not None:
                # a large validation part would make the few shots many: none, nothing is chosen
                pool = np.concatenate([train, validation])
                chosen, others = (
                    _few_shot_rows(pool, label_N, split.fold, draw, classes, options),
                    test[:0],
                )
            probe = fit_probe(
                model,
                x_ND[chosen],
                label_N[chosen],
                validation=(x_ND[others], label_N[others]),
                task=task,
                classes=classes,
                seed=options.seed,
            )
            test_scores = probe.scores(x_ND[test])
            both = (
                np.stack([1 - test_scores, test_scores], axis=1)
                if test_scores.ndim == 1
                else test_scores
            )
            scores_NTC[test, draw] = both
    return ProbeScores(scores=scores_NTC, fold=fold_N)


def _few_shot_rows(
    pool: NDArray[np.int64],
    label_N: NDArray[np.int64],
    fold: int,
    draw: int,
    classes: int,
    options: ProbeOptions,
) -> NDArray[np.int64]:
    """Return `shots` rows of each class; the rows of fewer shots are among those of more.

    Raises:
        SplitError: A class has fewer rows.
    """
    rng = np.random.default_rng([options.seed, fold, draw])
    taken = []
    for label in range(classes):
        members = np.sort(pool[label_N[pool] == label])
        if len(members) < (options.shots or 0):
            msg = (
                f"shots={options.shots}, but fold {fold} has {counted(len(members), 'tile')} of "
                f"class {label} "
                "to draw from; ask for fewer"
            )
            raise SplitError(msg)
        taken.append(rng.permutation(members)[: options.shots])
    return np.concatenate(taken)


def counts_of(rows: "pl.DataFrame", classes: int) -> list[int]:
    """Return the number of tiles of each class."""
    counts: list[int] = np.bincount(rows["label"].to_numpy(), minlength=classes).tolist()
    return counts
