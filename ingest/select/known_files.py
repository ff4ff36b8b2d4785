"""The files that a lake's slides were made from, as far as a listing can tell them again."""

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore import Lake, LakeError, Store, open_lake
from featurestore.tables import SLIDES

COLUMNS = ["slide_id", "state", "uri", "bytes", "fingerprint", "listing_mark"]
SORTED_OUT = ("ready", "failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A slide's file as a lake keeps it.

    Attributes:
        uri: path or URL, without keys.
        mark: size, and ETag or time of modification, when it was read.
        bytes: its size.
        fingerprint: size and CRC-32 of both ends.
        is_done: whether the slide is ready or has failed; else it waits to be cut.
    """

    uri: str
    mark: str
    bytes: int | None
    fingerprint: str
    is_done: bool


def known_files(lake: Lake) -> dict[str, KnownFile]:
    """Return the files of a lake's slides by slide_id; slides without a mark are left out."""
    table = lake.table(SLIDES)
    if "listing_mark" not in table.schema.names:
        return {}
    where = "listing_mark IS NOT NULL AND fingerprint IS NOT NULL"
    columns = table.to_table(columns=COLUMNS, filter=where)
    rows = zip(*(columns[name].to_pylist() for name in COLUMNS), strict=True)
    return {
        slide_id: KnownFile(
            uri=uri, mark=mark, bytes=size, fingerprint=fingerprint, is_done=state in SORTED_OUT
        )
        for slide_id, state, uri, size, fingerprint, mark in rows
    }


def known_files_at(lake_uri: str) -> Mapping[str, KnownFile]:
    """Return the files that a lake knows; none where there is no lake yet, or a damaged one.

    Nothing is decided here: whoever writes to the lake opens it again, and says what is wrong.
    """
    if not Store(lake_uri).exists("lake.json"):
        return {}
    try:
        return known_files(open_lake(lake_uri))
    except LakeError:
        return {}
