"""`slidelake vacuum`: old versions removed."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class VacuumOptions:
    """Options of `slidelake vacuum`.

    Attributes:
        keep: Newest versions that stay readable.
        dry_run: Only print what would be removed.
    """

    lake: LakeArg
    keep: Annotated[int, typer.Option(min=1)] = 10
    dry_run: bool = False
    json: JsonOpt = False


@command(app, "vacuum")
def vacuum_command(options: VacuumOptions) -> None:
    """Remove old versions, and files that killed jobs left. Refused while a job is writing.

    The newest versions, snapshots, and the versions that runs were made from stay.
    """
    from featurestore import open_lake, vacuum

    removed = vacuum(open_lake(options.lake), keep=options.keep, dry_run=options.dry_run)
    verb = "would remove" if options.dry_run else "removed"
    text = (
        f"{verb} {counted(removed.versions, 'version')}, {counted(removed.files, 'file')}, "
        f"{removed.bytes / 1e6:,.1f} MB; readable: versions "
        f"{', '.join(str(version) for version in removed.kept)}"
    )
    print_answer(asdict(removed), as_json=options.json, text=text)
