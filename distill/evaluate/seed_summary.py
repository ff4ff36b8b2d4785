"""Summary of several seeds: mean, least and greatest of every leaf of a tree of numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

Tree = dict[str, Any]


def merged_numbers(trees: Sequence[Tree]) -> Tree:
    """Merge trees of the same shape into one tree of `mean`, `min` and `max`.

    A leaf is a number, or an `estimate` with its interval: `low` is then the lowest and `high` the
    highest end of all intervals. A branch is merged from the trees that have it. NaN and None are
    left out; a leaf with no number left becomes None.

    >>> merged_numbers([{"a": 1.0}, {"a": 3.0}])
    {'a': {'mean': 2.0, 'min': 1.0, 'max': 3.0}}
    """
    keys = dict.fromkeys(key for tree in trees for key in tree)
    by_key = {key: [tree[key] for tree in trees if tree.get(key) is not None] for key in keys}
    return {key: _merged_leaves(leaves) for key, leaves in by_key.items()}


def _merged_leaves(leaves: list[Any]) -> Tree | None:
    if not leaves:
        return None
    if not isinstance(leaves[0], dict):
        return spread(leaves)
    if "estimate" not in leaves[0]:
        return merged_numbers(leaves)
    interval_ends = (
        spread([estimate[name] for estimate in leaves])[end]
        for name, end in (("low", "min"), ("high", "max"))
    )
    low, high = interval_ends
    return {**spread([estimate["estimate"] for estimate in leaves]), "low": low, "high": high}


def spread(numbers: Sequence[float | None]) -> dict[str, float | None]:
    """Return the mean, least and greatest of some numbers, NaN and None left out."""
    finite_numbers = [
        float(number) for number in numbers if number is not None and not math.isnan(number)
    ]
    if not finite_numbers:
        return dict.fromkeys(("mean", "min", "max"))
    return {
        "mean": sum(finite_numbers) / len(finite_numbers),
        "min": min(finite_numbers),
        "max": max(finite_numbers),
    }


def strict_json(tree: Any) -> Any:  # noqa: ANN401 - JSON is what it is
    """Convert a tree to strict JSON: None for NaN, and only text as keys."""
    if isinstance(tree, dict):
        return {str(key): strict_json(part) for key, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [strict_json(part) for part in tree]
    if isinstance(tree, float):
        return float(f"{tree:.6g}") if math.isfinite(tree) else None
    return tree


def group_name(names: Sequence[str]) -> str:
    """Return one name for students that differ in their seed.

    >>> group_name(["tiny-s0", "tiny-s1"]), group_name(["a", "b"]), group_name(["a"])
    ('tiny', 'a and 1 more', 'a')
    """
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike).rstrip("0123456789")
    for ending in ("seed", "s"):
        if common.endswith(("-" + ending, "_" + ending, "." + ending)):
            common = common.removesuffix(ending)
    return common.rstrip("-_.") or f"{names[0]} and {len(names) - 1} more"
