"""Robustness to stain and scanner, measured as PLISM does, on perturbed twins of held-out tiles.

Source of the measures: owkin/plism-benchmark. Its pairs are 13 stains and 7 scanners of the same
tissue; here `distill.evaluate.measures.perturb` imitates 4 stains and 4 scanners on the same
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


def embed_variants(
    encoders: Mapping[str, Encode], batches: Iterator[tuple[Int64Array, RgbArray]]
) -> dict[str, dict[Key, Float32Array]]:
    """Embed every variant of the tiles with each encoder.

    Args:
        encoders: functions from pixels and keys to embeddings, by name.
        batches: keys and pixels; each variant is computed once, for all encoders.

    Returns:
        By name of the encoder, and by stain and scanner, the embeddings [N, D].
    """
    parts: dict[str, dict[Key, list[Float32Array]]] = {
        name: {key: [] for key in VARIANTS} for name in encoders
    }
    for keys, pixels in batches:
        for key, varied in variants(pixels):
            for name, encode in encoders.items():
                parts[name][key].append(encode(varied, keys))
    return {
        name: {key: np.concatenate(embeddings) for key, embeddings in by_variant.items()}
        for name, by_variant in parts.items()
    }


def robustness(by_variant: Mapping[Key, Float32Array]) -> dict[str, Numbers]:
    """Compute the cosine and top-k accuracy of twins: medians over the pairs of variants.

    Returns:
        Under `all`, `cross_scanner`, `cross_stain` (the other being equal) and `cross_both` the
        median over such pairs of `cosine` (mean over tiles), `top1`, `top3`, `top5`, `top10` (both
        directions), and the number of `pairs`; under `board` the `score`, the mean of the cosine of
        all pairs and the three kinds' top10, as on the public board; under a variant's name, as
        `stain strong` or `scanner blur`, the numbers of the original and this variant; under
        `chance` the numbers of a random encoder. Higher is better for all. A cosine alone shows no
        robustness: a network with the same output for all tiles has 1 and retrieves no twin.
    """
    pairs = {pair: twin_scores(*map(by_variant.get, pair)) for pair in _variant_pairs(by_variant)}  # type: ignore[arg-type]
    kinds = {"all": list(pairs.values())}
    for kind in ("cross_scanner", "cross_stain", "cross_both"):
        kinds[kind] = [numbers for pair, numbers in pairs.items() if pair_kind(*pair) == kind]
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


def _variant_pairs(by_variant: Mapping[Key, Float32Array]) -> Iterator[tuple[Key, Key]]:
    return itertools.combinations(by_variant, 2)


def twin_scores(one_ND: Float32Array, other_ND: Float32Array) -> Numbers:
    """Return the mean cosine of twins, and the share of twins among the first 1, 3, 5 and 10."""
    return {
        "cosine": float(cosines(one_ND, other_ND).mean()),
        **top_k(twin_ranks(one_ND, other_ND), KS),
    }


def pair_kind(one: Key, other: Key) -> str:
    """Return the name of the difference between two variants: scanner, stain or both."""
    if one[0] == other[0]:
        return "cross_scanner"
    return "cross_stain" if one[1] == other[1] else "cross_both"


def _medians(numbers: list[Numbers]) -> Numbers:
    medians = {name: float(np.median([n[name] for n in numbers])) for name in numbers[0]}
    return {**medians, "pairs": float(len(numbers))}
