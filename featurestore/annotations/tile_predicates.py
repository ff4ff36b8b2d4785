"""Predicates on tiles that name annotations: `region = 'tumour' AND clinical.grade > 1`.

Columns of tiles stand in the tiles' own rows. What is known of a slide or its patient is the same
for all of its tiles, so its value is written into the predicate, slide by slide.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from featurestore.errors import LakeError
from featurestore.lake import Lake
from featurestore.tables.annotation import PATIENT, TILE, Annotation

# Texts and quoted names are left as they are.
PART = re.compile(r"'(?:[^']|'')*'|`[^`]*`|\"[^\"]*\"|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?")

Values = Mapping[str, Any]


class Where:
    """A predicate on tiles, and the annotation values that it needs.

    Args:
        lake: the lake at the version to read.
        text: the predicate, in Lance's SQL.

    Attributes:
        marks: marks of the annotations in the predicate, by name; a new mark means new values.

    Raises:
        LakeError: the predicate names a column that an annotation does not have.
    """

    def __init__(self, lake: Lake, text: str) -> None:
        self.text = text
        words = {word for word in PART.findall(text) if word[0] not in "'`\""}
        annotations = lake.annotations()
        of_tiles = {
            column: annotation
            for annotation in annotations.values()
            if annotation.level == TILE
            for column in annotation.columns.values()
        }
        named = [of_tiles[word] for word in words if word in of_tiles]
        self._values: dict[str, tuple[str, dict[str, Values]]] = {}
        for word in sorted(words):
            name, dot, column = word.partition(".")
            if dot and name in annotations and annotations[name].level != TILE:
                _check_column(annotations[name], column)
                named.append(annotations[name])
                if name not in self._values:
                    self._values[name] = annotations[name].key, _rows(lake, annotations[name])
        self.marks = {annotation.name: annotation.mark for annotation in named}

    def of(self, slide_id: str, patient_id: str | None) -> str:
        """Return the predicate for the tiles of one slide."""
        ids = {"slide_id": slide_id, f"{PATIENT}_id": patient_id}

        def replaced(match: re.Match[str]) -> str:
            name, dot, column = match[0].partition(".")
            if not dot or name not in self._values:
                return match[0]
            key, rows = self._values[name]
            return _literal(rows.get(ids[key] or "", {}).get(column))

        return PART.sub(replaced, self.text) if self._values else self.text


def _check_column(annotation: Annotation, column: str) -> None:
    if column not in annotation.columns:
        names = ", ".join(annotation.columns)
        msg = f"annotation '{annotation.name}' has no column '{column}'; it has {names}"
        raise LakeError(msg)


def _rows(lake: Lake, annotation: Annotation) -> dict[str, Values]:
    rows = lake.annotation(annotation.name).collect()
    return {str(row[annotation.key]): row for row in rows.iter_rows(named=True)}


def _literal(constant: object) -> str:
    """Return a value as an SQL literal.

    >>> _literal("it's"), _literal(None), _literal(True), _literal(1.5)
    ("'it''s'", 'NULL', 'true', '1.5')
    """
    if constant is None:
        return "NULL"
    if isinstance(constant, bool):
        return "true" if constant else "false"
    if isinstance(constant, str):
        return "'" + constant.replace("'", "''") + "'"
    return repr(constant)


def slides_of(lake: Lake) -> Iterator[tuple[str, str | None]]:
    """Yield the name and patient of each slide."""
    yield from lake.slides().select(pl.col("slide_id"), pl.col("patient_id")).collect().iter_rows()
