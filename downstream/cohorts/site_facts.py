"""How far the label and the site of patients go together: what a model may learn in its place."""

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Above this a model can score well by telling sites apart.
HIGH_V = 0.5


def site_facts(sites: Sequence[str], strata: Sequence[Any], column: str) -> dict[str, Any]:
    """Return Cramer's V of label and site, and the patients of each site, as JSON.

    Args:
        sites: site of each patient.
        strata: class, event or part of the range of each patient.
        column: where the sites come from.

    Returns:
        `column`, `patients` by site, and `cramers_v`: 0 where sites have equal shares of each
        class, 1 where the site says the class; None with one site or one class.
    """
    from scipy.stats.contingency import association

    names, site_P = np.unique(np.asarray(sites), return_inverse=True)
    classes, class_P = np.unique([str(one) for one in strata], return_inverse=True)
    table = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(table, (site_P, class_P), 1)
    defined = min(table.shape) > 1
    return {
        "column": column,
        "patients": dict(zip(names.tolist(), table.sum(axis=1).tolist(), strict=True)),
        "cramers_v": float(association(table, method="cramer")) if defined else None,
    }


def site_notes(facts: dict[str, Any], *, kept_apart: bool) -> list[str]:
    """Return sentences on label and site.

    Args:
        facts: facts from `site_facts`.
        kept_apart: whether no site is on both sides of a test.
    """
    v, sites = facts["cramers_v"], len(facts["patients"])
    if v is None:
        return [f"{facts['column']!r} has {sites} site{'s' if sites > 1 else ''}, or one class"]
    notes = [f"{sites} sites by {facts['column']!r}; Cramer's V of label and site {v:.2f}"]
    if v > HIGH_V:
        notes[0] += f", above {HIGH_V}: a model can score well by telling sites apart"
    if not kept_apart:
        notes.append(
            "folds are over patients, and each site is on both sides of a test; --split "
            "preserved-site keeps sites whole, --split site tests each site once"
        )
    return notes
