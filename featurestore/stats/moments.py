"""Mean, covariance and PHI-S of a teacher's features on slides: one pass, in float64.

Rows are read in blocks while the block before is added with Chan's update, so no digits are lost on
large cohorts and memory holds a few blocks and matrices [D, D]. The moments are kept in the lake
under a hash of the very features of them: any number of sets of slides side by side. `fitting`
makes them.
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load

from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.read.selection import Selection
from featurestore.stats.phi_s_rotation import PhiS, phi_s
from featurestore.storage.read_errors import reading
from featurestore.storage.sealed_json import read_named, read_sealed
from featurestore.tables.lance_flat import Float16Array

# Of a block in float64: adding one then costs little beside making it, for D up to 4096.
BLOCK_BYTES = 128 << 20
BLOCKS_AHEAD = 2
MOST_CHANNELS = 16384

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of features [N, D].

    Attributes:
        n: number of rows.
        mean: [D].
        covariance: [D, D], divided by n.
    """

    n: int
    mean: Float64Array
    covariance: Float64Array

    @property
    def std(self) -> Float64Array:
        """Return the standard deviation per channel [D]."""
        return np.sqrt(np.diag(self.covariance))


def merge(one: Moments | None, features: npt.NDArray[np.floating]) -> Moments:
    """Return the moments of the rows of `one` combined with `features` [N, D], N > 0.

    Source: Chan, Golub, LeVeque 1979, updating formulae for means and covariances.
    """
    x = features.astype(np.float64)
    n, mean = len(x), x.mean(axis=0)
    x -= mean
    scatter = x.T @ x
    if one is None:
        scatter /= n
        return Moments(n=n, mean=mean, covariance=scatter)
    total, delta = one.n + n, mean - one.mean
    mean = one.mean + delta * (n / total)
    scatter += one.covariance * one.n
    delta *= math.sqrt(one.n * n / total)
    scatter += np.outer(delta, delta)  # symmetric to the last digit, as all else here
    scatter /= total
    return Moments(n=total, mean=mean, covariance=scatter)


def combined(one: Moments, other: Moments) -> Moments:
    """Return the moments of the rows of both, by the same formulae as `merge`."""
    total, delta = one.n + other.n, other.mean - one.mean
    scatter = one.covariance * one.n + other.covariance * other.n
    delta_scaled = delta * math.sqrt(one.n * other.n / total)
    scatter += np.outer(delta_scaled, delta_scaled)
    scatter /= total
    return Moments(n=total, mean=one.mean + delta * (other.n / total), covariance=scatter)


def folder(teacher: str, mpp: float) -> str:
    """Return the folder of the statistics of a teacher at an mpp, relative to the lake."""
    return f"stats/{teacher}@mpp{mpp_name(mpp)}"


# ---------------------------------------------------------------------- reading


def read_card(
    lake: Lake, teacher: str, *, mpp: float, slide_ids: Sequence[str], tiles: int | None = None
) -> dict[str, Any] | None:
    """Return the card of the statistics of these slides' features as they are now, or None.

    The card's `n` is the number of rows, `slides` and `lake_version` are their source,
    `path` is the folder or file that holds them, and `sample` the number of tiles that were drawn
    (null: all tiles were read).

    Args:
        lake: the lake.
        teacher: the column.
        mpp: microns per pixel of the tiles.
        slide_ids: the slides.
        tiles: number of tiles of a sample; None: statistics of all tiles, or of the largest sample
            where there are none of all.

    Raises:
        LakeError: the teacher has no column at this mpp.
        DamageError: the card is damaged.
    """
    lake.check_teacher(teacher, mpp=mpp)
    key = stats_key(lake, teacher, mpp, slide_ids)
    for name in [key] if tiles is None else [key, sample_name(key, tiles)]:
        path = f"{folder(teacher, mpp)}/{name}"
        if lake.exists(f"{path}/card.json"):
            return {**read_sealed(lake.store, f"{path}/card.json"), "path": path}
    if early := _early_card(lake, teacher, mpp, slide_ids):
        return early
    return _sample_card(lake, teacher, mpp, key) if tiles is None else None


