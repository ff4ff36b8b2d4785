"""`slidelake demo`: the whole pipeline on a small cohort."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `slidelake demo`.

    Attributes:
        folder: Folder for the demo's lake.
        quick: Eight small slides, one teacher, no survival: less than a minute. It shows that
            everything runs, its figures mean nothing.
    """

    folder: Annotated[str, typer.Argument(metavar="DIR"), PathKind.LAKE]
    quick: Annotated[bool, typer.Option("--quick")] = False
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "demo")
def demo_command(options: DemoOptions) -> None:
    """Run every stage on a small cohort: slides, tiles, teachers, a student, MIL, survival, report.

    Example: slidelake demo demo-lake --quick

    Takes about six minutes on two cores. Run it again: finished stages are not run twice.
    """
    from examples.demo import QUICK, DemoSettings, run_demo

    folder = Path(options.folder)
    report = run_demo(folder, QUICK if options.quick else DemoSettings())
    text = f"report: {folder.absolute() / 'report.html'}"
    print_answer(report, as_json=options.json, text=text)
