"""The norms of a run's targets: fitted once by the driver, kept beside the run's settings.

Each mpp has its own mean. Scale and rotation are computed over all mpps of a teacher together: one
head predicts all of them, and with a rotation per mpp its outputs would differ in meaning. They are
kept, since another machine may compute another basis where eigenvalues are equal.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from distill.errors import DistillError
from distill.targets.norm_arrays import Arrays, norm_arrays, pooled_moments
from featurestore import Lake, Moments, mpp_name, read_phi_s, read_stats

if TYPE_CHECKING:
    from distill.targets.target import Norms

Key = tuple[str, float]


def fit_norms(lake: Lake, targets: str, needs: Sequence[Key], slide_ids: Sequence[str]) -> bytes:
    """Return the file of norms, computed from the lake's statistics of these slides.

    Args:
        lake: the lake at the run's version.
        targets: kind of normalisation, one of `target.NORMS`.
        needs: teachers and mpps.
        slide_ids: slides of the statistics.

    Raises:
        DistillError: there are no statistics of a teacher, or the normalisation is not known.
    """
    arrays: Arrays = {}
    teachers = list(dict.fromkeys(teacher for teacher, _ in needs))
    for number, teacher in enumerate(teachers):
        by_mpp = {mpp: _moments(lake, teacher, mpp, slide_ids) for t, mpp in needs if t == teacher}
        arrays |= {f"{number}.mean.{mpp_name(mpp)}": part.mean for mpp, part in by_mpp.items()}
        kept = None
        if len(by_mpp) == 1 and targets == "phi-s":
            kept = read_phi_s(lake, teacher, mpp=next(iter(by_mpp)), slide_ids=slide_ids)
        common = norm_arrays(targets, pooled_moments(list(by_mpp.values())), kept)
        arrays |= {f"{number}.{name}": array for name, array in common.items()}
    header = json.dumps({"targets": targets, "teachers": teachers}).encode()
    float32_arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    file: bytes = save({**float32_arrays, "about": np.frombuffer(header, np.uint8)})
    return file


def read_norms(file: bytes) -> "Norms":
    """Return the norms, in float32, from a file of `fit_norms`."""
    # Torch takes seconds to import, and the process that starts a run only writes the file.
    from distill.targets.target import norm_of

    arrays: Arrays = load(file)
    header = json.loads(arrays.pop("about").tobytes())
    norms = {}
    for number, teacher in enumerate(header["teachers"]):
        teacher_arrays = {
            key.split(".", 1)[1]: x for key, x in arrays.items() if key.startswith(f"{number}.")
        }
        common = {key: x for key, x in teacher_arrays.items() if not key.startswith("mean.")}
        for key, mean in teacher_arrays.items():
            if key.startswith("mean."):
                mpp = float(key.removeprefix("mean."))
                norms[teacher, mpp] = norm_of(header["targets"], mean=mean, **common)
    return norms


def _moments(lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str]) -> Moments:
    moments = read_stats(lake, teacher, mpp=mpp, slide_ids=slide_ids)
    if moments is None:
        msg = f"no statistics of '{teacher}' at mpp {mpp_name(mpp)} for this run's slides"
        raise DistillError(msg)
    return moments