def sample_name(key: str, tiles: int) -> str:
    """Return the name of the folder of the statistics of a sample."""
    return f"{key}-{tiles}"


def _sample_card(lake: Lake, teacher: str, mpp: float, key: str) -> dict[str, Any] | None:
    """Return the card of the largest sample of some slides' features, or None."""
    base = folder(teacher, mpp)
    sizes = [
        int(name.removeprefix(f"{key}-"))
        for name in lake.store.names(base)
        if name.startswith(f"{key}-") and lake.exists(f"{base}/{name}/card.json")
    ]
    if not sizes:
        return None
    path = f"{base}/{sample_name(key, max(sizes))}"
    return {**read_sealed(lake.store, f"{path}/card.json"), "path": path}


def read_stats(lake: Lake, teacher: str, *, mpp: float, slide_ids: Sequence[str]) -> Moments | None:
    """Return the moments kept for exactly these slides' features of this teacher, or None.

    Raises:
        LakeError: the teacher has no column at this mpp.
        DamageError: the stored statistics are damaged.
    """
    card = read_card(lake, teacher, mpp=mpp, slide_ids=slide_ids)
    return None if card is None else moments_of(lake, card)


def read_phi_s(lake: Lake, teacher: str, *, mpp: float, slide_ids: Sequence[str]) -> PhiS | None:
    """Return the PHI-S transform kept for exactly these slides' features, or None.

    It is computed from the moments where these were kept without it, as early lakes did.

    Raises:
        LakeError: the teacher has no column at this mpp.
        DamageError: the stored statistics are damaged.
    """
    card = read_card(lake, teacher, mpp=mpp, slide_ids=slide_ids)
    if card is None:
        return None
    if "formula" not in card:
        moments = moments_of(lake, card)
        return phi_s(moments.mean, moments.covariance)
    arrays = _arrays(lake, card, f"{card['path']}/phi_s.safetensors")
    return PhiS(mean=arrays["mean"], rotation=arrays["rotation"], scale=card["scale"])


def kept_stats(lake: Lake, teacher: str, *, mpp: float) -> list[dict[str, Any]]:
    """Return the cards of all statistics of a column at an mpp, those of the newest lake last.

    Raises:
        LakeError: the teacher has no column at this mpp.
        DamageError: a card is damaged.
    """
    lake.check_teacher(teacher, mpp=mpp)
    base = folder(teacher, lake.known_mpp(mpp))
    paths = [f"{base}/{name}" for name in sorted(lake.store.names(base))]
    cards = [
        {**read_sealed(lake.store, f"{path}/card.json"), "path": path}
        for path in paths
        if lake.exists(f"{path}/card.json")
    ]
    return sorted(cards, key=lambda card: int(card["lake_version"]))


def moments_of(lake: Lake, card: dict[str, Any]) -> Moments:
    """Return the moments of a card of `kept_stats`.

    Raises:
        DamageError: the stored statistics are damaged.
    """
    name = f"{card['path']}/moments" if "formula" in card else card["path"]
    arrays = _arrays(lake, card, f"{name}.safetensors")
    return Moments(n=card["n"], mean=arrays["mean"], covariance=arrays["covariance"])


def _arrays(lake: Lake, card: dict[str, Any], path: str) -> dict[str, Float64Array]:
    content = read_named(lake.store, path, card)
    with reading(lake.store, f"{path} can't be read"):
        arrays: dict[str, Float64Array] = load(content)
    return arrays


def _early_card(
    lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str]
) -> dict[str, Any] | None:
    """Return the card of the only statistics that an early lake kept, if of these slides."""
    base = folder(teacher, mpp)
    if not lake.exists(f"{base}/card.json"):
        return None
    card = read_sealed(lake.store, f"{base}/card.json")
    if card["key"] != _hash([lake.identity(teacher, mpp=mpp), sorted(slide_ids)]):
        return None
    return {**card, "path": f"{base}/{card['key']}"}


