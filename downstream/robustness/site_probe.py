"""How well the site can be told from the features: a linear probe, out of fold by patient.

Shape letters: N samples, D width of the features, C sites.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cluster import counted
from downstream.cohorts.cohort_errors import listing
from downstream.measures.weighted import auroc_folds
from downstream.probes.probe_folds import ProbeScores, scored, tile_splits
from downstream.probes.probe_spec import ProbeError, ProbeOptions
from downstream.robustness.patient_bootstrap import BootstrapEstimate, estimated, patient_weights
from downstream.robustness.robustness_spec import RobustnessError
from downstream.splits.split import SplitError

#: A site with fewer patients is left out: it is hardly both in training and in a test.
LEAST_PATIENTS = 3


@dataclass(frozen=True, kw_only=True)
class SiteProbe:
    """What a probe of the site has found.

    Attributes:
        auroc: AUROC of the site within folds, the mean over sites of one against the rest; 0.5 if
            the features know nothing of the site.
        sites: names of the sites.
        left_out: sites with too few patients.
    """

    auroc: BootstrapEstimate
    sites: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the estimate with its interval, the number of sites, and those left out."""
        limits = self.auroc.limits() or (None, None)
        return {
            "estimate": self.auroc.whole,
            "low": limits[0],
            "high": limits[1],
            "sites": len(self.sites),
            "left_out": list(self.left_out),
        }


def probe_site(
    x_ND: NDArray[Any],
    sites: Sequence[str],
    patients: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    weight_RP: NDArray[np.float64] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> SiteProbe:
    """Tell the site of each sample by a logistic regression that has not seen its patient.

    Args:
        x_ND: features.
        sites: site of each sample.
        patients: patient of each sample.
        folds: folds over patients, stratified by site.
        seed: seed of folds and bootstrap.
        weight_RP: how often each patient, in sorted order, is drawn in each resample; drawn here if
            None.
        advance: function that is called after each fold, for progress.

    Raises:
        RobustnessError: Fewer than two sites with 3 patients, or too few patients for the folds.
    """
    of_site = Counter(site for _, site in set(zip(patients, sites, strict=True)))
    left_out = tuple(sorted(site for site, n in of_site.items() if n < LEAST_PATIENTS))
    names = tuple(sorted(set(of_site) - set(left_out)))
    if len(names) < 2:
        msg = (
            f"{counted(len(names), 'site')} with {LEAST_PATIENTS} patients or more"
            f"{': ' + listing(names) if names else ''}; a probe of the site needs two"
        )
        raise RobustnessError(msg)
    kept = [at for at, site in enumerate(sites) if site in names]
    rows = pl.DataFrame(
        {
            "patient_id": [patients[at] for at in kept],
            "label": [names.index(sites[at]) for at in kept],
        },
        schema={"patient_id": pl.String, "label": pl.Int64},
    )
    scores = _out_of_fold(
        np.asarray(x_ND)[kept], rows, len(names), folds=folds, seed=seed, advance=advance
    )
    site_N = rows["label"].to_numpy()
    score_NC, fold_N = scores.scores[:, 0], scores.fold
    score = score_NC[:, 1] if len(names) == 2 else score_NC
    ids, patient_N = np.unique(np.asarray(patients), return_inverse=True)
    weights = patient_weights(len(ids), seed=seed) if weight_RP is None else weight_RP
    auroc = estimated(
        lambda weight_RN: auroc_folds(weight_RN, site_N, fold_N, score), weights, patient_N[kept]
    )
    return SiteProbe(auroc=auroc, sites=names, left_out=left_out)


def _out_of_fold(
    x_ND: NDArray[Any],
    rows: pl.DataFrame,
    sites: int,
    *,
    folds: int,
    seed: int,
    advance: Callable[[], None],
) -> ProbeScores:
    """Return the score of each site for each sample, by a probe that has not seen its patient."""
    options = ProbeOptions(models=("linear",), folds=folds, seed=seed)
    scores_NTC, fold_N = np.full((len(x_ND), 1, sites), np.nan), np.full(len(x_ND), -1, np.int64)
    try:
        for split in tile_splits(rows, options):  # one at a time, for the progress
            part = scored(x_ND, rows, [split], "linear", sites, options)
            tested = part.fold >= 0
            scores_NTC[tested], fold_N[tested] = part.scores[tested], part.fold[tested]
            advance()
    except (SplitError, ProbeError) as error:
        msg = f"no probe of the site: {error}"
        raise RobustnessError(msg) from error
    return ProbeScores(scores=scores_NTC, fold=fold_N)


def site_probe_note(features: str, probe: dict[str, Any], column: str) -> str:
    """Return a sentence on how well features tell the site, from `SiteProbe.to_json`."""
    if probe.get("undefined"):
        return f"site probe of {features}: {probe['undefined']}"
    interval = "" if probe["low"] is None else f" ({probe['low']:.2f} to {probe['high']:.2f})"
    lost = listing(probe["left_out"]) if probe["left_out"] else ""
    more = f"; without {lost}, with fewer than {LEAST_PATIENTS} patients" if lost else ""
    return (
        f"site probe: from {features} the site ({column!r}) can be told with AUROC "
        f"{probe['estimate']:.2f}{interval}, out of fold by patient, 0.5 is chance{more}"
    )
