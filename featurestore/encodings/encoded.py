"""Vectors of slides and patients as they are read: those of the present tiles alone."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore.encodings.sources import has_changed, sources_of
from featurestore.errors import DamageError, LakeError
from featurestore.ids import mpp_name
from featurestore.messages import counted, did_you_mean, listing
from featurestore.read.held_out_patients import patient_of
from featurestore.read.lake_view import LakeView
from featurestore.storage.read_errors import reading
from featurestore.tables.checksums import row_crc32
from featurestore.tables.lance_annotations import crc32_of
from featurestore.tables.slide_encoding import PATIENT, SlideEncoding

Float32Array = npt.NDArray[np.float32]
SHOWN = 3
#: Columns of the rows of all encodings together.
ALL_ROWS: dict[str, type[pl.DataType] | pl.DataType] = {
    "name": pl.String,
    "unit": pl.String,
    "mpp": pl.Float64,
    "slide_id": pl.String,
    "patient_id": pl.String,
    "section": pl.Int32,
    "tiles": pl.Int32,
    "vector": pl.List(pl.Float32),
}


def named_encoding(
    lake: LakeView, encodings: Sequence[SlideEncoding], name: str, mpp: float | None
) -> SlideEncoding:
    """Return the encoding of a name, at an mpp or at the only one that it has.

    Raises:
        LakeError: there is none, or several and no mpp was given.
    """
    of_name = [one for one in encodings if one.name == name]
    if mpp is not None:
        of_name = [one for one in of_name if one.mpp == lake.known_mpp(mpp)]
    if len(of_name) == 1:
        return of_name[0]
    if of_name:
        mpps = ", ".join(mpp_name(one.mpp) for one in of_name)
        msg = f"'{name}' has vectors at several mpps of {lake.uri}, {mpps}; give mpp="
        raise LakeError(msg)
    names = sorted({one.name for one in encodings})
    at = "" if mpp is None else f" at mpp {mpp_name(mpp)}"
    msg = (
        f"no vectors of '{name}'{at} in {lake.uri}{did_you_mean(name, names)}; there are: "
        f"{', '.join(names) or 'none'}; slidelake encode makes them"
    )
    raise LakeError(msg)


def current_rows(lake: LakeView, encoding: SlideEncoding) -> pl.DataFrame:
    """Return an encoding's rows that are of the present tiles: its keys, `tiles` and `vector`.

    Rows of slides that were dropped, scanned again or extracted again are left out, and so are
    those of patients whose slides have changed.

    Raises:
        DamageError: the stored rows differ from the written rows.
    """
    rows = checked_rows(lake, encoding)
    sources = sources_of(lake, encoding.columns, mpp=encoding.mpp, unit=encoding.unit)
    joined = rows.join(sources.drop("slides"), on=encoding.keys[0], how="inner", suffix="_now")
    return joined.filter(~has_changed()).select(*encoding.keys, "tiles", "vector")


def checked_rows(lake: LakeView, encoding: SlideEncoding) -> pl.DataFrame:
    """Return an encoding's rows as they are stored, compared with their checksums.

    Raises:
        DamageError: they are not as written.
    """
    with reading(lake.store, f"vectors of '{encoding.name}' ({encoding.path}) can't be read"):
        table = lake.table(encoding.path).to_table()
    rows = table.to_pylist()
    wrong = [str(row[encoding.keys[0]]) for row in rows if row_crc32(row) != row["row_crc32"]]
    crc = crc32_of([row["row_crc32"] for row in rows])
    if wrong or crc != encoding.crc32:
        count = f"{counted(len(rows), 'row')} of {encoding.rows:,}"
        which = listing(wrong, SHOWN) or count
        msg = (
            f"vectors of '{encoding.name}' in {lake.uri} are not as written (checksum): {which}; "
            f"slidelake drop --encoding {encoding.name}, and encode again"
        )
        raise DamageError(msg)
    return pl.DataFrame(table).drop("row_crc32")


class EncodedRows:
    """The vectors of one encoding in memory, found by name.

    Args:
        lake: read at its own version.
        encoding: the encoding.

    Attributes:
        encoding: the encoding.
        vectors: float32 [R, D], a row per slide, patient or section.

    Raises:
        DamageError: the stored rows differ from the written rows.
    """

    def __init__(self, lake: LakeView, encoding: SlideEncoding) -> None:
        self.encoding = encoding
        frame = current_rows(lake, encoding)
        shape = (frame.height, encoding.dim)
        self.vectors: Float32Array = frame["vector"].to_numpy().reshape(shape)
        self.tiles = frame["tiles"].to_list()
        self._rows: dict[str, list[int]] = {}
        for at, name in enumerate(frame[encoding.keys[0]]):
            self._rows.setdefault(name, []).append(at)
        self._patient = {}
        if encoding.unit == PATIENT:
            slides = patient_of(lake.slides().select("slide_id", "patient_id").collect())
            self._patient = dict(slides.select("slide_id", "patient").iter_rows())

    @property
    def slide_ids(self) -> set[str]:
        """Return the slides that have a vector, of their own or of their patient."""
        if self.encoding.unit != PATIENT:
            return set(self._rows)
        return {slide for slide, patient in self._patient.items() if patient in self._rows}

    def rows_of(self, slide_ids: Sequence[str]) -> tuple[Float32Array, npt.NDArray[np.int32]]:
        """Return the vectors of some slides [N, D], and the number of each vector's slide [N].

        A patient's vector comes once, with the number of the patient's first slide among these.

        Raises:
            LakeError: a slide has no vector, or not one of its present tiles; it is named.
        """
        at, number, done = [], [], set()
        for index, slide in enumerate(slide_ids):
            key = self._patient.get(slide, slide)
            if key not in self._rows:
                msg = (
                    f"{self.encoding.unit} '{key}' has no vector of '{self.encoding.name}' of its "
                    "present tiles; run slidelake encode"
                )
                raise LakeError(msg)
            if key not in done:
                at += self._rows[key]
                number += [index] * len(self._rows[key])
                done.add(key)
        return self.vectors[at], np.array(number, np.int32)


def encodings_frame(lake: LakeView, encodings: Sequence[SlideEncoding]) -> pl.LazyFrame:
    """Return the rows of all encodings in one frame: the table `slide_features` of queries.

    They are read when the frame is collected, so that a question about other tables reads none.
    """

    def rows() -> pl.DataFrame:
        parts = [
            current_rows(lake, one).with_columns(
                pl.lit(one.name).alias("name"),
                pl.lit(one.unit).alias("unit"),
                pl.lit(one.mpp).alias("mpp"),
                pl.col("vector").arr.to_list(),
            )
            for one in encodings
        ]
        return pl.concat([pl.DataFrame(schema=ALL_ROWS), *parts], how="diagonal")

    return pl.defer(rows, schema=ALL_ROWS)
