"""Measures of robustness against the package croma, scikit-learn and numpy."""

import croma
import numpy as np
import pandas as pd
import pytest
from croma.metrics.bootstrap import bootstrap_pooled_median
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, balanced_accuracy_score

from downstream.robustness.clustering_score import adjusted_rand, clustering_score, clusterings
from downstream.robustness.confounded_probe import (
    Cells,
    apd,
    nipd,
    schedule_of,
    sweep,
)
from downstream.robustness.patient_bootstrap import (
    estimated,
    mean_recall,
    median,
    patient_weights,
    ratio,
    worst_tenth,
)
from downstream.robustness.typed_neighbours import (
    MARGIN_NEIGHBOURS,
    NEIGHBOURS,
    cosine_distances,
    has_margin,
    margins,
    neighbour_evidence,
)

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Cohort:
    """Patients of three classes at four sites with two samples each; both shift the features."""

    def __init__(self, seed: int, *, site_effect: float = 1.0, patients: int = 60) -> None:
        rng = np.random.default_rng(seed)
        label_P, site_P = rng.integers(0, 3, patients), rng.integers(0, 4, patients)
        self.patient: Codes = np.repeat(np.arange(patients), 2)
        self.label, self.site = label_P[self.patient], site_P[self.patient]
        means = rng.standard_normal((2, 4, 12))
        x = means[0][self.label] + site_effect * means[1][self.site]
        self.x: Floats = x + rng.standard_normal((len(self.patient), 12))

    @property
    def manifest(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "sample_id": [f"t{n}" for n in range(len(self.label))],
                "image_path": [f"t{n}.png" for n in range(len(self.label))],
                "label": [f"class {n}" for n in self.label],
                "center": [f"site {n}" for n in self.site],
                "group_id": [f"p{n}" for n in self.patient],
            }
        )


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # croma warns of a thin support
def test_ri_mari_and_croma_are_those_of_croma(seed: int) -> None:
    cohort = Cohort(seed, site_effect=[0.3, 1.0, 2.0][seed])
    distance = cosine_distances(cohort.x, cohort.patient)
    evidence = neighbour_evidence(distance, cohort.label, cohort.site)
    weights = np.ones((1, cohort.patient.max() + 1))
    given = {"confounder_column": "center", "k_candidates": list(NEIGHBOURS)}
    ri = croma.RI.compute(cohort.x, cohort.manifest, **given)
    mari = croma.MaRI.compute(cohort.x, cohort.manifest, **given)
    found = {
        name: estimated(ratio(part[:, 0], part.sum(axis=1)), weights, cohort.patient).whole
        for name, part in (("ri", evidence.counts), ("mari", evidence.weights))
    }
    assert evidence.k == ri.k
    assert found["ri"] == pytest.approx(ri.value)
    assert (evidence.tau, found["mari"]) == pytest.approx((mari.tau, mari.value))
    margin = margins(distance, cohort.label, cohort.site)
    theirs = croma.CRoMa.compute(cohort.x, cohort.manifest, confounder_column="center")
    assert margin == pytest.approx(theirs.sample_values_aligned, abs=1e-9)
    assert theirs.m == MARGIN_NEIGHBOURS
    assert estimated(median(margin), weights, cohort.patient).whole == pytest.approx(theirs.value)
    worst = estimated(worst_tenth(margin), weights, cohort.patient).whole
    assert worst == pytest.approx(theirs.ltm_alpha)
    below = (margin <= 0).astype(float)
    share = estimated(ratio(below, np.ones_like(below)), weights, cohort.patient).whole
    assert share == pytest.approx(theirs.f0)


def test_intervals_are_the_cluster_bootstraps_of_croma() -> None:
    cohort = Cohort(3)
    margin = margins(cosine_distances(cohort.x, cohort.patient), cohort.label, cohort.site)
    weights = patient_weights(60, seed=0)
    limits = estimated(median(margin), weights, cohort.patient).limits()
    theirs = bootstrap_pooled_median(margin, cohort.patient, n_boot=4000, seed=1)
    assert limits == pytest.approx((theirs.lo, theirs.hi), abs=0.02)


def test_statistics_of_weights_are_those_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    value, patient = rng.standard_normal(41), rng.integers(0, 9, 41)
    value[[3, 8]] = np.nan
    label, vote = rng.integers(0, 3, 41), rng.integers(0, 3, 41)
    weights = patient_weights(9, seed=1, resamples=50)
    found = {
        "median": estimated(median(value), weights, patient).draws,
        "tail": estimated(worst_tenth(value), weights, patient).draws,
        "recall": estimated(mean_recall(vote == label, label), weights, patient).draws,
    }
    for at, weight in enumerate(weights):
        rows = np.repeat(np.arange(41), weight[patient].astype(int))
        repeated = value[rows][np.isfinite(value[rows])]
        assert found["median"][at] == pytest.approx(np.median(repeated))
        tail = repeated[repeated <= np.percentile(repeated, 10)]
        assert found["tail"][at] == pytest.approx(tail.mean())
        present = balanced_accuracy_score(label[rows], vote[rows])
        assert found["recall"][at] == pytest.approx(present)


