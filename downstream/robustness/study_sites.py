"""The site probe of a study: how well its patients' site can be told from each feature set."""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cluster import progress
from downstream.cohorts.site_facts import site_facts, site_notes
from downstream.robustness.robustness_spec import RobustnessError
from downstream.robustness.site_probe import probe_site, site_probe_note
from downstream.run.feature_bags import pooled_bag, read_patient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downstream.cohorts.cohort import Cohort
    from downstream.run.study import Study
    from featurestore import Lake


def site_probes(
    lake: "Lake", study: "Study", cohort: "Cohort"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the facts of a cohort with the site probe of each feature set, and notes on them.

    A patient is one vector, the mean over slides of mean tiles at the study's first mpp; probes are
    out of fold by patient.

    Args:
        lake: the lake of the features.
        study: the run, for its patients and feature sets.
        cohort: its cohort; without sites its facts are returned as they are.
    """
    facts = dict(cohort.facts)
    if not cohort.site_of:
        return facts, ()
    patients = [patient.patient_id for patient in study.patients]
    sites = [cohort.site_of[patient] for patient in patients]
    probes: dict[str, Any] = {}
    total = len(patients) * len(study.features)
    with progress("site probe", total=total, unit="patients") as bar:
        for name in study.features:
            vectors = []
            for patient in study.patients:
                bag = read_patient(lake, patient.slide_ids, name, study.mpps[:1])
                vectors.append(pooled_bag(bag))
                bar.advance()
            probes[name] = site_probe_json(np.stack(vectors), sites, patients, seed=study.seed)
    column = facts.get("site", {}).get("column", "")
    notes = tuple(site_probe_note(name, probe, column) for name, probe in probes.items())
    return {**facts, "site": {**facts.get("site", {}), "probe": probes}}, notes


def tile_sites(
    rows: pl.DataFrame,
    features_of: "Mapping[str, np.ndarray[Any, Any]]",
    column: str | None,
    *,
    seed: int,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the facts on the sites of labelled tiles with the site probe of each feature set.

    Args:
        rows: `patient_id`, `label` and `site` of each tile.
        features_of: features [N, D] by feature set.
        column: where the sites come from; None for no sites, and then there are no facts.
        seed: seed of folds and bootstrap.

    Returns:
        Cramér's V of label and site and the probes, as JSON; and notes on them.
    """
    if column is None:
        return {}, ()
    once = rows.unique(["patient_id", "label", "site"], maintain_order=True)
    facts = site_facts(once["site"].to_list(), once["label"].to_list(), column)
    sites, patients = rows["site"].to_list(), rows["patient_id"].to_list()
    probes = {
        name: site_probe_json(x_ND, sites, patients, seed=seed)
        for name, x_ND in features_of.items()
    }
    notes = [site_probe_note(name, probe, column) for name, probe in probes.items()]
    return {**facts, "probe": probes}, (*site_notes(facts, kept_apart=True), *notes)


def site_probe_json(
    x_ND: "np.ndarray[Any, Any]", sites: list[str], patients: list[str], *, seed: int
) -> dict[str, Any]:
    """Return a site probe as JSON; `undefined` says why these patients allow none."""
    try:
        return probe_site(x_ND, sites, patients, seed=seed).to_json()
    except RobustnessError as error:
        missing = dict.fromkeys(("estimate", "low", "high"))
        return {**missing, "undefined": str(error)}
