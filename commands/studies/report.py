"""`slidelake report`: a page on a lake and its runs."""

from dataclasses import dataclass

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `slidelake report`."""

    lake: LakeArg
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "report")
def report_command(options: ReportOptions) -> None:
    """Write report.html and report.json on the contents of a lake and the results of its runs."""
    from downstream import write_report

    report = write_report(options.lake, version=options.at)
    print_answer(report, as_json=options.json, text=f"report: {options.lake}/report.html")
