"""An annotation of a lake, with its level, names and columns."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from featurestore.errors import LakeError
from featurestore.tables.schema import TILE_COLUMNS

TILE, SLIDE, PATIENT = "tile", "slide", "patient"
PATIENTS = "patients"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
RESERVED = re.compile(
    r"slides|slide_features|catalog|tiles_mpp.*|row_crc32|teacher|library_id", re.IGNORECASE
)


class AnnotationError(LakeError):
    """Raised for a table or a name that can't become an annotation of a lake.

    Examples:
        >>> stains = pl.DataFrame({"slide_id": ["s00a"], "stain": ["H&E"]})
        >>> sl.annotate(sl.open_lake("my-lake"), stains, "my stains")
        Traceback (most recent call last):
            ...
        featurestore.tables.annotation.AnnotationError: an annotation can't be called ...
    """


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """An annotation of a lake.

    Attributes:
        name: name of the annotation.
        level: `tile`, `slide` or `patient`.
        columns: names of its columns in the lake, by their names in the user's table.
        types: arrow's name of each column's type, by its name in the user's table.
        rows: number of rows of the user's table.
        mpps: mpps of its tiles; empty for slides and patients.
        source: name of the user's file.
        mark: mark that differs from an earlier annotation's of the same name.
        path: path of its table; None for columns of the features tables.
        crc32: CRC-32 of its table's row checksums; None for columns of the features tables.

    Examples:
        >>> stains = pl.DataFrame({"slide_id": ["s00a", "s01a"], "stain": ["H&E", "H&E"]})
        >>> annotation = sl.annotate(sl.open_lake("my-lake"), stains, "stains").annotation
        >>> annotation.level, annotation.types, annotation.rows
        ('slide', {'stain': 'string'}, 2)
    """

    name: str
    level: str
    columns: Mapping[str, str]
    types: Mapping[str, str]
    rows: int
    mark: str
    source: str = ""
    mpps: tuple[float, ...] = ()
    path: str | None = None
    crc32: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the annotation as a JSON object."""
        return {**asdict(self), "mpps": list(self.mpps)}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Annotation":
        """Return the annotation of an `as_dict` object; keys of later versions are left out."""
        kept = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        return cls(**{**kept, "mpps": tuple(fields.get("mpps", ()))})

    def at(self, mpp: float) -> "Annotation":
        """Return the annotation with tiles at one more mpp."""
        return replace(self, mpps=(*self.mpps, mpp))

    @property
    def key(self) -> str:
        """Return the column that names a row: `tile_id`, `slide_id` or `patient_id`.

        Examples:
            >>> stains = pl.DataFrame({"slide_id": ["s00a", "s01a"], "stain": ["H&E", "H&E"]})
            >>> sl.annotate(sl.open_lake("my-lake"), stains, "stains").annotation.key
            'slide_id'
        """
        return f"{self.level}_id"


def check_name(name: str) -> None:
    """Raise AnnotationError if an annotation can't be called so."""
    if not NAME.fullmatch(name) or name in TILE_COLUMNS or RESERVED.fullmatch(name):
        msg = (
            f"an annotation can't be called '{name}': use letters, digits and _, a letter first; "
            f"not slides, slide_features, catalog, tiles_mpp..., {', '.join(TILE_COLUMNS)}"
        )
        raise AnnotationError(msg)
