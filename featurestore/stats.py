"""Mean and covariance of a teacher's features on named slides: exact, in one pass, in float64.

Slides are merged with Chan's update, so the result does not lose digits on large cohorts.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.schema import features_table, identity_of

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of features [N, D].

    Attributes:
        n: rows seen.
        mean: [D].
        covariance: [D, D], divided by n.
    """

    n: int
    mean: Float64Array
    covariance: Float64Array

    @property
    def std(self) -> Float64Array:
        """Standard deviation per channel [D]."""
        return np.sqrt(np.diag(self.covariance))


def merge(one: Moments | None, features: npt.NDArray[np.floating]) -> Moments:
    """Moments of what `one` saw and of `features` [N, D] together.

    Source: Chan, Golub, LeVeque 1979, updating formulae for means and covariances.
    """
    x = features.astype(np.float64)
    n, mean = len(x), x.mean(axis=0)
    centred = x - mean
    scatter = centred.T @ centred
    if one is None:
        return Moments(n=n, mean=mean, covariance=scatter / n)
    total, delta = one.n + n, mean - one.mean
    scatter += one.covariance * one.n + np.outer(delta, delta) * (one.n * n / total)
    return Moments(n=total, mean=one.mean + delta * (n / total), covariance=scatter / total)


def folder(teacher: str, mpp: float) -> str:
    """Where the moments of a teacher at an mpp are kept, relative to the lake."""
    return f"stats/{teacher}@mpp{mpp_name(mpp)}"


def read_stats(lake: Lake, teacher: str, *, mpp: float, slide_ids: Sequence[str]) -> Moments | None:
    """The moments kept for exactly these slides and this teacher, or None."""
    card_path = f"{folder(teacher, mpp)}/card.json"
    if not lake.exists(card_path):
        return None
    card = lake.read_json(card_path)
    if card["key"] != _key(lake, teacher, mpp, slide_ids):
        return None
    arrays = load(lake.read_bytes(f"{folder(teacher, mpp)}/{card['key']}.safetensors"))
    return Moments(n=card["n"], mean=arrays["mean"], covariance=arrays["covariance"])


def fit_stats(
    lake: Lake,
    teacher: str,
    *,
    mpp: float,
    slide_ids: Sequence[str],
    on_slide: Callable[[int], None] = lambda tiles: None,
) -> Moments:
    """Moments over all tiles of the named slides; kept in the lake with what they saw.

    Raises:
        LakeError: no slide is named, or they have fewer than two tiles.
    """
    moments: Moments | None = None
    for slide_id in sorted(slide_ids):
        features = lake.bag(slide_id, teacher, mpp=mpp).features
        if len(features):
            moments = merge(moments, features)
        on_slide(len(features))
    if moments is None or moments.n < 2:
        msg = f"statistics of '{teacher}' at mpp {mpp} need two tiles or more of named slides"
        raise LakeError(msg)
    _write(lake, teacher, mpp, slide_ids, moments)
    return moments


def _write(
    lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str], moments: Moments
) -> None:
    key = _key(lake, teacher, mpp, slide_ids)
    arrays = {"mean": moments.mean, "covariance": moments.covariance}
    card: dict[str, Any] = {
        "teacher": teacher,
        "mpp": mpp,
        "n": moments.n,
        "slides": sorted(slide_ids),
        "lake_version": lake.version,
        "key": key,
    }
    lake.write_bytes(f"{folder(teacher, mpp)}/{key}.safetensors", save(arrays))
    lake.write_json(f"{folder(teacher, mpp)}/card.json", card)


def _key(lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str]) -> str:
    field = lake.table(features_table(lake.known_mpp(mpp))).schema.field(teacher)
    text = json.dumps([identity_of(field), sorted(slide_ids)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
