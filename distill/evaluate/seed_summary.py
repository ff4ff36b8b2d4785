"""Numbers of several seeds as one: mean, least and greatest of every leaf of a tree of numbers."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

Tree = dict[str, Any]


def merged(trees: Sequence[Tree]) -> Tree:
    """Trees of the same shape as one of `mean`, `min` and `max`.

    A leaf is a number, or an `estimate` with its interval: `low` is then the lowest and `high` the
    highest end of all intervals. Branches that a tree lacks are merged of those that have them;
    NaN and None are left out, and are None where nothing is left.

    >>> merged([{"a": 1.0}, {"a": 3.0}])
    {'a': {'mean': 2.0, 'min': 1.0, 'max': 3.0}}
    """
    keys = dict.fromkeys(key for tree in trees for key in tree)
    found = {key: [tree[key] for tree in trees if tree.get(key) is not None] for key in keys}
    return {key: _merged(values) for key, values in found.items()}


def _merged(values: list[Any]) -> Tree | None:
    if not values:
        return None
    if not isinstance(values[0], dict):
        return spread(values)
    if "estimate" not in values[0]:
        return merged(values)
    ends = (
        spread([value[name] for value in values])[end]
        for name, end in (("low", "min"), ("high", "max"))
    )
    low, high = ends
    return {**spread([value["estimate"] for value in values]), "low": low, "high": high}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, least and greatest of some numbers, NaN and None left out."""
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    if not known:
        return dict.fromkeys(("mean", "min", "max"))
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON is what it is
    """A tree as strict JSON takes it: no NaN, and only text as keys."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def group_name(names: Sequence[str]) -> str:
    """One name for students that differ in their seed.

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
