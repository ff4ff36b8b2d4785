"""The norms of a run's targets: fitted once by who starts it, kept beside its configuration.

The mean is of each mpp. Scale and rotation are of a teacher at all its mpps together: a head serves
all of them, and a rotation of each mpp's own would give its outputs another meaning at each. They
are kept, since another machine may find another basis where eigenvalues are equal.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from distill.errors import DistillError
from featurestore import Lake, Moments, PhiS, mpp_name, read_phi_s, read_stats
from featurestore.stats import phi_s

if TYPE_CHECKING:
    from distill.students.task import Norms

Key = tuple[str, float]
Arrays = dict[str, npt.NDArray[Any]]


def fit_norms(lake: Lake, targets: str, needs: Sequence[Key], slide_ids: Sequence[str]) -> bytes:
    """The norms as a file, from statistics of these slides that the lake keeps.

    Args:
        lake: at the run's version.
        targets: one of `targets.NORMS`.
        needs: teachers and mpps.
        slide_ids: that the statistics are of.

    Raises:
        DistillError: there are no statistics of a teacher, or the normalisation is not known.
    """
    arrays: Arrays = {}
    teachers = list(dict.fromkeys(teacher for teacher, _ in needs))
    for number, teacher in enumerate(teachers):
        at = {mpp: _moments(lake, teacher, mpp, slide_ids) for t, mpp in needs if t == teacher}
        arrays |= {f"{number}.mean.{mpp_name(mpp)}": found.mean for mpp, found in at.items()}
        kept = None
        if len(at) == 1 and targets == "phi-s":
            kept = read_phi_s(lake, teacher, mpp=next(iter(at)), slide_ids=slide_ids)
        common = statistics(targets, pooled(list(at.values())), kept)
        arrays |= {f"{number}.{name}": value for name, value in common.items()}
    about = json.dumps({"targets": targets, "teachers": teachers}).encode()
    single = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    file: bytes = save({**single, "about": np.frombuffer(about, np.uint8)})
    return file


def statistics(targets: str, moments: Moments, kept: PhiS | None = None) -> Arrays:
    """What a normalisation needs beside the mean.

    Args:
        targets: its name.
        moments: of the features.
        kept: their PHI-S, if it is known already.
    """
    if targets == "phi-s":
        found = kept or phi_s(moments.mean, moments.covariance)
        return {"rotation": found.rotation, "scale": np.asarray(found.scale)}
    if targets == "z-score":
        return {"std": moments.std}
    square = float(moments.mean @ moments.mean + np.trace(moments.covariance))
    return {"length": np.asarray(square**0.5)} if targets == "l2" else {}


def read_norms(data: bytes) -> "Norms":
    """The norms of a file that `fit_norms` made, in float32."""
    # Torch takes seconds to import, and who starts a run only writes.
    from distill.targets.target import norm_of

    arrays: Arrays = load(data)
    about = json.loads(arrays.pop("about").tobytes())
    norms = {}
    for number, teacher in enumerate(about["teachers"]):
        mine = {
            key.split(".", 1)[1]: x for key, x in arrays.items() if key.startswith(f"{number}.")
        }
        common = {key: x for key, x in mine.items() if not key.startswith("mean.")}
        for key, mean in mine.items():
            if key.startswith("mean."):
                mpp = float(key.removeprefix("mean."))
                norms[teacher, mpp] = norm_of(about["targets"], mean=mean, **common)
    return norms


def _moments(lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str]) -> Moments:
    found = read_stats(lake, teacher, mpp=mpp, slide_ids=slide_ids)
    if found is None:
        msg = f"no statistics of '{teacher}' at mpp {mpp_name(mpp)} for this run's slides"
        raise DistillError(msg)
    return found


def pooled(several: Sequence[Moments]) -> Moments:
    """Moments about each one's own mean, all rows weighing the same; the mean is of all rows."""
    n = sum(one.n for one in several)
    return Moments(
        n=n,
        mean=np.sum([one.mean * (one.n / n) for one in several], axis=0),
        covariance=np.sum([one.covariance * (one.n / n) for one in several], axis=0),
    )
