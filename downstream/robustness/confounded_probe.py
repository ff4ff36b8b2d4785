"""Probes of the class whose training is more and more confounded with the site: APD and nIPD.

Two classes at two sites make a block of four cells of patients. The probes of a block are trained
on the same number of patients each time; first all four cells have equal shares, at last each class
is of one site alone. The test patients are the same for all of them, from all four cells alike. A
column whose probes lean on the site loses accuracy on the way.

Shape letters: S steps of confounding, J replicates (draws of patients), D width of the features.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.robustness.robustness_spec import RobustnessError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Patient = list[int]
"""Rows of a patient, as many of each."""
Cells = list[list[list[Patient]]]
"""Patients of each site and class: `cells[site][class]`."""

#: Inverse penalties of the probes, as in PathoROB.
INVERSE = tuple(float(c) for c in 10 ** np.linspace(-8, 4, 15))
CHANCE = 0.5
_MOST_TRAINING = 16
_MOST_ROWS = 10
_BLOCKS = 3
_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class ConfoundingSchedule:
    """How many patients of a cell train, choose and test at each step of confounding.

    Attributes:
        balanced: training patients of each cell where class and site are independent.
        steps: Cramér's V of class and site in training, from 0 to 1 [S].
        validation_share: validation patients of a cell over its training patients.
        patients: patients of a cell in use.
    """

    balanced: int
    steps: tuple[float, ...]
    validation_share: float
    patients: int

    @property
    def first_test(self) -> int:
        """Return the place in a cell of the first test patient, the same at every step."""
        return 2 * self.balanced + round(self.validation_share * 2 * self.balanced) + 1

    @property
    def overlap(self) -> float:
        """Return the test patients over the training patients."""
        return (self.patients - self.first_test) / self.balanced

    def training(self, step: float) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the training patients of each site and class at a step.

        >>> schedule_of(14).training(0.5)
        ((6, 2), (2, 6))
        """
        more, fewer = (round(self.balanced * (1 + sign * step)) for sign in (1, -1))
        return (more, fewer), (fewer, more)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Balanced accuracies of the probes of all blocks.

    Attributes:
        schedule: the schedule of the blocks.
        accuracies: balanced accuracies on test patients [S, J].
        blocks: number of blocks.
        patients: number of patients in the blocks.
    """

    schedule: ConfoundingSchedule
    accuracies: Floats
    blocks: int
    patients: int


def schedule_of(patients: int) -> ConfoundingSchedule | None:
    """Return the schedule for cells of so many patients; None for fewer than 8.

    >>> schedule_of(8).steps, schedule_of(14).balanced, schedule_of(7)
    ((0.0, 0.5, 1.0), 4, None)
    """
    best = None
    for balanced in (2, 3, *range(4, _MOST_TRAINING + 1, 4)):
        quarters = balanced >= 4
        steps = 4 if quarters else balanced
        schedule = ConfoundingSchedule(
            balanced=balanced,
            steps=tuple(step / steps for step in range(steps + 1)),
            validation_share=0.25 if quarters else 0.5,
            patients=patients,
        )
        test = patients - schedule.first_test
        if test >= 1:
            most = schedule.first_test + min(test, 2 * balanced)
            best = ConfoundingSchedule(**{**vars(schedule), "patients": most})
    return best


def sweep_blocks(
    x_ND: NDArray[Any],
    label_N: Codes,
    site_N: Codes,
    patient_N: Codes,
    *,
    replicates: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Sweep:
    """Return the accuracies of the probes of the blocks with most patients.

    Each block is swept in both directions: the first class is led to the one site, then to the
    other.

    Args:
        x_ND: features.
        label_N: class of each sample.
        site_N: site of each sample.
        patient_N: patient of each sample.
        replicates: draws of patients over all blocks, at least; each block has as many.
        seed: seed of the draws.
        advance: function that is called after each sweep, for progress.

    Raises:
        RobustnessError: No two classes at two sites have 8 patients in each of the four cells.
    """
    blocks = _largest_blocks(label_N, site_N, patient_N, seed)
    if not blocks:
        msg = "no two classes at two sites have 8 patients in each of the four cells"
        raise RobustnessError(msg)
    schedule = schedule_of(min(_size(cells) for cells in blocks))
    assert schedule is not None  # all blocks have 8 patients
    turned = [cells[::way] for cells in blocks for way in (1, -1)]
    each = -(-replicates // len(turned))
    accuracies = []
    for number, cells in enumerate(turned):
        rows_per_patient = len(cells[0][0][0])
        accuracies.append(
            sweep(
                x_ND, cells, schedule, rows_per_patient, replicates=each, seed=1000 * seed + number
            )
        )
        advance()
    members = {patient for cells in blocks for patient in _members(cells, patient_N)}
    return Sweep(
        schedule=schedule,
        accuracies=np.concatenate(accuracies, axis=1),
        blocks=len(blocks),
        patients=len(members),
    )


def sweep(
    x_ND: NDArray[Any],
    cells: Cells,
    schedule: ConfoundingSchedule,
    rows_per_patient: int,
    *,
    replicates: int,
    seed: int,
) -> Floats:
    """Return balanced accuracies on test patients [S, J] of one block.

    For each replicate the patients of each cell are shuffled; the first train, those behind them
    choose the penalty, and those from the schedule's first test place on are tested.

    Args:
        x_ND: features.
        cells: patients of each site and class; all have as many rows.
        schedule: numbers of patients.
        rows_per_patient: rows of each patient.
        replicates: draws of patients.
        seed: seed of the draws.

    Source:
        PathoROB (arXiv 2507.17845), for any cohort as in CRoMa's package.
    """
    arranged = [[list(cell) for cell in of_site] for of_site in cells]
    accuracies_SJ = np.empty((len(schedule.steps), replicates))
    for column, drawn in enumerate(random.Random(seed).sample(range(_SEEDS), replicates)):
        shuffle = random.Random(drawn).shuffle
        for of_site in arranged:
            for patients_of_cell in of_site:
                shuffle(patients_of_cell)
        rows = [[[row for one in cell for row in one] for cell in site] for site in arranged]
        first, last = (n * rows_per_patient for n in (schedule.first_test, schedule.patients))
        test = _Rows.of([(c, cell[first:last]) for site in rows for c, cell in enumerate(site)])
        for at, step in enumerate(schedule.steps):
            train, validation = [], []
            for (one, two), site in zip(schedule.training(step), rows, strict=True):
                for label, (patients, cell) in enumerate(zip((one, two), site, strict=True)):
                    taken = patients * rows_per_patient
                    chosen = round(schedule.validation_share * taken)
                    train.append((label, cell[:taken]))
                    validation.append((label, cell[taken : taken + chosen]))
            accuracies_SJ[at, column] = _accuracy(x_ND, _Rows.of(train), _Rows.of(validation), test)
    return accuracies_SJ


def apd(accuracies_SJ: Floats) -> Floats:
    """Return the average performance drop of each replicate [J]; 0 is no drop, below 0 a drop.

    It is `mean over s >= 1 of accuracy_s / accuracy_0, minus 1`.

    >>> apd(np.array([[0.8], [0.8], [0.4]])).round(3)
    array([-0.25])
    """
    return np.asarray((accuracies_SJ[1:] / accuracies_SJ[0]).mean(axis=0) - 1)


def nipd(accuracies_SJ: Floats, steps: Sequence[float], *, chance: float = CHANCE) -> float:
    """Return the normalised integrated performance degradation.

    It is the area over Cramér's V of `(accuracy(V) - accuracy(0)) / (accuracy(0) - chance)`, mean
    accuracies over replicates: 0 is no loss, -0.5 a straight fall to chance. NaN where the balanced
    probe is not better than chance.

    >>> nipd(np.array([[0.9], [0.5]]), (0.0, 1.0))
    -0.5
    """
    mean_S = accuracies_SJ.mean(axis=1)
    skill = mean_S[0] - chance
    if skill <= 0:
        return float("nan")
    return float(np.trapezoid((mean_S - mean_S[0]) / skill, np.asarray(steps)))


def corrected_limits(
    estimate: float, value_J: Floats, *, overlap: float
) -> tuple[float, float] | None:
    """Return the limits of the 95 % interval of an estimate over replicates that share patients.

    The variance is that of the corrected resampled t test (Nadeau and Bengio 2003).

    Args:
        estimate: the number over all replicates.
        value_J: its value on each replicate, or the jackknife's pseudo-values.
        overlap: test patients over training patients.

    Returns:
        The limits; None for fewer than two values, or one that is undefined.
    """
    from scipy.special import stdtrit

    if len(value_J) < 2 or not np.isfinite(value_J).all():
        return None
    error = np.sqrt((1 / len(value_J) + overlap) * value_J.var(ddof=1))
    reach = float(stdtrit(len(value_J) - 1, 0.975) * error)
    return estimate - reach, estimate + reach


def nipd_pseudo_values(accuracies_SJ: Floats, steps: Sequence[float]) -> Floats:
    """Return the jackknife's pseudo-values of nIPD over replicates [J]."""
    count, whole = accuracies_SJ.shape[1], nipd(accuracies_SJ, steps)
    without = np.array([nipd(np.delete(accuracies_SJ, j, axis=1), steps) for j in range(count)])
    return np.asarray(count * whole - (count - 1) * without)


