"""`slidelake query`: SQL over a lake."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """Options of `slidelake query`.

    Attributes:
        sql: SQL over slides, catalog, tiles_mpp0_5, ...
        format: table, csv, json or parquet; from the name of --out if not given.
        out: File to write the answer to; needed for parquet.
        tables: A table of yours to join: CSV, TSV, XLSX or Parquet. Repeat for several.
    """

    lake: LakeArg
    sql: Annotated[str, typer.Argument()]
    format: str | None = None
    out: Annotated[Path | None, PathKind.OUTPUT] = None
    tables: Annotated[
        tuple[str, ...], typer.Option("--table", metavar="NAME=FILE"), PathKind.NAMED_FILE
    ] = ()
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "query", without_pandas=True)
def query_command(options: QueryOptions) -> None:
    """Query a lake in SQL; annotations of slides and patients are tables by their names.

    Example: slidelake query my-lake "SELECT slide_id, count(*) FROM tiles_mpp0_5 GROUP BY slide_id"
    """
    from featurestore import open_lake, query
    from featurestore.query.answers import answer_bytes, answer_format, write_answer

    out, as_json = options.out, options.json
    if as_json and options.format and out is None:
        msg = f"--json prints one object of its own: leave out --json or --format {options.format}"
        raise typer.BadParameter(msg)
    format_name = answer_format(options.format, out)
    lake = open_lake(options.lake, version=options.at)
    frame = query(lake, options.sql, own=_user_tables(options.tables))
    if out is not None:
        write_answer(frame, format_name, out)
        answer = {
            "out": str(out),
            "format": format_name,
            "columns": frame.columns,
            "rows": frame.height,
        }
        print_answer(
            answer, as_json=as_json, text=f"{counted(frame.height, 'row')} written to {out}"
        )
    elif as_json:
        print_answer({"columns": frame.columns, "rows": frame.rows()}, as_json=True, text="")
    else:
        typer.echo(answer_bytes(frame, format_name).decode().rstrip("\n"))


def _user_tables(options: Sequence[str]) -> dict[str, Any]:
    """Return users' tables for a query, by their names in `--table NAME=FILE`."""
    from featurestore.annotations.annotation_tables import query_frame

    tables: dict[str, Any] = {}
    for text in options:
        name, equals, path = text.partition("=")
        if not (name and equals and path) or name in tables:
            why = "is given twice" if name in tables else "is not NAME=FILE"
            msg = f"--table '{text}' {why}, as in --table clinical=clinical.csv"
            raise typer.BadParameter(msg)
        tables[name] = query_frame(path)
    return tables
