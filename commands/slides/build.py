"""`slidelake build`: slides to tiles and features in one go."""

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
    TeachersOpt,
)
from commands.options.worker_options import WorkerOptions
from commands.slides.extract import RunOptions, extract_lines, failed_fragments
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
    from ingest import BuildOptions, BuildResult
    from ingest.select.named_slides import IngestOptions

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class BuildCommandOptions:
    """Options of `slidelake build`.

    Attributes:
        dry_run: Only print what would be done: slides, tiles, bytes, time. Write nothing.
    """

    lake: LakeArg
    slides: SlidesArg
    teachers: TeachersOpt
    grid: GridOptions
    reading: ReadingOptions
    selection: SelectionOptions
    run: RunOptions
    workers: WorkerOptions
    dry_run: bool = False
    auto_vacuum: AutoVacuumOpt = False
    address: AddressOpt = None
    on_failure: OnFailureOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "build")
def build_command(options: BuildCommandOptions) -> None:
    """Make a lake of slides and features: cut slides into tiles, and run teachers on every tile.

    Example: slidelake build my-lake slides/ --teacher uni2_h --teacher virchow2 --mpp 0.5

    It is an ingest and an extract in one Ray session, with all their options. A wrong name of a
    teacher or missing weights are refused before a slide is opened. Slides that fail are listed
    with their reason, and the others go on. Run it again to go on after a kill, with more slides,
    or with one more teacher: what the lake has is not made again. Open LAKE/ingest.html in the end:
    every slide with its tissue and tiles, and the columns of features.
    """
    from distill import build_lake

    choices = ingest_choices(options.reading, options.selection)
    config = lake_config(options.lake, options.slides, options.grid, choices)
    if options.dry_run:
        _dry_run(options, config, choices)
    build_options: BuildOptions = {
        **choices,
        "weights": options.run.weights,
        "precision": options.run.precision,
        "engine": options.run.engine,
        "where": options.run.where,
        "share": options.run.share,
        "fov": options.run.fov,
        "commit_slides": None,
        "slide_timeout_s": 60 * options.selection.slide_timeout,
        "address": options.address,
        "workers": options.workers.settings(),
        "auto_vacuum": options.auto_vacuum,
    }
    built = build_lake(
        options.lake, options.slides, options.teachers, config=config, **build_options
    )
    print_answer(
        asdict(built),
        as_json=options.json,
        errors=[*failed_slides(built.ingested), *failed_fragments(built.extracted)],
        text="\n".join(_build_lines(built)),
    )
    raise typer.Exit(1 if built.failed or built.extracted.did_nothing else 0)


def _build_lines(built: "BuildResult") -> list[str]:
    return [
        *ingest_lines(built.ingested),
        ingest_summary(built.ingested),
        *extract_lines(built.extracted),
        *freed_lines(built.extracted.freed),
        f"open {built.page}: every slide and its tiles, every column of features",
    ]


def _dry_run(options: BuildCommandOptions, config: "LakeConfig", choices: "IngestOptions") -> None:
    from ingest.lake_building import plan_columns
    from ingest.pages.page_templates import size
    from ingest.select.slides_to_cut import dry_run

    cores = os.cpu_count() or 1
    columns = plan_columns(options.lake, options.teachers, folder=options.run.weights)
    plan = dry_run(options.lake, list(options.slides), config, choices, cores=cores)
    tiles = sum(plan.tiles.values())
    features = {column.name: column.bytes_of(tiles) for column in columns}
    lines = [f"{name}: about {size(count)} of features" for name, count in features.items()]
    lines += [column.note for column in columns if column.note]
    print_answer(
        {**asdict(plan), "features": features},
        as_json=options.json,
        errors=planned_failures(plan),
        text="\n".join([*lines, *plan_lines(plan)]),
    )
    raise typer.Exit(1 if plan.failed else 0)