def stats_key(lake: Lake, teacher: str, mpp: float, slide_ids: Sequence[str]) -> str:
    """Return a hash of the encoder, the names, and the present checksums of the features."""
    names = sorted(set(slide_ids))
    catalog_rows = lake.features_of(teacher, mpp=mpp, slide_ids=names)
    rows = catalog_rows.select("slide_id", "tiles", "crc32").sort("slide_id").rows()
    return _hash([lake.identity(teacher, mpp=mpp), names, rows])


def _hash(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------- rows


def feature_blocks(
    lake: Lake,
    teacher: str,
    selection: Selection,
    *,
    row_numbers: npt.NDArray[np.int64] | None = None,
) -> Iterator[tuple[int, Float16Array]]:
    """Yield (number of tiles, features [N, D]) block after block; two blocks are read ahead.

    Args:
        lake: the lake.
        teacher: the column.
        selection: the slides.
        row_numbers: rows of the selection to read; None for all. Of some rows no checksum is known:
            that they are the named slides' is looked at, not their content.
    """
    dim = lake.teachers(mpp=selection.mpp)[teacher]
    width = _width(teacher, dim, lake.identity(teacher, mpp=selection.mpp))
    chosen = np.arange(selection.tiles) if row_numbers is None else row_numbers
    starts = range(0, len(chosen), max(1, BLOCK_BYTES // (8 * dim)))
    reader = lake.row_reader(mpp=selection.mpp)

    def read(start: int) -> tuple[int, Float16Array]:
        rows = chosen[start : start + starts.step]
        located = selection.locate(rows)
        if row_numbers is None:
            slides = np.unique(located.slide).tolist()
            lake.first_reads.compare(reader, selection, slides, [teacher])
        stored = reader.read(located.ranges, [teacher])
        selection.check(located, stored.tile_id)
        complete = _finite_rows(selection, rows, stored.by_teacher[teacher])
        return len(rows), complete.reshape(-1, width)

    waiting: deque[Future[tuple[int, Float16Array]]] = deque()
    with ThreadPoolExecutor(BLOCKS_AHEAD, thread_name_prefix="slidelake-stats") as pool:
        for start in starts:
            waiting.append(pool.submit(read, start))
            if len(waiting) > BLOCKS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _width(teacher: str, dim: int, identity: dict[str, Any]) -> int:
    """Return D of a column; each of several tokens of a tile is a row of its own.

    Raises:
        LakeError: D is too large for a covariance matrix.
    """
    sample = identity.get("sample") if identity.get("pooling") == "patches" else None
    width = dim // int(identity.get("tokens") or sample or 1)
    if width > MOST_CHANNELS:
        msg = (
            f"'{teacher}' has {width} channels, its covariance would take "
            f"{8 * width * width / 1e9:.0f} GB; statistics are of {MOST_CHANNELS} or fewer"
        )
        raise LakeError(msg)
    return width


def _finite_rows(
    selection: Selection, rows: npt.NDArray[np.int64], features: Float16Array
) -> Float16Array:
    """Return the features without the NaN rows of tiles that the teacher left out.

    Raises:
        DamageError: a row is partly not finite, which would spoil every entry of the rotation.
    """
    finite = np.isfinite(features).all(axis=1)
    if finite.all():
        return features
    wrong = np.flatnonzero(~finite)
    wrong = wrong[~np.isnan(features[wrong]).all(axis=1)]
    if len(wrong):
        slide = selection.slide_ids[int(selection.locate(rows[wrong[:1]]).slide[0])]
        msg = f"slide {slide} at mpp {mpp_name(selection.mpp)}: features are not finite; run verify"
        raise DamageError(msg)
    return features[finite]
