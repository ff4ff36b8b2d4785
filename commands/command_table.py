"""All commands, under the headings of `slidelake --help`."""

import typer

from commands.edits import annotate, drop, quantise, rename
from commands.files import export_files, import_files
from commands.installation import demo, jobs, licences, submit
from commands.lakes import (
    compact,
    copy_files,
    estimate,
    info,
    ls,
    query,
    repair,
    restore,
    snapshot,
    status,
    vacuum,
    verify,
)
from commands.slides import build, encode, extract, ingest, score, teachers
from commands.students import distill, evaluate, export_student, stats
from commands.studies import (
    attention,
    mil,
    predict,
    probe,
    report,
    robustness,
    runs,
    search,
    survival,
)

#: Heading -> the commands under it, in the order of `--help`; None means no heading.
COMMANDS: dict[str | None, tuple[typer.Typer, ...]] = {
    None: (demo.app, submit.app, jobs.app),
    "Slides, tiles, features": (
        build.app,
        ingest.app,
        extract.app,
        encode.app,
        score.app,
        quantise.app,
        teachers.app,
    ),
    "Students": (stats.app, distill.app, evaluate.app, export_student.app),
    "Downstream tasks": (
        mil.app,
        survival.app,
        probe.app,
        predict.app,
        robustness.app,
        attention.app,
        search.app,
        runs.app,
        report.app,
    ),
    "The lake": (
        ls.app,
        query.app,
        info.app,
        status.app,
        verify.app,
        repair.app,
        restore.app,
        compact.app,
        vacuum.app,
        snapshot.app,
        copy_files.app,
        estimate.app,
    ),
    "Your own columns, dropping and renaming": (annotate.app, drop.app, rename.app),
    "Other tools' files": (import_files.app, export_files.app),
    "This installation": (licences.app,),
}


def add_commands(app: typer.Typer) -> None:
    """Add all commands to the application."""
    for heading, parts in COMMANDS.items():
        for part in parts:
            for command in part.registered_commands if heading else ():
                command.rich_help_panel = heading
            app.add_typer(part)
