"""The front door: the `slidelake` command and the public Python API. It has no logic of its own.

    >>> from slidelake import open_lake, ingest, extract

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from distill.fit import stats
    from distill.ray_columns import extract
    from distill.ray_train import distill
    from distill.recipes import make_recipe
    from downstream import run_mil, run_survival, write_report
    from downstream.probes.tiles import run_probe
    from downstream.retrieval.search import run_search
    from featurestore import (
        Lake,
        LakeConfig,
        compact,
        create_lake,
        open_lake,
        query,
        repair,
        vacuum,
        verify,
    )
    from ingest import Card
    from ingest.ray_ingest import ingest
    from ingest.segment.own_segmenter import Segmenter
    from ingest.teachers import list_teachers

PACKAGES = ("cluster", "commands", "distill", "downstream", "examples", "featurestore", "ingest")

#: The Python API: where each public name lives.
PUBLIC = {
    "Card": "ingest.cards",
    "Lake": "featurestore",
    "LakeConfig": "featurestore",
    "Segmenter": "ingest.segment.own_segmenter",
    "compact": "featurestore",
    "create_lake": "featurestore",
    "distill": "distill.ray_train",
    "extract": "distill.ray_columns",
    "ingest": "ingest.ray_ingest",
    "list_teachers": "ingest.teachers",
    "make_recipe": "distill.recipes",
    "open_lake": "featurestore",
    "query": "featurestore",
    "repair": "featurestore",
    "run_mil": "downstream",
    "run_probe": "downstream.probes.tiles",
    "run_search": "downstream.retrieval.search",
    "run_survival": "downstream",
    "stats": "distill.fit",
    "vacuum": "featurestore",
    "verify": "featurestore",
    "write_report": "downstream.report.lake_page",
}

__all__ = [
    "Card",
    "Lake",
    "LakeConfig",
    "Segmenter",
    "compact",
    "create_lake",
    "distill",
    "extract",
    "ingest",
    "list_teachers",
    "make_recipe",
    "open_lake",
    "query",
    "repair",
    "run_mil",
    "run_probe",
    "run_search",
    "run_survival",
    "stats",
    "vacuum",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name when it is first asked for."""
    if name not in PUBLIC:
        msg = f"module 'slidelake' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(importlib.import_module(PUBLIC[name]), name)


def check_packages(root: Path) -> None:
    """Refuse to run with another distribution's package under one of our names.

    Raises:
        ImportError: one of the packages does not come from `root`; its distribution is named.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or not origin.is_relative_to(root):
            owners = importlib.metadata.packages_distributions().get(name, ["not installed"])
            msg = (
                f"package '{name}' comes from {origin} ({', '.join(owners)}), not from {root}; "
                "run slidelake in an environment of its own (make setup)"
            )
            raise ImportError(msg)


check_packages(Path(__file__).resolve().parent)

# only now: what is imported is known to be ours
from commands import distill as _students
from commands import downstream as _answers
from commands import ingest as _tiles
from commands import interop as _files
from commands import lake as _lake
from commands.options import JsonOpt, tell

app = typer.Typer(
    help="Whole-slide images in once, every teacher run once, everything after that reads a lake.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for heading, part in {
    "Slides, tiles, features": _tiles,
    "Students": _students,
    "What features are worth": _answers,
    "The lake": _lake,
    "Other tools' files": _files,
}.items():
    for command in part.app.registered_commands:
        command.rich_help_panel = heading
    app.add_typer(part.app)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Whole-slide images in once, every teacher run once, everything after that reads a lake."""
    if debug:
        os.environ["SLIDELAKE_DEBUG"] = "1"


@app.command("demo")
def demo_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to make the demo's lake.")],
    json_: JsonOpt = False,
) -> None:
    """The whole way on a small cohort: slides, tiles, teachers, a student, MIL, survival, report.

    Takes about six minutes on two cores. Run it again: what is done is not done twice.
    """
    from examples.demo import DemoSettings, run_demo

    report = run_demo(Path(folder), DemoSettings())
    tell(report, as_json=json_, text=f"report: {Path(folder).absolute() / 'report.html'}")


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="The cluster's job server.")] = None,
) -> None:
    """Run any of the other commands as a Ray job: slidelake submit -- info my-lake."""
    from cluster import submit

    if not context.args:
        msg = "give the command to run after --, as in: slidelake submit -- info my-lake"
        raise typer.BadParameter(msg)
    raise typer.Exit(submit(context.args, address=address))


def main() -> None:
    """Run the command; an error is one line on stderr unless --debug asks for its traceback."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("slidelake: stopped; run the same command again to go on", err=True)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last handler there is
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """Say what went wrong; the exit code: 2 for wrong usage, 1 for damage, 3 for our own faults."""
    if isinstance(error, TyperException):
        typer.echo(f"slidelake: {error.format_message()} (slidelake --help)", err=True)
        return error.exit_code
    if os.environ.get("SLIDELAKE_DEBUG"):
        traceback.print_exc()
    text = " ".join(str(error).split()) or type(error).__name__
    ours = type(error).__module__.partition(".")[0] in PACKAGES
    if not ours:
        text = f"{type(error).__name__}: {text} (slidelake --debug shows where)"
    typer.echo(f"slidelake: {text}", err=True)
    if not ours:
        return 3
    return 1 if type(error).__name__ == "DamageError" else 2


if __name__ == "__main__":
    main()
