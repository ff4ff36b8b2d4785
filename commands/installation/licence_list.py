"""Licences of installed packages, from their metadata; no network, nothing is imported."""

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageMetadata, distributions
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STRONG = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
WEAK = re.compile(r"\b(LGPL|MPL|EPL|EUPL|CDDL)|(GNU Lesser|Mozilla|Eclipse) ", re.IGNORECASE)
_MOST = 80
#: Extras that build and test, and are no part of what runs.
_TOOLS = {"docs", "test"}


def installed_licences(root: str = "slidelake") -> list[dict[str, Any]]:
    """Return the packages that a package needs, directly or not, and that are installed.

    Returns:
        Per package, sorted by name: `package`, `version`, `licence` by its metadata, `copyleft`
        (`strong`, `weak` or None), and `needed_by`, the first package that requires it.
    """
    rows = [
        {
            "package": package.name,
            "version": package.version,
            "licence": licence_of(package),
            "copyleft": copyleft_of(licence_of(package)),
            "needed_by": needed_by,
        }
        for package, needed_by in _installed_packages(root)
    ]
    return sorted(rows, key=lambda row: str(row["package"]).lower())


def licence_of(package: Distribution) -> str:
    """Return the licence in a package's metadata: an expression, classifiers, or its first line."""
    metadata = package.metadata
    if expression := _field(metadata, "License-Expression"):
        return expression
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    if classifiers:
        return "; ".join(classifiers)
    lines = [line.strip() for line in _field(metadata, "License").splitlines() if line.strip()]
    return lines[0][:_MOST] if lines else "not said"


def _field(metadata: PackageMetadata, name: str) -> str:
    return str(metadata[name]) if name in metadata else ""


def copyleft_of(licence: str) -> str | None:
    """Return the copyleft of a licence: `strong`, `weak` or None; of A OR B the mildest.

    >>> copyleft_of("GPL-3.0-or-later"), copyleft_of("MIT OR GPL-2.0-only"), copyleft_of("GPLv3")
    ('strong', None, 'strong')
    >>> copyleft_of("LGPL-2.1-only AND (BSD-3-Clause OR GPL-2.0-only)"), copyleft_of("MIT")
    ('weak', None)
    """
    while inner := re.search(r"\(([^()]*\bOR\b[^()]*)\)", licence):
        licence = licence.replace(inner[0], _mildest_licence(inner[1]))
    return _copyleft_kind(_mildest_licence(licence))


def _mildest_licence(choices: str) -> str:
    """Return the alternative with the weakest copyleft."""
    order = [None, "weak", "strong"]
    return min(choices.split(" OR "), key=lambda choice: order.index(_copyleft_kind(choice)))


def _copyleft_kind(text: str) -> str | None:
    # an exception (GCC's for its runtime libraries) lifts the condition
    text = re.sub(r"\bA?GPL\S* WITH \S+", "", text)
    if STRONG.search(re.sub(r"LGPL\S*", "", text)):
        return "strong"
    return "weak" if WEAK.search(text) else None


def _installed_packages(root: str) -> Iterator[tuple[Distribution, str]]:
    """Return each installed package below `root` once, with the package that requires it."""
    installed = {canonicalize_name(package.name): package for package in distributions()}
    own = installed.get(canonicalize_name(root))
    extras = [] if own is None else own.metadata.get_all("Provides-Extra") or []
    used_extras = ",".join(extra for extra in extras if extra not in _TOOLS)
    waiting = [(Requirement(f"{root}[{used_extras}]"), "")]
    opened: dict[str, set[str]] = {}
    for requirement, needed_by in waiting:  # grows as packages are opened
        name = canonicalize_name(requirement.name)
        package = installed.get(name)
        if package is None:
            continue
        if name not in opened and needed_by:
            yield package, needed_by
        # a package is opened once, and once more for each of its extras that is needed
        fresh = {"", *requirement.extras} - opened.setdefault(name, set())
        opened[name] |= fresh
        needs = [Requirement(need) for need in package.requires or []] if fresh else []
        waiting += [
            (need, name)
            for need in needs
            for extra in fresh
            if need.marker is None or need.marker.evaluate({"extra": extra})
        ]
