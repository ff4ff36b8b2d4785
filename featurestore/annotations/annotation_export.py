"""Export of annotations: one slide's values, and whole tables as CSV."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from featurestore.errors import DamageError
from featurestore.read.lake_view import LakeView
from featurestore.tables.annotation import PATIENT, SLIDE, TILE, Annotation
from featurestore.tables.schema import features_table


def _no_columns() -> pl.DataFrame:
    return pl.DataFrame()


@dataclass(frozen=True, kw_only=True)
class SlideAnnotations:
    """The annotations of one slide, its tiles and its patient.

    Attributes:
        tiles: reads a column for each annotation of tiles, in the order of the tiles.
        values: values of slide and patient annotations, by annotation and column.
        mark: the mark of a file that is made of them; empty if there are none.
    """

    tiles: Callable[[], pl.DataFrame] = _no_columns
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mark: str = ""


class AnnotationsOut:
    """Reads the annotations of a lake as an export needs them.

    Args:
        lake: the lake; tables of slides and patients are read once.
        mpp: microns per pixel of the tiles; None for an export without tiles.
    """

    def __init__(self, lake: LakeView, mpp: float | None) -> None:
        self.lake, self.annotations = lake, lake.annotations()
        self.columns = [
            column
            for annotation in self.annotations.values()
            if annotation.level == TILE and mpp in annotation.mpps
            for column in annotation.columns.values()
        ]
        self._rows = {
            name: _by_key(lake, annotation)
            for name, annotation in self.annotations.items()
            if annotation.level != TILE
        }
        self.mark = "-".join(annotation.mark[:8] for annotation in self.annotations.values())

    def of(
        self, slide_id: str, patient_id: str | None, catalog: Mapping[str, Any] | None
    ) -> SlideAnnotations:
        """Return the annotations of a slide, its tiles at the place that a catalog row names."""
        ids = {SLIDE: slide_id, PATIENT: patient_id}
        slide_values = {
            name: rows[key]
            for name, rows in self._rows.items()
            if (key := ids[self.annotations[name].level]) is not None and key in rows
        }

        def tiles() -> pl.DataFrame:
            return tile_columns(self.lake, catalog, self.columns)

        return SlideAnnotations(tiles=tiles, values=slide_values, mark=self.mark)

    def tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield each annotation's name with its table, as `lake.annotation` reads it."""
        for name in self.annotations:
            yield name, self.lake.annotation(name).collect()


def _by_key(lake: LakeView, annotation: Annotation) -> dict[str, dict[str, Any]]:
    rows = lake.annotation(annotation.name).collect().iter_rows(named=True)
    return {str(row.pop(annotation.key)): row for row in rows}


def tile_columns(
    lake: LakeView, catalog: Mapping[str, Any] | None, columns: Sequence[str]
) -> pl.DataFrame:
    """Return columns of a slide's tiles, in the order of their keys.

    Raises:
        DamageError: the stored tiles differ from the catalog's.
    """
    if catalog is None or not catalog["tiles"] or not columns:
        return pl.DataFrame()
    return tile_rows(lake, catalog, columns).drop("tile_id")


def tile_rows(lake: LakeView, catalog: Mapping[str, Any], columns: Sequence[str]) -> pl.DataFrame:
    """Return `tile_id` and columns of a slide's tiles, in the order of their keys.

    Raises:
        DamageError: the stored tiles differ from the catalog's.
    """
    fragment = lake.table(features_table(catalog["mpp"])).get_fragment(catalog["fragment"])
    names, where = ["tile_id", *columns], f"slide = {catalog['slide']}"
    table = pl.DataFrame(fragment.to_table(columns=names, filter=where))
    if table.height != catalog["tiles"]:
        msg = f"slide {catalog['slide_id']}: {table.height} tiles are there, the catalog has "
        msg += f"{catalog['tiles']}; run slidelake verify"
        raise DamageError(msg)
    return table.sort("tile_id")
