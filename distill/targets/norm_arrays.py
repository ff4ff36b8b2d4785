"""The arrays of a normalisation of targets, computed from moments; without torch."""

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
        targets: name of the normalisation.
        moments: moments of the features.
        kept: PHI-S of the features, if it was fitted already.
    """
    if targets == "phi-s":
        transform = kept or phi_s(moments.mean, moments.covariance)
        return {"rotation": transform.rotation, "scale": np.asarray(transform.scale)}
    if targets == "z-score":
        return {"std": moments.std}
    square = float(moments.mean @ moments.mean + np.trace(moments.covariance))
    return {"length": np.asarray(square**0.5)} if targets == "l2" else {}


def pooled_moments(several: Sequence[Moments]) -> Moments:
    """Pool moments, each about its own mean; all rows weigh the same."""
    n = sum(moments.n for moments in several)
    return Moments(
        n=n,
        mean=np.sum([moments.mean * (moments.n / n) for moments in several], axis=0),
        covariance=np.sum([moments.covariance * (moments.n / n) for moments in several], axis=0),
    )
