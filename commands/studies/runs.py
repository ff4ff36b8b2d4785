"""`slidelake runs`: the measures of all finished runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

if TYPE_CHECKING:
    import polars as pl

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
    from downstream.run.run_table import run_table
    from featurestore import open_lake

    table, out = run_table(open_lake(options.lake)), options.out
    if out is not None:
        (table.write_parquet if out.suffix == ".parquet" else table.write_csv)(out)
    text = "\n".join(_lines(table)) if out is None else f"-> {out}"
    print_answer(table.to_dicts(), as_json=options.json, text=text)


def _lines(table: "pl.DataFrame") -> Iterator[str]:
    """Yield a line for each run, and one for each arm with its main measure; nothing is cut."""
    main = table.filter(table["main"]).to_dicts()
    for _, group in groupby(main, key=lambda row: row["run"]):
        arms = list(group)
        row = arms[0]
        yield (
            f"{row['run']}  {row['target']}, {counted(row['patients'], 'patient')}, "
            f"lake version {row['lake_version']}"
        )
        width = max(len(arm["arm"]) for arm in arms)
        for arm in arms:
            estimate = "undefined on these patients"
            if arm["estimate"] is not None:
                estimate = f"{arm['estimate']:.3f} ({arm['low']:.3f} to {arm['high']:.3f})"
            yield f"  {arm['arm']:<{width}}  {arm['measure']} {estimate}"
