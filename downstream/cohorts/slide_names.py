"""Names of slides in other people's tables, which carry folders and file endings, and the lake's.

A name that is in the lake is its own match. Any other is compared without folder and endings, and
counts only if one slide of the lake and one name of the table are left with the same stem.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from cluster import counted
from downstream.cohorts.cohort_errors import CohortError

_SLIDES = ".bif .czi .dcm .isyntax .mrxs .ndpi .ome .scn .svs .svslide .tif .tiff .vms .vmu .vsi"
_OTHERS = ".h5 .hdf5 .jpeg .jpg .npy .npz .parquet .png .pt .pth .zarr"
ENDINGS = tuple(f"{_SLIDES} {_OTHERS}".split())
"""Of slides, and of files that tools name after them."""


@dataclass(frozen=True, kw_only=True)
class SlideMatch:
    """The slides of the lake that match the names of a table.

    Attributes:
        slide_of: name in the table -> slide_id; names without a match are not in it.
        by_stem: matched names that differ from the lake's, sorted.
        ambiguous: names whose stem several slides, or several names, have, sorted.
    """

    slide_of: Mapping[str, str]
    by_stem: tuple[str, ...]
    ambiguous: tuple[str, ...]


def stem_of(name: str) -> str:
    r"""Return a name without folder and file endings.

    >>> stem_of("site/a.svs"), stem_of("a.ome.tiff"), stem_of("C:\\b.v1.h5"), stem_of(".svs")
    ('a', 'a', 'b.v1', '.svs')
    """
    stem = PurePosixPath(name.replace("\\", "/")).name
    while True:
        ending = next((e for e in ENDINGS if stem.lower().endswith(e) and len(stem) > len(e)), None)
        if ending is None:
            return stem
        stem = stem[: -len(ending)]


def match_slides(names: Iterable[str], slide_ids: Iterable[str]) -> SlideMatch:
    """Return the slides of the lake that match names of a table.

    Args:
        names: names as the table has them.
        slide_ids: all slides of the lake, whatever their state: a failed slide is no reason to
            match another slide of the same stem.

    >>> match = match_slides(["a", "b.svs", "c.svs", "c.tif"], ["a", "b", "c"])
    >>> dict(match.slide_of), match.by_stem, match.ambiguous
    ({'a': 'a', 'b.svs': 'b'}, ('b.svs',), ('c.svs', 'c.tif'))
    """
    lake_names, table_names = set(slide_ids), set(names)
    of_lake, of_table = _by_stem(lake_names), _by_stem(table_names)
    slide_of = {name: name for name in table_names & lake_names}
    by_stem, ambiguous = [], []
    for name in sorted(table_names - lake_names):
        stem = stem_of(name)
        if stem not in of_lake:
            continue
        if len(of_lake[stem]) == 1 and len(of_table[stem]) == 1:
            slide_of[name] = of_lake[stem][0]
            by_stem.append(name)
        else:
            ambiguous.append(name)
    return SlideMatch(slide_of=slide_of, by_stem=tuple(by_stem), ambiguous=tuple(ambiguous))


def refuse_near_slides(match: SlideMatch, names: Iterable[str], slide_ids: Iterable[str]) -> None:
    """Refuse unmatched names that differ from a slide by case, blanks or Unicode form only.

    Raises:
        CohortError: Names the first of them, and the slides.
    """
    from featurestore.usertables import refuse_near_others, tables_raise

    lake_names = set(slide_ids)
    others = {*lake_names, *(stem_of(slide) for slide in lake_names)}
    unmet = set(names) - set(match.slide_of) - set(match.ambiguous)
    with tables_raise(CohortError):
        refuse_near_others({stem_of(name) for name in unmet}, others, "slides", "the lake")


def match_notes(match: SlideMatch) -> list[str]:
    """Return sentences on names that were matched by stem, and on ambiguous names."""
    notes = []
    if match.by_stem:
        first = match.by_stem[0]
        notes.append(
            f"{counted(len(match.by_stem), 'slide', 'are')} matched without folder and file "
            "ending, for example "
            f"{first!r} is {match.slide_of[first]!r}"
        )
    if match.ambiguous:
        notes.append(
            f"{counted(len(match.ambiguous), 'name', 'are')} not matched, because several slides "
            "or "
            f"names have the same stem: {', '.join(match.ambiguous[:5])}"
        )
    return notes


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of each stem."""
    names_by_stem: dict[str, list[str]] = defaultdict(list)
    for name in names:
        names_by_stem[stem_of(name)].append(name)
    return names_by_stem