def test_a_sample_without_five_of_each_type_has_no_margin() -> None:
    cohort = Cohort(0)
    cohort.site[cohort.label == 2] = 0  # class 2 is at one site alone: it has no SO neighbour
    margin = margins(cosine_distances(cohort.x, cohort.patient), cohort.label, cohort.site)
    assert (
        np.isfinite(margin).tolist()
        == has_margin(cohort.label, cohort.site, cohort.patient).tolist()
    )
    assert np.isnan(margin[cohort.label == 2]).all()
    assert np.isfinite(margin[cohort.label != 2]).any()
    with pytest.raises(RuntimeError, match="could not find 5 SO"):  # croma gives nothing then
        croma.CRoMa.compute(cohort.x, cohort.manifest, confounder_column="center")


def block(rows_per_patient: int, patients: int, site_effect: float) -> tuple[Floats, Cells]:
    """Two classes at two sites: features, and the cells of patients."""
    rng = np.random.default_rng(0)
    x, cells, at = [], [[[], []], [[], []]], 0  # type: ignore[var-annotated]
    for site, label, _ in np.ndindex(2, 2, patients):
        shift = np.array([1.0 * label, site_effect * site, 0, 0])
        x.append(shift + 0.7 * rng.standard_normal((rows_per_patient, 4)))
        cells[site][label].append(list(range(at, at + rows_per_patient)))
        at += rows_per_patient
    return np.concatenate(x), cells


@pytest.mark.slow
@pytest.mark.parametrize(("rows_per_patient", "patients"), [(1, 13), (3, 8)])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sweep_apd_and_nipd_are_those_of_croma(rows_per_patient: int, patients: int) -> None:
    x, cells = block(rows_per_patient, patients, 3.0)
    schedule = schedule_of(patients)
    assert schedule is not None
    found = sweep(x, cells, schedule, rows_per_patient, replicates=3, seed=7)
    codes = [(s, c) for s in range(2) for c in range(2) for _ in range(patients * rows_per_patient)]
    plan = [
        (
            [
                (s, c, schedule.training(step)[s][c] * rows_per_patient)
                for s in range(2)
                for c in range(2)
            ],
            2 * schedule.balanced,
        )
        for step in schedule.steps
    ]
    theirs = croma.probe_sweep(
        x, *np.array(codes).T, schedule=plan, rows_per_slide=rows_per_patient, iterations=3, seed=7,
        validation_fraction=schedule.validation_share,
    )  # fmt: skip
    assert found == pytest.approx(theirs)
    assert found[0].mean() > found[-1].mean()  # the site leads the last probe astray
    assert apd(found).mean() == pytest.approx(croma.apd(theirs))
    assert nipd(found, schedule.steps) == pytest.approx(croma.nipd(theirs, schedule.steps, 0.5))


def test_training_has_the_cramers_v_of_its_step() -> None:
    from scipy.stats.contingency import association

    for patients in (8, 12, 14, 40, 99):
        schedule = schedule_of(patients)
        assert schedule is not None
        assert schedule.first_test < schedule.patients <= patients
        assert (schedule.steps[0], schedule.steps[-1]) == (0, 1)
        for step in schedule.steps:
            table = np.array(schedule.training(step))
            assert table.sum() == 4 * schedule.balanced
            assert association(table, method="cramer") == pytest.approx(step)


def test_rand_indices_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, 50), rng.integers(0, 3, 50)
    found = adjusted_rand(np.ones((1, 50)), one, other, np.arange(50))
    assert found == pytest.approx(adjusted_rand_score(one, other))
    weights = rng.integers(0, 2, (20, 50)).astype(float)  # each sample once or not at all
    found = adjusted_rand(weights, one, other, np.arange(50))
    for value, weight in zip(found, weights > 0, strict=True):
        assert value == pytest.approx(adjusted_rand_score(one[weight], other[weight]))


def test_clusters_follow_what_shifts_the_features() -> None:
    rng = np.random.default_rng(0)
    label, site = np.tile([0, 1], 40), np.repeat([0, 1], 40)
    patient, weights = np.arange(80), patient_weights(80, seed=0)
    scores = {}
    for name, codes in (("biology", label), ("site", site)):
        x = np.eye(2)[codes] @ np.array([[3.0, 0, 0], [0, 3.0, 0]])
        best, clusters = clusterings(x + 0.2 * rng.standard_normal((80, 3)), trials=3, seed=0)
        assert best == 2
        scores[name] = clustering_score(clusters, label, site, patient, weights)
        theirs = [
            adjusted_rand_score(label, one) - adjusted_rand_score(site, one) for one in clusters
        ]
        assert scores[name].whole == pytest.approx(np.mean(theirs))
    assert scores["biology"].whole > 0.9
    assert scores["site"].whole < -0.9
    limits = scores["site"].limits()
    assert limits is not None
    assert limits[0] <= scores["site"].whole <= limits[1]
