"""All measures of one column of features on given samples, from arrays alone.

Shape letters: N samples, P patients, R resamples, D width of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downstream.robustness.clustering_score import (
    MOST_CLUSTERED,
    clustering_score,
    clusterings,
    fits_of_clustering,
)
from downstream.robustness.confounded_probe import (
    CHANCE,
    apd,
    corrected_limits,
    nipd,
    nipd_pseudo_values,
    sweep_blocks,
)
from downstream.robustness.patient_bootstrap import (
    LEVEL,
    RESAMPLES,
    BootstrapEstimate,
    estimated,
    limits_of,
    mean_recall,
    median,
    patient_weights,
    ratio,
    worst_tenth,
)
from downstream.robustness.robustness_measures import MEASURES
from downstream.robustness.robustness_spec import RobustnessError, RobustnessOptions
from downstream.robustness.site_probe import probe_site
from downstream.robustness.typed_neighbours import (
    MARGIN_NEIGHBOURS,
    cosine_distances,
    has_margin,
    margins,
    neighbour_evidence,
    share_of_matches,
)

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SampleCodes:
    """The class, site and patient of each sample, in an order in which the first are drawn evenly.

    Attributes:
        label: class of each sample [N]; empty where no class is known.
        site: site of each sample [N].
        patient: patient of each sample [N], numbers in the order of `patients`.
        sites: names of the sites.
        patients: sorted ids of the patients.
    """

    label: Codes
    site: Codes
    patient: Codes
    sites: tuple[str, ...]
    patients: tuple[str, ...]

    @classmethod
    def of(
        cls, labels: Sequence[int], sites: Sequence[str], patients: Sequence[str]
    ) -> "SampleCodes":
        """Return the codes of samples whose sites and patients are named."""
        site_names, site_N = np.unique(np.asarray(sites), return_inverse=True)
        ids, patient_N = np.unique(np.asarray(patients), return_inverse=True)
        return cls(
            label=np.asarray(labels, dtype=np.int64),
            site=site_N,
            patient=patient_N,
            sites=tuple(map(str, site_names)),
            patients=tuple(map(str, ids)),
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.site)


@dataclass(kw_only=True)
class Passport:
    """The measures of a column.

    Attributes:
        measures: measure -> its estimate, interval and direction as JSON, or why it is undefined.
        draws: measure -> its values on the resamples of patients, the same for all columns.
        details: numbers of neighbours, blocks and clusters, and the accuracies of the probes.
        margin: CRoMa's margin of each sample [N]; NaN where it is undefined.
    """

    measures: dict[str, Json] = field(default_factory=dict)
    draws: dict[str, Floats] = field(default_factory=dict)
    details: Json = field(default_factory=dict)
    margin: Floats = field(default_factory=lambda: np.empty(0))

    def add(self, name: str, estimate: BootstrapEstimate, why: str) -> None:
        """Add a measure with its bootstrap interval; `why` says what is missing if it has none."""
        limits = estimate.limits()
        if not np.isfinite(estimate.whole) or limits is None:
            self.add_undefined(name, why)
            return
        self.draws[name] = estimate.draws
        self._add(name, estimate.whole, limits, "percentile")

    def add_undefined(self, name: str, why: str) -> None:
        """Add a measure that is undefined on these samples, and why."""
        higher = MEASURES[name].higher_is_better
        missing = dict.fromkeys(("estimate", "low", "high"))
        self.measures[name] = {**missing, "undefined": why, "higher_is_better": higher}

    def add_over_replicates(self, name: str, mean: float, value_J: Floats, overlap: float) -> None:
        """Add a measure with the interval of the corrected resampled t test."""
        limits = corrected_limits(mean, value_J, overlap=overlap)
        if limits is None or not np.isfinite(mean):
            self.add_undefined(name, "the balanced probe of the class is not better than chance")
            return
        self._add(name, mean, limits, "corrected resampled t")

    def _add(self, name: str, number: float, limits: tuple[float, float], method: str) -> None:
        self.measures[name] = {
            "estimate": round(number, 12),  # 0.9999999999999999 is 1
            "low": limits[0],
            "high": limits[1],
            "level": LEVEL,
            "method": method,
            "higher_is_better": MEASURES[name].higher_is_better,
        }


def steps_of_passport(codes: SampleCodes, options: RobustnessOptions) -> int:
    """Return how often `column_passport` reports a step of its work, at most."""
    if not len(codes.label):
        return options.folds
    return options.folds + 6 + fits_of_clustering(options.trials, min(len(codes), MOST_CLUSTERED))


def column_passport(
    x_ND: NDArray[Any],
    codes: SampleCodes,
    options: RobustnessOptions,
    *,
    advance: Callable[[], None] = lambda: None,
) -> Passport:
    """Measure how far a column knows classes from sites.

    Args:
        x_ND: features of the samples.
        codes: class, site and patient of each; without classes the site is probed alone.
        options: settings of the measures.
        advance: function that is called after each step, for progress.

    Returns:
        The passport. Measures without a value on these samples say why.
    """
    x = np.asarray(x_ND, dtype=np.float32)
    weight_RP = patient_weights(len(codes.patients), seed=options.seed, resamples=RESAMPLES)
    passport = Passport()
    if len(codes.label):
        _add_neighbours(passport, x, codes, weight_RP)
        _add_confounded(passport, x, codes, options, advance)
        _add_clusters(passport, x, codes, options, weight_RP, advance)
    _add_site(passport, x, codes, options, weight_RP, advance)
    passport.measures = {n: passport.measures[n] for n in MEASURES if n in passport.measures}
    return passport


def differences(one: Passport, other: Passport) -> dict[str, Json]:
    """Return how much better one column is than another, by measure, on the same resamples.

    Above 0 is better, whatever the measure's direction. Measures over replicates have none.
    """
    gaps = {}
    for name in one.draws.keys() & other.draws.keys():
        sign = 1 if MEASURES[name].higher_is_better else -1
        limits = limits_of(sign * (one.draws[name] - other.draws[name]))
        if limits is None:
            continue
        gap = one.measures[name]["estimate"] - other.measures[name]["estimate"]
        gaps[name] = {"estimate": sign * gap, "low": limits[0], "high": limits[1]}
    return {name: gaps[name] for name in MEASURES if name in gaps}


def _add_neighbours(
    passport: Passport, x: NDArray[np.float32], codes: SampleCodes, weight_RP: Floats
) -> None:
    """Add CRoMa, RI, MaRI and the neighbours' vote on the class."""
    label_N, site_N, patient_N = codes.label, codes.site, codes.patient
    distance_NN = cosine_distances(x, patient_N)
    margin_N = margins(distance_NN, label_N, site_N)
    evidence = neighbour_evidence(distance_NN, label_N, site_N)
    defined_N = np.isfinite(margin_N).astype(np.float64)
    few = f"no sample has {MARGIN_NEIGHBOURS} others of each type"
    for name, statistic in (
        ("croma", median(margin_N)),
        ("croma_worst_tenth", worst_tenth(margin_N)),
        ("croma_below_0", ratio((margin_N <= 0).astype(np.float64), defined_N)),
    ):
        passport.add(name, estimated(statistic, weight_RP, patient_N), few)
    for name, part_N2 in (("ri", evidence.counts), ("mari", evidence.weights)):
        whole = ratio(part_N2[:, 0], part_N2.sum(axis=1))
        none = f"no neighbour among the first {evidence.k} shares class or site alone"
        passport.add(name, estimated(whole, weight_RP, patient_N), none)
    vote = mean_recall(evidence.class_vote == label_N, label_N)
    passport.add(
        "class_accuracy", estimated(vote, weight_RP, patient_N), "no sample has neighbours"
    )
    passport.margin = margin_N
    passport.details |= {
        "k": evidence.k,
        "tau": evidence.tau,
        "ri_support": float((evidence.counts.sum(axis=1) > 0).mean()),
        "croma_support": float(has_margin(label_N, site_N, patient_N).mean()),
        "ri_by_chance": share_of_matches(label_N, site_N, patient_N),
        "site_accuracy": float(mean_recall(evidence.site_vote == site_N, site_N)(
            np.ones((1, len(site_N)))
        )[0]),
    }  # fmt: skip


