"""Robustness to stain and scanner, measured as PLISM does, on perturbed twins of held-out tiles.

Source of the measures: owkin/plism-benchmark. There 13 stains and 7 scanners of the same tissue
give the pairs; here `distill.evaluate.measures.perturb` makes 4 stains and 4 scanners of the same
pixels, so figures may be compared with each other but never with the public board.

Shape letters: N tiles, D embedding.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from distill.evaluate.measures.perturb import SCANNERS, STAINS, variants
from distill.evaluate.measures.similarity import cosines, top_k, twin_ranks

KS = (1, 3, 5, 10)

RgbArray = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Numbers = dict[str, float]
Key = tuple[str, str]
Encode = Callable[[RgbArray, Int64Array], Float32Array]

VARIANTS: tuple[Key, ...] = tuple(itertools.product(STAINS, SCANNERS))


def perturbed(
    encoders: Mapping[str, Encode], batches: Iterator[tuple[Int64Array, RgbArray]]
) -> dict[str, dict[Key, Float32Array]]:
    """Embed every variant of the tiles [N, D], by stain and scanner, with each encoder.

    Args:
        encoders: by name; each makes embeddings of pixels and keys.
        batches: keys and pixels; each variant is made once, for all encoders.
    """
    parts: dict[str, dict[Key, list[Float32Array]]] = {
        name: {key: [] for key in VARIANTS} for name in encoders
    }
    for keys, pixels in batches:
        for key, varied in variants(pixels):
            for name, encode in encoders.items():
                parts[name][key].append(encode(varied, keys))
    return {
        name: {key: np.concatenate(some) for key, some in by_variant.items()}
        for name, by_variant in parts.items()
    }


def robustness(by_variant: Mapping[Key, Float32Array]) -> dict[str, Numbers]:
    """Compute cosine and top-k accuracy of twins: medians over the pairs of variants.

    Returns:
        Under `all`, `cross_scanner`, `cross_stain` (the other being equal) and `cross_both` the
        median over such pairs of `cosine` (mean over tiles), `top1`, `top3`, `top5`, `top10` (both
        directions), and their number `pairs`; under `board` `score`, the mean of the cosine of all
        pairs and the three kinds' top10, as the public board takes it; under a variant's name, as
        `stain strong` or `scanner blur`, the original against it; under `chance` what a random
        encoder reaches. Higher is better for all. A cosine alone is no robustness: a network that
        gives the same for all tiles has 1 and retrieves no twin.
    """
    pairs = {pair: twins(*map(by_variant.get, pair)) for pair in _pairs(by_variant)}  # type: ignore[arg-type]
    kinds = {"all": list(pairs.values())}
    for kind in ("cross_scanner", "cross_stain", "cross_both"):
        kinds[kind] = [numbers for pair, numbers in pairs.items() if kind_of(*pair) == kind]
    numbers_by_kind = {kind: _medians(numbers) for kind, numbers in kinds.items()}
    top10 = [numbers_by_kind[kind]["top10"] for kind in list(kinds)[1:]]
    numbers_by_kind["board"] = {"score": float(np.mean([numbers_by_kind["all"]["cosine"], *top10]))}
    original = ("original", "original")
    for stain, scanner in VARIANTS:
        if (stain == "original") != (scanner == "original"):
            name = f"scanner {scanner}" if stain == "original" else f"stain {stain}"
            numbers_by_kind[name] = pairs[original, (stain, scanner)]
    count = len(by_variant[original])
    numbers_by_kind["chance"] = {f"top{k}": min(1.0, k / (2 * count - 1)) for k in KS}
    return numbers_by_kind


def _pairs(by_variant: Mapping[Key, Float32Array]) -> Iterator[tuple[Key, Key]]:
    return itertools.combinations(by_variant, 2)


def twins(one_ND: Float32Array, other_ND: Float32Array) -> Numbers:
    """Return the mean cosine of twins, and their share among the first 1, 3, 5 and 10."""
    return {
        "cosine": float(cosines(one_ND, other_ND).mean()),
        **top_k(twin_ranks(one_ND, other_ND), KS),
    }


def kind_of(one: Key, other: Key) -> str:
    """Name the difference of two variants: scanner, stain or both."""
    if one[0] == other[0]:
        return "cross_scanner"
    return "cross_stain" if one[1] == other[1] else "cross_both"


def _medians(numbers: list[Numbers]) -> Numbers:
    medians = {name: float(np.median([n[name] for n in numbers])) for name in numbers[0]}
    return {**medians, "pairs": float(len(numbers))}
