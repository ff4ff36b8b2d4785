"""SQL over a lake's tables, by Polars."""

import difflib
import re

import polars as pl

from featurestore.errors import LakeError
from featurestore.ids import mpp_name
from featurestore.lake import Lake


def tables(lake: Lake) -> dict[str, pl.LazyFrame]:
    """The frames that SQL sees: `slides`, `catalog`, and `tiles_mpp0_5` and so on per mpp."""
    frames = {"slides": lake.slides(), "catalog": lake.catalog()}
    for mpp in lake.config.mpps:
        frames[f"tiles_mpp{mpp_name(mpp).replace('.', '_')}"] = lake.tiles(mpp=mpp)
    return frames


def query(lake: Lake, sql: str) -> pl.DataFrame:
    """Answer a SQL question.

    Raises:
        LakeError: the SQL can't be parsed, or names a table or column that is not there.
    """
    frames = tables(lake)
    try:
        return pl.SQLContext(frames).execute(sql, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.SQLInterfaceError) as error:
        msg = f"{str(error).partition(chr(10))[0]}{_hint(str(error), frames)}"
        raise LakeError(msg) from error


def _hint(error: str, frames: dict[str, pl.LazyFrame]) -> str:
    columns = {name for frame in frames.values() for name in frame.collect_schema().names()}
    known = sorted({*frames, *columns})
    # Polars puts the name that it did not find in quotes, first.
    for word in re.findall(r"""['"]([^'"]+)['"]""", error)[:1]:
        if close := difflib.get_close_matches(word, known, n=1):
            return f"; did you mean '{close[0]}'?"
    return f"; tables: {', '.join(frames)}"
