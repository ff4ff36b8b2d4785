"""The layout of the format `hub`: names of files, and checksums that lead to each of them.

`cohort.json` has the SHA-256 of each slide's card, and a card that of each of the slide's files, so
that one hash stands for all. `cohort.json` is written last: without it an export is not finished.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from featurestore.ids import mpp_name
from featurestore.interop.foreign_slide import InteropError

INDEX, README = "cohort.json", "README.md"
CARDS, DATA, TISSUE = "cards", "data", "tissue"
LAYOUT = 1
#: Name of the tiles' own files; a teacher may not have it.
TILES = "tiles"
#: Characters that URLs, globs, Windows or names of a data set's configurations give a meaning to.
SPECIAL = re.compile(r'[%/\\?#*\[\]{}:"<>|@\x00-\x1f]|^\.')


def file_name(name: str) -> str:
    """Return the name of a slide or column as it stands in the names of files.

    >>> file_name("virchow2:cls+mean"), file_name("a/b 1")
    ('virchow2%3Acls+mean', 'a%2Fb 1')
    """
    return SPECIAL.sub(lambda special: f"%{ord(special[0]):02X}", name)


def configuration(name: str, mpp: float) -> str:
    """Return the name of a column's folder, which is also that of the data set's configuration.

    >>> configuration("uni2_h", 0.5)
    'uni2_h-mpp0.5'
    """
    return f"{file_name(name)}-mpp{mpp_name(mpp)}"


def data_path(slide_id: str, name: str, mpp: float) -> str:
    """Return the path of a slide's Parquet file of a column, or of its tiles."""
    return f"{DATA}/{configuration(name, mpp)}/{file_name(slide_id)}.parquet"


def card_path(slide_id: str) -> str:
    """Return the path of a slide's card."""
    return f"{CARDS}/{file_name(slide_id)}.json"


def tissue_path(slide_id: str) -> str:
    """Return the path of the outline of a slide's tissue."""
    return f"{TISSUE}/{file_name(slide_id)}.geojson"


def slide_of(path: str) -> str:
    """Return the slide of a file by its path.

    >>> slide_of(card_path("a/b 1"))
    'a/b 1'
    """
    return unquote(path.rpartition("/")[2].rpartition(".")[0])


def json_text(record: Mapping[str, Any]) -> str:
    """Return a record as the text of a JSON file; the same record has the same text."""
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parsed(content: bytes, subject: str) -> dict[str, Any]:
    """Return the record of a JSON file of this layout.

    Raises:
        InteropError: it is no JSON object, or of a later layout.
    """
    try:
        record: dict[str, Any] = json.loads(content)
        layout = record["layout"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{subject} is no file of the format hub: {error}"
        raise InteropError(msg) from error
    if layout != LAYOUT:
        msg = f"{subject} has layout {layout}; this slidelake reads {LAYOUT}: update slidelake"
        raise InteropError(msg)
    return record
