"""Classes of tiles from an annotation of the lake: labels, sites or scanners.

An annotation of slides or patients holds for all of their tiles. The lake is read at the run's
version, so each worker has the same classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from distill.errors import DistillError
from featurestore import Annotation, Lake, tile_parts

SLIDE, PATIENT, TILE = "slide", "patient", "tile"
#: The class of a tile that has none.
NO_CLASS = -1
#: Classes that are whole numbers lie below this; greater ones are names, such as ids.
MOST_CLASSES = 10_000

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TileClasses:
    """Classes of tiles by an annotation's column.

    Attributes:
        column: `ANNOTATION.COLUMN`.
        names: the classes; a class's number is its place. Whole numbers from 0 on are their own
            places, other values are sorted.
        of_slides: whether a slide's tiles share a class; `keys` are then numbers of slides.
        keys: keys of the tiles, or numbers of the slides, that have a class, ascending.
        numbers: class of each key.
    """

    column: str
    names: tuple[str, ...]
    of_slides: bool
    keys: Int64Array
    numbers: Int64Array

    def of(self, tile_id: npt.ArrayLike) -> Int64Array:
        """Return the number of each tile's class [B], -1 for tiles that have none.

        >>> one = TileClasses(column="a.b", names=("x",), of_slides=False,
        ...     keys=np.array([7]), numbers=np.array([0]))
        >>> one.of([7, 8])
        array([ 0, -1])
        """
        keys = np.asarray(tile_id, np.int64)
        if self.of_slides:
            keys = tile_parts(keys)[0]
        if not len(self.keys):
            return np.full(len(keys), NO_CLASS)
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, self.numbers[places], NO_CLASS)

    def record(self) -> dict[str, Any]:
        """Return the classes, the number of tiles or slides that have one, and a hash of both."""
        content = self.keys.astype("<i8").tobytes() + self.numbers.astype("<i8").tobytes()
        return {
            "classes": list(self.names),
            "slides" if self.of_slides else "tiles": len(self.keys),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def read_classes(lake: Lake, column: str) -> TileClasses:
    """Read the classes of tiles from an annotation of the lake.

    Args:
        lake: the lake at the run's version.
        column: `ANNOTATION.COLUMN`, or the column alone where one annotation has it.

    Raises:
        DistillError: there is no such column, or it has fewer than two values.
    """
    annotation, name = annotation_column(lake, column, levels=(TILE, SLIDE, PATIENT))
    table = lake.annotation(annotation.name).select(annotation.key, name).drop_nulls().collect()
    if annotation.level != TILE:
        slides = lake.slides().select("slide", "slide_id", "patient_id").collect()
        table = slides.join(table, on=annotation.key, how="inner").select("slide", name)
    texts = table[name].cast(pl.String)
    _check_numbers(table[name], f"{annotation.name}.{name}")
    names = class_names(table[name])
    if texts.n_unique() < 2:
        msg = (
            f"{annotation.name}.{name} has {texts.unique().to_list() or 'no value'} for the slides "
            f"of {lake.uri}; classes are two or more"
        )
        raise DistillError(msg)
    places = {text: place for place, text in enumerate(names)}
    keys = table[table.columns[0]].to_numpy().astype(np.int64)
    order = np.argsort(keys, kind="stable")
    numbers = np.array([places[text] for text in texts], np.int64)
    return TileClasses(
        column=f"{annotation.name}.{name}",
        names=names,
        of_slides=annotation.level != TILE,
        keys=keys[order],
        numbers=numbers[order],
    )


def _check_numbers(values: pl.Series, column: str) -> None:
    """Refuse whole numbers that are names, such as years or ids: they would be classes' places.

    Raises:
        DistillError: a number is far beyond the number of classes.
    """
    greatest = values.max() if values.dtype.is_integer() and len(values) else None
    if isinstance(greatest, int) and greatest >= MOST_CLASSES:
        msg = (
            f"{column} has whole numbers up to {greatest}, which are taken as classes' places from "
            f"0, below {MOST_CLASSES:,}; annotate names as text"
        )
        raise DistillError(msg)


def class_names(values: pl.Series) -> tuple[str, ...]:
    """Return the classes in the order of their numbers.

    >>> class_names(pl.Series(["b", "a", "b"])), class_names(pl.Series([2, 0]))
    (('a', 'b'), ('0', '1', '2'))
    """
    if values.dtype.is_integer() and len(values) and values.min() >= 0:  # type: ignore[operator]
        return tuple(str(number) for number in range(int(values.max()) + 1))  # type: ignore[arg-type]
    return tuple(sorted(values.cast(pl.String).unique()))


def annotation_column(
    lake: Lake, column: str, *, levels: Sequence[str], option: str = "classes", others: str = ""
) -> tuple[Annotation, str]:
    """Return the annotation that has a column, and the column's name.

    Args:
        lake: the lake.
        column: `ANNOTATION.COLUMN`, or the column alone where one annotation has it.
        levels: levels of annotations that are allowed: tile, slide, patient.
        option: name of the option, for the message.
        others: what else the option takes, for the message.

    Raises:
        DistillError: there is no such column, or several annotations have it.
    """
    annotation_name, dot, name = column.rpartition(".")
    candidates = {n: a for n, a in lake.annotations().items() if a.level in levels}
    matching = [
        annotation
        for title, annotation in candidates.items()
        if name in annotation.columns and (not dot or title == annotation_name)
    ]
    if len(matching) != 1:
        columns = [f"{n}.{c}" for n, a in candidates.items() for c in a.columns]
        msg = (
            f"{option} {column}: give {others}a column of an annotation of "
            f"{' or '.join(f'{level}s' for level in levels)}; there are "
            f"{', '.join(columns) or 'none (slidelake annotate makes them)'}"
        )
        raise DistillError(msg)
    return matching[0], name
