"""`slidelake ingest`: slides to tiles."""

import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.failure_report import OnFailureOpt
from commands.options.printing import freed_lines, print_answer
from commands.options.shared_options import (
    AddressOpt,
    AutoVacuumOpt,
    JsonOpt,
    LakeArg,
    QuietOpt,
)
from commands.slides.slide_options import (
    GridOptions,
    ReadingOptions,
    SelectionOptions,
    SlidesArg,
    failed_slides,
    ingest_choices,
    ingest_lines,
    ingest_summary,
    lake_config,
    plan_lines,
    planned_failures,
)

if TYPE_CHECKING:
    from featurestore import LakeConfig
    from ingest.ray_ingest import IngestResult
    from ingest.select.named_slides import IngestOptions

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class IngestCommandOptions:
    """Options of `slidelake ingest`.

    Attributes:
        dry_run: Only print what would be done: slides, tiles, bytes, time. Write nothing.
        watch: Go on until Ctrl-C: cut slides as they arrive, once they have stopped growing.
        every: Seconds between two looks of --watch, and those that a file must have been the same.
    """

    lake: LakeArg
    slides: SlidesArg
    grid: GridOptions
    reading: ReadingOptions
    selection: SelectionOptions
    dry_run: bool = False
    watch: Annotated[bool, typer.Option("--watch")] = False
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS")] = 60.0
    auto_vacuum: AutoVacuumOpt = False
    address: AddressOpt = None
    on_failure: OnFailureOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "ingest")
def ingest_command(options: IngestCommandOptions) -> None:
    """Cut slides into tiles at one or several magnifications.

    Example: slidelake ingest my-lake slides/ --mpp 0.5 --mpp 2.0

    Slides that fail are listed with their reason, and the others go on; run it again to go on
    after a kill. Settings that differ from those of an earlier run are applied: patients and other
    facts are updated, a slide with another mpp, mask or tissue method is cut again; settings that
    are not given stay. LAKE/ingest.html shows every slide with its tissue and tiles. Files whose
    size and time (or ETag) are as the lake keeps them are not read, so running it again is cheap.
    """
    from ingest.ray_ingest import ingest

    choices = ingest_choices(options.reading, options.selection)
    config = lake_config(options.lake, options.slides, options.grid, choices)
    if options.dry_run:
        _dry_run(options, config, choices)
    if options.watch:
        _watch(options, config, choices)
    ingested = ingest(
        options.lake,
        list(options.slides),
        config,
        slide_timeout_s=60 * options.selection.slide_timeout,
        address=options.address,
        auto_vacuum=options.auto_vacuum,
        **choices,
    )
    _print_outcome(options, ingested)
    raise typer.Exit(1 if ingested.failed else 0)


def _print_outcome(options: IngestCommandOptions, ingested: "IngestResult") -> None:
    lines, summary = ingest_lines(ingested), ingest_summary(ingested)
    if again := len(ingested.again) + len(ingested.replaced):
        lines.append(
            f"{counted(again, 'slide', 'have')} new tiles: slidelake extract makes their "
            "features anew"
        )
    lines += [summary, f"every slide: {ingested.sheet}", *freed_lines(ingested.freed)]
    print_answer(
        asdict(ingested),
        as_json=options.json,
        errors=failed_slides(ingested),
        text="\n".join(lines),
        summary=summary,
    )


def _watch(options: IngestCommandOptions, config: "LakeConfig", choices: "IngestOptions") -> None:
    """Print the outcome of each ingest until the command is stopped."""
    from ingest.watching import Watch

    def note(text: str) -> None:
        typer.echo(f"slidelake: {text}", err=True)

    watch = Watch(
        lake_uri=options.lake,
        inputs=list(options.slides),
        config=config,
        options=choices,
        every_s=options.every,
        slide_timeout_s=60 * options.selection.slide_timeout,
        address=options.address,
        auto_vacuum=options.auto_vacuum,
        note=note,
    )
    failed = False
    # A batch system or a container's host stops a job by SIGTERM.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    note(f"watching every {options.every:g} s; Ctrl-C ends it")
    try:
        for ingested in watch.outcomes():
            _print_outcome(options, ingested)
            sys.stdout.flush()
            failed = failed or bool(ingested.failed)
    except KeyboardInterrupt:
        note("stopped watching; what is committed stays, and the same command goes on")
    finally:
        signal.signal(signal.SIGTERM, before)
    raise typer.Exit(1 if failed else 0)


def _dry_run(options: IngestCommandOptions, config: "LakeConfig", choices: "IngestOptions") -> None:
    from ingest.select.slides_to_cut import dry_run

    cores = os.cpu_count() or 1
    plan = dry_run(options.lake, list(options.slides), config, choices, cores=cores)
    print_answer(
        asdict(plan),
        as_json=options.json,
        errors=planned_failures(plan),
        text="\n".join(plan_lines(plan)),
    )
    raise typer.Exit(1 if plan.failed else 0)
