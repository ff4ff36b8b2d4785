"""The lake and the bags that a worker keeps from one cell of a run to the next.

Cells of one feature set share their patients' bags: what a process has looked up, compared with its
checksum and read for one cell, the next one finds in memory. One lake and one feature set are held.
"""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from downstream.run.feature_bags import PatientBags

if TYPE_CHECKING:
    from featurestore import Lake

Key = tuple[tuple[tuple[str, ...], ...], str, tuple[float, ...]]

_lakes: "list[Lake]" = []
_bags: "weakref.WeakKeyDictionary[Lake, tuple[Key, PatientBags]]" = weakref.WeakKeyDictionary()


def held_lake(uri: str, version: int) -> "Lake":
    """Return a lake at a version: the one of this process's last cell, if it is the same.

    It is opened each time, so that a lake that was made anew in the same folder is not taken for
    the one that was there.
    """
    from featurestore import open_lake

    lake = open_lake(uri, version=version)
    if not _lakes or _lakes[0].content_key() != lake.content_key():
        _lakes[:] = [lake]
    return _lakes[0]


def held_bags(
    lake: "Lake", slides: Sequence[Sequence[str]], features: str, *, mpps: Sequence[float]
) -> PatientBags:
    """Return the bags of some patients: those of the last call for this lake, if they are the same.

    Args:
        lake: the lake that holds the features.
        slides: slide ids of each patient.
        features: name of the feature set, teachers joined by `+`.
        mpps: microns per pixel of the tiles, one or several.
    """
    key: Key = (tuple(map(tuple, slides)), features, tuple(mpps))
    if lake not in _bags or _bags[lake][0] != key:
        _bags.pop(lake, None)  # before the next are read: there is memory for one feature set
        _bags[lake] = (key, PatientBags(lake, slides, features, mpps=mpps))
    return _bags[lake][1]
