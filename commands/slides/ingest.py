"""`slidelake ingest`: slides to tiles."""

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

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
    from ingest.select.named_slides import IngestOptions

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class IngestCommandOptions:
    """Options of `slidelake ingest`.

    Attributes:
        dry_run: Only print what would be done: slides, tiles, bytes, time. Write nothing.
    """

    lake: LakeArg
    slides: SlidesArg
    grid: GridOptions
    reading: ReadingOptions
    selection: SelectionOptions
    dry_run: bool = False
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
    are not given stay. LAKE/ingest.html shows every slide with its tissue and tiles.
    """
    from ingest.ray_ingest import ingest

    choices = ingest_choices(options.reading, options.selection)
    config = lake_config(options.lake, options.slides, options.grid, choices)
    if options.dry_run:
        _dry_run(options, config, choices)
    ingested = ingest(
        options.lake,
        list(options.slides),
        config,
        slide_timeout_s=60 * options.selection.slide_timeout,
        address=options.address,
        auto_vacuum=options.auto_vacuum,
        **choices,
    )
    lines, summary = ingest_lines(ingested), ingest_summary(ingested)
    if again := len(ingested.again) + len(ingested.replaced):
        lines.append(f"{again} slides have new tiles: slidelake extract makes their features anew")
    lines += [summary, f"every slide: {ingested.sheet}", *freed_lines(ingested.freed)]
    print_answer(
        asdict(ingested),
        as_json=options.json,
        errors=failed_slides(ingested),
        text="\n".join(lines),
        summary=summary,
    )
    raise typer.Exit(1 if ingested.failed else 0)


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
