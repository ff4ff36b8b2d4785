"""A slide encoding: the vectors that one slide encoder made of a column of tiles."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.licences import Licence, licence_from_json
from featurestore.notebook.shown import Shown

#: What has a vector: a slide, a patient (all tiles of all slides), or a section of a slide.
Unit = Literal["slide", "patient", "section"]
SLIDE, PATIENT, SECTION = "slide", "patient", "section"
KEYS = {SLIDE: ("slide_id",), PATIENT: ("patient_id",), SECTION: ("slide_id", "section")}
#: The dot sets names apart from those of teachers' columns, which have none.
NAME = re.compile(r"[A-Za-z0-9_:@+~-]+(\.[A-Za-z0-9_:@+~-]+)+")
LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True, repr=False)
class SlideEncoding(Shown):
    """The vectors of one slide encoder in a lake, and all that decides their numbers.

    Attributes:
        name: name of the vectors, `ENCODER.COLUMN` (with `.patient` or `.section` behind it).
        unit: `slide`, `patient` or `section`: what has a vector.
        columns: columns of tile features that the encoder reads.
        mpp: microns per pixel of the tiles.
        dim: length of a vector, D.
        identity: encoder, weights' hash, tile columns and geometry.
        licence: licences of the slide encoder and of the tile columns together; None if unknown.
        rows: number of vectors.
        path: path of the table in the lake.
        crc32: CRC-32 of the checksums of the table's rows.

    Examples:
        >>> encoded = sl.encode("my-lake", "mean", features=["student"], mpp=0.5)
        >>> [one] = sl.open_lake("my-lake").slide_encodings()
        >>> one.name, one.unit, one.dim, one.rows
        ('mean.student', 'slide', 64, 13)
    """

    name: str
    unit: Unit
    columns: tuple[str, ...]
    mpp: float
    dim: int
    identity: Mapping[str, Any]
    licence: Licence | None = None
    rows: int = 0
    path: str = ""
    crc32: int = 0

    @property
    def place(self) -> str:
        """Return the name in the lake's list: an encoder may have vectors of several mpps.

        Examples:
            >>> encoded = sl.encode("my-lake", "mean", features=["student"], mpp=0.5)
            >>> sl.open_lake("my-lake").slide_encodings()[0].place
            'mean.student@mpp0.5'
        """
        return place_of(self.name, self.mpp)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the columns that name a row: `slide_id`, `patient_id`, or slide and `section`.

        Examples:
            >>> encoded = sl.encode("my-lake", "mean", features=["student"], mpp=0.5)
            >>> sl.open_lake("my-lake").slide_encodings()[0].keys
            ('slide_id',)
        """
        return KEYS[self.unit]

    def as_dict(self) -> dict[str, Any]:
        """Return the encoding as a JSON object.

        Examples:
            >>> encoded = sl.encode("my-lake", "mean", features=["student"], mpp=0.5)
            >>> sl.open_lake("my-lake").slide_encodings()[0].as_dict()["columns"]
            ['student']
        """
        licence = None if self.licence is None else self.licence.to_json()
        return {**asdict(self), "columns": list(self.columns), "licence": licence}


def encoding_from_json(record: Mapping[str, Any]) -> SlideEncoding:
    """Return the encoding of an `as_dict` object; keys of later versions are left out."""
    fields = {name: record[name] for name in SlideEncoding.__dataclass_fields__ if name in record}
    licence = fields.get("licence")
    fields["licence"] = None if licence is None else licence_from_json(licence)
    fields["columns"] = tuple(fields["columns"])
    return SlideEncoding(**fields)


def place_of(name: str, mpp: float) -> str:
    """Return the name of an encoding in the lake's list.

    >>> place_of("mean.uni2_h", 0.5)
    'mean.uni2_h@mpp0.5'
    """
    return f"{name}@mpp{mpp_name(mpp)}"


def is_slide_encoding(name: str) -> bool:
    """Whether a feature set's name is that of slide vectors; columns of tiles have no dot.

    >>> is_slide_encoding("mean.uni2_h"), is_slide_encoding("uni2_h")
    (True, False)
    """
    return "." in name


def check_encoding_name(name: str) -> None:
    """Raise LakeError if vectors of slides can't be called so."""
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        msg = (
            f"vectors of slides can't be called '{name}': use letters, digits, _ : @ - and a dot "
            "inside, as mean.uni2_h; the dot sets them apart from columns of tiles"
        )
        raise LakeError(msg)
