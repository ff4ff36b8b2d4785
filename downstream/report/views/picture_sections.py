"""The sections of a page: a heading, pictures with a sentence each, and what was not drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from downstream.measures.class_measures import UndefinedMetricError
from downstream.report.plots.plots_base import COLOURS
from ingest.pages import data_uri

MOST_CURVES = len(COLOURS)
"""Curves of one picture."""
MOST_TOGETHER = 4
"""More arms than this have a small picture each, with the others in grey behind."""
MOST_PANELS = 24
"""Pictures of one kind that are drawn arm by arm."""
SMALL_PX = 318


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture on a page.

    Attributes:
        src: data URI of the picture.
        alt: description for readers who cannot see it.
        text: caption: what it shows and how that was chosen.
        width: width in CSS pixels.
    """

    src: str
    alt: str
    text: str
    width: int = 500


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under one heading.

    Attributes:
        key: anchor of the section.
        title: heading of the section.
        pictures: pictures, side by side where there is room.
        notes: sentences on what was left out, and why.
    """

    key: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, make: Callable[[], bytes], alt: str, text: str, width: int = 500) -> None:
        """Draw and add a picture, or note why these patients allow none."""
        try:
            src = data_uri(make(), "image/svg+xml")
        except UndefinedMetricError as error:
            self.notes.append(f"{alt}: not drawn, {error}.")
            return
        self.pictures.append(Picture(src=src, alt=alt, text=text, width=width))


def first(names: Sequence[str], most: int, section: Section) -> list[str]:
    """Return the first `most` names, which are drawn; the section notes the others."""
    left = list(names[most:])
    if left:
        some = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        section.notes.append(f"Drawn for the first {most}; not for {some}.")
    return list(names[:most])


def together(arms: Sequence[str]) -> list[list[str]]:
    """Return the arms of each picture: a few in one, else one each, so that all can be read.

    >>> together(["a", "b"]), together(["a", "b", "c", "d", "e"])[:2]
    ([['a', 'b']], [['a'], ['b']])
    """
    return [list(arms)] if len(arms) <= MOST_TOGETHER else [[arm] for arm in arms]
