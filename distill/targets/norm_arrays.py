"""The arrays of a normalisation of targets, computed from moments; without torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distill.errors import DistillError
from featurestore import Moments, PhiS
from featurestore.stats import phi_s

Arrays = dict[str, npt.NDArray[Any]]
#: Least standard deviation of a channel, as a share of the root mean square over all channels. A
#: dead channel, which is the same for all tiles, would be divided by 0, and a nearly dead one would
#: have targets of rounding errors.
STD_MIN = 1e-3


def norm_arrays(targets: str, moments: Moments, kept: PhiS | None = None) -> Arrays:
    """Return the arrays that a normalisation needs beside the mean.

    Args:
        targets: name of the normalisation.
        moments: moments of the features.
        kept: PHI-S of the features, if it was fitted already.

    Raises:
        DistillError: all channels are dead, for targets `z-score`.
        ValueError: the same, for targets `phi-s`.
    """
    if targets == "phi-s":
        transform = kept or phi_s(moments.mean, moments.covariance)
        return {"rotation": transform.rotation, "scale": np.asarray(transform.scale)}
    if targets == "z-score":
        return {"std": _floored_std(moments)}
    square = float(moments.mean @ moments.mean + np.trace(moments.covariance))
    return {"length": np.asarray(square**0.5)} if targets == "l2" else {}


def _floored_std(moments: Moments) -> npt.NDArray[np.float64]:
    """Return the standard deviation of each channel, at least `STD_MIN` of the typical one."""
    typical = float(np.sqrt(np.square(moments.std).mean()))
    if typical == 0:
        msg = "all tiles have the same features, so nothing can be standardised; name more slides"
        raise DistillError(msg)
    return moments.std.clip(min=STD_MIN * typical)


def pooled_moments(several: Sequence[Moments]) -> Moments:
    """Pool moments, each about its own mean; all rows weigh the same."""
    n = sum(moments.n for moments in several)
    return Moments(
        n=n,
        mean=np.sum([moments.mean * (moments.n / n) for moments in several], axis=0),
        covariance=np.sum([moments.covariance * (moments.n / n) for moments in several], axis=0),
    )
