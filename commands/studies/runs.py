"""`slidelake runs`: the measures of all finished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Options of `slidelake runs`.

    Attributes:
        out: Write the whole table: .csv or .parquet.
    """

    lake: LakeArg
    out: Annotated[Path | None, PathKind.OUTPUT] = None
    json: JsonOpt = False


@command(app, "runs", without_pandas=True)
def runs_command(options: RunsOptions) -> None:
    """List every measure of every finished run, one row each, with lake version and seeds.

    Example: slidelake runs my-lake --out runs.csv
    """
    import polars as pl

    from downstream.run.run_table import run_table
    from featurestore import open_lake

    table, out = run_table(open_lake(options.lake)), options.out
    if out is not None:
        (table.write_parquet if out.suffix == ".parquet" else table.write_csv)(out)
    main = table.filter(table["main"]).select(
        "run", "target", "arm", "measure", "estimate", "low", "high", "patients", "lake_version"
    )
    with pl.Config(tbl_cols=-1, tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_width_chars=160):
        text = str(main) if out is None else f"-> {out}"
    print_answer(table.to_dicts(), as_json=options.json, text=text)