def _add_confounded(
    passport: Passport,
    x: NDArray[np.float32],
    codes: SampleCodes,
    options: RobustnessOptions,
    advance: Callable[[], None],
) -> None:
    """Add APD and nIPD."""
    try:
        swept = sweep_blocks(
            x,
            codes.label,
            codes.site,
            codes.patient,
            replicates=options.replicates,
            seed=options.seed,
            advance=advance,
        )
    except RobustnessError as error:
        for name in ("apd", "nipd"):
            passport.add_undefined(name, str(error))
        return
    accuracies, schedule = swept.accuracies, swept.schedule
    drop_J = apd(accuracies)
    passport.add_over_replicates("apd", float(drop_J.mean()), drop_J, schedule.overlap)
    passport.add_over_replicates(
        "nipd",
        nipd(accuracies, schedule.steps),
        nipd_pseudo_values(accuracies, schedule.steps),
        schedule.overlap,
    )
    passport.details["confounding"] = {
        "cramers_v": list(schedule.steps),
        "accuracy": accuracies.mean(axis=1).tolist(),
        "chance": CHANCE,
        "training_patients": 4 * schedule.balanced,
        "test_patients": 4 * (schedule.patients - schedule.first_test),
        "replicates": accuracies.shape[1],
        "blocks": swept.blocks,
        "patients": swept.patients,
    }


def _add_clusters(
    passport: Passport,
    x: NDArray[np.float32],
    codes: SampleCodes,
    options: RobustnessOptions,
    weight_RP: Floats,
    advance: Callable[[], None],
) -> None:
    """Add the clustering score."""
    first = slice(0, MOST_CLUSTERED)
    distinct = len(np.unique(x[first], axis=0))
    if distinct < 4:
        passport.add_undefined("clustering_score", f"only {distinct} different samples")
        return
    clusters, cluster_TN = clusterings(
        x[first], trials=options.trials, seed=options.seed, advance=advance
    )
    score = clustering_score(
        cluster_TN, codes.label[first], codes.site[first], codes.patient[first], weight_RP
    )
    passport.add("clustering_score", score, "the clusters are undefined")
    passport.details["clusters"] = clusters


def _add_site(
    passport: Passport,
    x: NDArray[np.float32],
    codes: SampleCodes,
    options: RobustnessOptions,
    weight_RP: Floats,
    advance: Callable[[], None],
) -> None:
    """Add the AUROC of the site."""
    try:
        probed = probe_site(
            x,
            [codes.sites[site] for site in codes.site],
            [codes.patients[patient] for patient in codes.patient],
            folds=options.folds,
            seed=options.seed,
            weight_RP=weight_RP,
            advance=advance,
        )
    except RobustnessError as error:
        passport.add_undefined("site_auroc", str(error))
        return
    why = "a site is missing in most resamples of patients"
    passport.add("site_auroc", probed.auroc, why)
    passport.details["sites_without_probe"] = list(probed.left_out)
