"""A lake in one line, and as a small page for notebooks: counts, columns, failures, a few slides.

Counts of tiles and names of columns come from the tables' metadata; of the slides only their
states are read, and a dozen thumbnails, whatever the size of the lake.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import polars as pl

from featurestore.config import LakeConfig
from featurestore.errors import DamageError
from featurestore.ids import mpp_name
from featurestore.messages import counted
from featurestore.notebook.markup import MOST_ENTRIES, page, paragraph, pictures, table
from featurestore.notebook.shown import never_failing, never_failing_html
from featurestore.notebook.thumbnail import reduced_jpeg
from featurestore.tables.annotation import Annotation
from featurestore.tables.lance_counts import count_states
from featurestore.tables.schema import FAILED, READY, SLIDES, features_table

LONGEST_PX = 160
MOST_COLUMNS = 24


class ShownLake(Protocol):
    """The parts of a lake at one version that its card shows; `Lake` implements it."""

    version: int
    config: LakeConfig

    @property
    def uri(self) -> str:
        """Return the folder or URL of the lake."""

    def table(self, rel: str) -> Any:  # noqa: ANN401 - a Lance table, untyped
        """Return a table of this version."""

    def teachers(self, *, mpp: float) -> dict[str, int]:
        """Return the teachers with a column at an mpp, and their dimensions."""

    def slides(self) -> pl.LazyFrame:
        """Return one row per slide, without pictures."""

    def annotations(self) -> dict[str, Annotation]:
        """Return users' own columns by name."""

    def pictures(self, slide_id: str) -> dict[str, bytes | None]:
        """Return a slide's thumbnail and tissue mask."""


def lake_line(lake: ShownLake) -> str:
    """Return a lake as one line: URI, version, and counts."""
    place = never_failing(lambda: f"'{lake.uri}', version {lake.version}", "?")
    return never_failing(lambda: f"Lake({place}: {_counts(lake)})", f"Lake({place})")


def _counts(lake: ShownLake) -> str:
    slides = sum(count_states(lake.table(SLIDES)).values())
    tiles = [
        f"{counted(_tiles(lake, mpp), 'tile')} at mpp {mpp_name(mpp)}" for mpp in lake.config.mpps
    ]
    names = {name for mpp in lake.config.mpps for name in lake.teachers(mpp=mpp)}
    return f"{counted(slides, 'slide')}, {', '.join(tiles)}, {counted(len(names), 'teacher')}"


def _tiles(lake: ShownLake, mpp: float) -> int:
    return int(lake.table(features_table(mpp)).count_rows())


def lake_page(lake: ShownLake) -> str:
    """Return a lake as HTML for a notebook; parts that can't be read say so."""
    parts: dict[str, Callable[[ShownLake], str]] = {
        "slides": _states,
        "tiles": _grids,
        "columns": _columns,
        "annotations": _annotations,
        "failed slides": _failures,
        "thumbnails": _thumbnails,
    }
    texts = [
        never_failing_html(functools.partial(part, lake), name) for name, part in parts.items()
    ]
    title = never_failing(lambda: f"{lake.uri} · version {lake.version}", "a lake")
    return page(title, *texts)


def _states(lake: ShownLake) -> str:
    states = count_states(lake.table(SLIDES))
    counts = ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()) if count)
    pixels = f"tiles of {lake.config.tile_px} px"
    return paragraph(f"slides: {counts or 'none'} · {pixels} · format {lake.config.format}")


def _grids(lake: ShownLake) -> str:
    rows = [(mpp_name(mpp), f"{_tiles(lake, mpp):,}") for mpp in lake.config.mpps]
    return table(("mpp", "tiles"), rows[:MOST_COLUMNS])


def _columns(lake: ShownLake) -> str:
    mpps: dict[tuple[str, int], list[str]] = {}
    for mpp in lake.config.mpps:
        for column in lake.teachers(mpp=mpp).items():
            mpps.setdefault(column, []).append(mpp_name(mpp))
    rows = [(name, dim, ", ".join(at)) for (name, dim), at in mpps.items()]
    rest = len(rows) - MOST_COLUMNS
    more = paragraph(f"and {rest} more columns" if rest > 0 else "")
    return table(("column", "dim", "mpp"), rows[:MOST_COLUMNS]) + more


def _annotations(lake: ShownLake) -> str:
    names = list(lake.annotations())
    shown = ", ".join(names[:MOST_COLUMNS])
    rest = f" and {len(names) - MOST_COLUMNS} more" if len(names) > MOST_COLUMNS else ""
    return paragraph(f"annotations: {shown}{rest}" if names else "")


def _failures(lake: ShownLake) -> str:
    failed = lake.slides().filter(pl.col("state") == FAILED).select("slide_id", "reason")
    rows = failed.head(MOST_ENTRIES).collect().rows()
    return table(("failed slide", "reason"), rows)


def _thumbnails(lake: ShownLake) -> str:
    ready = lake.slides().filter(pl.col("state") == READY).select("slide_id").head(MOST_ENTRIES)
    return pictures(_small_pictures(lake, ready.collect()["slide_id"].to_list()))


def _small_pictures(lake: ShownLake, slide_ids: list[str]) -> Iterator[tuple[str, bytes | None]]:
    """Yield each slide's name and reduced thumbnail; None where there is none, or it is damaged."""
    for slide_id in slide_ids:
        jpeg = lake.pictures(slide_id)["thumbnail"]
        try:
            yield slide_id, None if jpeg is None else reduced_jpeg(jpeg, slide_id, LONGEST_PX)
        except DamageError:
            yield slide_id, None