@dataclass(frozen=True)
class _Rows:
    """Rows of samples with their class in the block."""

    at: list[int]
    label: Codes

    @classmethod
    def of(cls, parts: Sequence[tuple[int, list[int]]]) -> "_Rows":
        """Return the rows of parts with a class each."""
        labels = [np.full(len(rows), label) for label, rows in parts]
        return cls([row for _, rows in parts for row in rows], np.concatenate(labels))


def _accuracy(x_ND: NDArray[Any], train: _Rows, validation: _Rows, test: _Rows) -> float:
    """Return the balanced accuracy of the probe with the penalty that validation rows choose."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    best, model = -1.0, None
    inputs = [x_ND[rows.at] for rows in (train, validation, test)]
    with warnings.catch_warnings():
        # stopped after 100 steps, as in PathoROB, it is a probe all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        for inverse in INVERSE:
            fitted = LogisticRegression(C=inverse, random_state=0).fit(inputs[0], train.label)
            score = balanced_accuracy_score(validation.label, fitted.predict(inputs[1]))
            if score > best:
                best, model = score, fitted
    assert model is not None  # an accuracy is at least 0
    return float(balanced_accuracy_score(test.label, model.predict(inputs[2])))


def _largest_blocks(label_N: Codes, site_N: Codes, patient_N: Codes, seed: int) -> list[Cells]:
    """Return the blocks with the largest smallest cell, at least half as large as the best."""
    rows_of = _rows_of_cells(label_N, site_N, patient_N, seed)
    sites = sorted({site for site, _ in rows_of})
    classes = sorted({label for _, label in rows_of})
    blocks = []
    for of_sites, of_classes in product(combinations(sites, 2), combinations(classes, 2)):
        keys = list(product(of_sites, of_classes))
        if all(len(rows_of.get(key, {})) >= 8 for key in keys):
            cells = _patients_apart({key: rows_of[key] for key in keys}, seed)
            blocks.append([[cells[site, label] for label in of_classes] for site in of_sites])
    sized = sorted(blocks, key=_size, reverse=True)
    least = max(8, _size(sized[0]) / 2) if sized else 8
    return [cells for cells in sized if _size(cells) >= least][:_BLOCKS]


def _rows_of_cells(
    label_N: Codes, site_N: Codes, patient_N: Codes, seed: int
) -> dict[tuple[int, int], dict[int, Patient]]:
    """Return the rows of each patient of each cell (site, class), as many of each.

    So many rows are drawn of each patient as half of them have, at most 10; those with fewer are
    left out.
    """
    rng = np.random.default_rng([seed, len(label_N)])
    rows: dict[tuple[int, int], dict[int, Patient]] = {}
    for row in rng.permutation(len(label_N)).tolist():
        key = int(site_N[row]), int(label_N[row])
        rows.setdefault(key, {}).setdefault(int(patient_N[row]), []).append(row)
    counts = [len(part) for of_cell in rows.values() for part in of_cell.values()]
    each = max(1, min(_MOST_ROWS, int(np.median(counts))))
    return {
        key: {who: part[:each] for who, part in sorted(of_cell.items()) if len(part) >= each}
        for key, of_cell in rows.items()
    }


def _patients_apart(
    rows_of: dict[tuple[int, int], dict[int, Patient]], seed: int
) -> dict[tuple[int, int], list[Patient]]:
    """Return the patients of each cell, each patient in one cell alone, the smallest that it can.

    A patient with tiles of two classes would otherwise train in one cell and be tested in another.
    """
    cells_of: dict[int, list[tuple[int, int]]] = {}
    for key, of_cell in rows_of.items():
        for patient in of_cell:
            cells_of.setdefault(patient, []).append(key)
    order = np.random.default_rng(seed).permutation(sorted(cells_of)).tolist()
    cells: dict[tuple[int, int], list[Patient]] = {key: [] for key in rows_of}
    for patient in sorted(order, key=lambda one: len(cells_of[one])):
        key = min(cells_of[patient], key=lambda one: (len(cells[one]), one))
        cells[key].append(rows_of[key][patient])
    return cells


def _size(cells: Cells) -> int:
    """Return the number of patients of a block's smallest cell."""
    return min(len(cell) for of_site in cells for cell in of_site)


def _members(cells: Cells, patient_N: Codes) -> set[int]:
    """Return the patients of a block."""
    return {int(patient_N[one[0]]) for of_site in cells for cell in of_site for one in cell}
