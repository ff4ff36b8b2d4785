"""SQL over a lake's tables, by Polars.

SQL sees the lake's tables and nothing else: Polars's own functions that read files are refused,
and so are statements that look as if they changed the lake.
"""

import difflib
import re
from collections.abc import Mapping

import polars as pl

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake
from featurestore.tables.annotation import TILE

QUESTIONS = ("DESCRIBE", "EXPLAIN", "FROM", "SELECT", "SHOW", "VALUES", "WITH")
EXAMPLE = "SELECT slide_id, state FROM slides"

TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

#: Literals and comments of SQL, which hold no names.
QUOTED = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
READS_FILES = re.compile(r"\b(read_\w+)[\"`]?\s*\(", re.IGNORECASE)
#: The message of Polars for a name that does not exist.
MISSING = re.compile(r"""(column|relation|table)[\w ]* ['"]([^'"]+)['"]""")


def tables(lake: Lake, own: Mapping[str, pl.DataFrame] | None = None) -> dict[str, pl.LazyFrame]:
    """Return the tables that a query can name, as frames.

    They are `slides`, `catalog`, `tiles_mpp0_5` and so on per mpp, `slide_features` where there are
    any, each annotation of slides or patients, and users' own.

    Args:
        lake: the lake.
        own: users' own tables by name.

    Raises:
        LakeError: a name that is in use, or is not a plain identifier.
    """
    frames = {"slides": lake.slides(), "catalog": lake.catalog()}
    for mpp in lake.config.mpps:
        frames[f"tiles_mpp{mpp_name(mpp).replace('.', '_')}"] = lake.tiles(mpp=mpp)
    if lake.slide_encodings():
        frames["slide_features"] = lake.slide_features()
    for name, annotation in lake.annotations().items():
        if annotation.level != TILE:  # those of tiles are columns of theirs
            frames[name] = lake.annotation(name)
    for name, frame in (own or {}).items():
        if name.lower() in {taken.lower() for taken in frames} or not TABLE_NAME.fullmatch(name):
            why = f"letters, digits and _, and not {', '.join(frames)}"
            msg = f"a table of yours can't be called '{name}': use {why}"
            raise LakeError(msg)
        frames[name] = frame.lazy()
    return frames


def query(lake: Lake, sql: str, *, own: Mapping[str, pl.DataFrame] | None = None) -> pl.DataFrame:
    """Answer a SQL question.

    Args:
        lake: the lake.
        sql: the question.
        own: users' own tables by name, to be joined with the lake's.

    Raises:
        LakeError: the text is not SQL or no question, reads files, or names a table or a column
            that is not there; or the name of a table is taken.

    Examples:
        >>> lake = sl.open_lake("my-lake")
        >>> sql = "SELECT slide_id, count(*) AS tiles FROM tiles_mpp0_5 GROUP BY slide_id"
        >>> sl.query(lake, sql).sort("slide_id").head(2).rows()
        [('s00a', 24), ('s01a', 24)]
    """
    frames = tables(lake, own)
    _check(sql, frames)
    try:
        return pl.SQLContext(frames).execute(sql, eager=True)
    except pl.exceptions.PolarsError as error:
        raise LakeError(_sql_error(str(error), frames)) from error


def _check(sql: str, frames: dict[str, pl.LazyFrame]) -> None:
    text = QUOTED.sub(" ", sql)
    first = re.search(r"\w+", text)
    if first is None or first[0].upper() not in QUESTIONS:
        opening = (
            f"'{sql.strip()[:60]}' begins with '{first[0]}'" if first else "the query is empty"
        )
        msg = (
            f"{opening}; a question begins with SELECT or WITH, as in: {EXAMPLE}; "
            f"tables: {', '.join(frames)}"
        )
        raise LakeError(msg)
    if reads := READS_FILES.search(text):
        msg = (
            f"SQL sees the tables of the lake ({', '.join(frames)}) and no files, so there is no "
            f"{reads[1]}; join yours by --table NAME=FILE, or in Python by "
            "lake.slides().join(pl.scan_csv(...), on='slide_id')"
        )
        raise LakeError(msg)


def _sql_error(error: str, frames: dict[str, pl.LazyFrame]) -> str:
    first = error.partition("\n")[0]
    syntax = "sql parser error: "
    if first.startswith(syntax):
        return f"this is not SQL: {first.removeprefix(syntax)}; an example: {EXAMPLE}"
    if missing := MISSING.search(error):
        return f"{first}{_hint(missing[1], missing[2], frames)}"
    if " " not in first:  # the field of a column that has none, as in `slide.state`
        return f"'{first}' was not found; tables: {', '.join(frames)}"
    return first


def _hint(kind: str, word: str, frames: dict[str, pl.LazyFrame]) -> str:
    names = set(frames)
    if kind == "column":
        names = {name for frame in frames.values() for name in frame.collect_schema().names()}
    by_lower_case = {name.lower(): name for name in sorted(names)}
    if close := difflib.get_close_matches(word.lower(), by_lower_case, n=1):
        return f"; did you mean '{by_lower_case[close[0]]}'?"
    return f"; tables: {', '.join(frames)}"
