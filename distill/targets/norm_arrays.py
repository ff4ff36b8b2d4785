"""The numbers that a normalisation of targets is made of, from moments; no torch in here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import Moments, PhiS
from featurestore.stats import phi_s

Arrays = dict[str, npt.NDArray[Any]]


def norm_arrays(targets: str, moments: Moments, kept: PhiS | None = None) -> Arrays:
    """Return the arrays that a normalisation needs beside the mean.

    Args:
        targets: its name.
        moments: of the features.
        kept: their PHI-S, if it was fitted already.
    """
    if targets == "phi-s":
        transform = kept or phi_s(moments.mean, moments.covariance)
        return {"rotation": transform.rotation, "scale": np.asarray(transform.scale)}
    if targets == "z-score":
        return {"std": moments.std}
    square = float(moments.mean @ moments.mean + np.trace(moments.covariance))
    return {"length": np.asarray(square**0.5)} if targets == "l2" else {}


def pooled_moments(several: Sequence[Moments]) -> Moments:
    """Pool moments about each one's own mean, all rows weighing the same."""
    n = sum(one.n for one in several)
    return Moments(
        n=n,
        mean=np.sum([one.mean * (one.n / n) for one in several], axis=0),
        covariance=np.sum([one.covariance * (one.n / n) for one in several], axis=0),
    )
