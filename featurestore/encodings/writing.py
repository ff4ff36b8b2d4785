"""Vectors of slides put into a lake: one commit for many of them, and none by halves."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from featurestore.commits.lance_edit import Edit, Work
from featurestore.commits.lance_ledger import Change
from featurestore.encodings.sources import has_changed
from featurestore.errors import IdentityError, LakeError
from featurestore.lake import Lake
from featurestore.tables import lance_slide_encodings as registry
from featurestore.tables.lance_tables import open_table
from featurestore.tables.schema import SLIDES
from featurestore.tables.slide_encoding import SlideEncoding, check_encoding_name


def kept_rows(lake: Lake, encoding: SlideEncoding, sources: pl.DataFrame) -> pl.DataFrame:
    """Return the lake's rows of an encoding that are of the present tiles and features.

    Args:
        lake: read at its own version.
        encoding: the encoding that is to be written, with its identity.
        sources: the present sources, of `sources_of`.

    Raises:
        IdentityError: the lake has vectors of this name with another identity.
        DamageError: the table can't be read.
    """
    check_encoding_name(encoding.name)
    older = {one.place: one for one in lake.slide_encodings()}.get(encoding.place)
    if older is None:
        return pl.DataFrame(schema=registry.table_schema(encoding)).drop("row_crc32")
    _check_identity(older, encoding)
    rows = registry.read_encoding(lake.store, older)
    key = encoding.keys[0]
    joined = rows.join(sources.drop("slides"), on=key, how="inner", suffix="_now")
    return joined.filter(~has_changed()).select(rows.columns)


def _check_identity(older: SlideEncoding, new: SlideEncoding) -> None:
    if older.identity == new.identity and (older.dim, older.unit) == (new.dim, new.unit):
        return
    differing = sorted(
        key
        for key in {*older.identity, *new.identity}
        if older.identity.get(key) != new.identity.get(key)
    )
    msg = (
        f"'{new.name}' is in the lake at mpp {new.mpp} with another identity (differs in: "
        f"{', '.join(differing) or 'dimension'}); give the new vectors another name (--name), or "
        f"take the old ones out (slidelake drop --encoding {new.name})"
    )
    raise IdentityError(msg)


def put_vectors(lake: Lake, encoding: SlideEncoding, frame: pl.DataFrame) -> SlideEncoding:
    """Write an encoding's rows and name their table in the lake, in one commit.

    Args:
        lake: the lake.
        encoding: the encoding.
        frame: all of its rows: keys, `tiles`, `tiles_crc32`, `features_crc32`, and `vector`, an
            array of float32 [D].

    Raises:
        LakeError: a vector holds a number that is not finite; its slide is named.
        IdentityError: another job has put vectors of this name with another identity.
    """
    frame = frame.sort(encoding.keys)
    vectors = frame["vector"].to_numpy() if frame.height else np.zeros((0, encoding.dim))
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        first = frame.row(int(broken.argmax()), named=True)
        named = ", ".join(str(first[key]) for key in encoding.keys)
        msg = (
            f"'{encoding.name}' gives {encoding.unit} '{named}' a vector that is not finite; "
            "nothing was written. Look at its tiles' features, or at the encoder's weights"
        )
        raise LakeError(msg)
    placed = registry.write_encoding(lake.store, encoding, frame)
    committer = lake.committer
    with committer.exclusive():
        older = {one.place: one for one in lake.refreshed().slide_encodings()}.get(encoding.place)
        if older is not None:
            _check_identity(older, encoding)
        committer.make(_put(placed))
    return placed


def _put(new: SlideEncoding) -> Edit:
    """Return the edit that names a written table."""

    def steps(work: Work) -> Iterator[Change]:
        encodings = registry.encodings_of(open_table(work.ledger.store, SLIDES))
        work.check()
        registry.put_encodings(work.ledger.store, {**encodings, new.place: new})
        yield from ()

    return Edit(description={"encode": [new.place, new.path]}, steps=steps)
