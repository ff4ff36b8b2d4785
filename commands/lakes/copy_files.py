"""`slidelake copy`: a whole lake to another place."""

import contextlib
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """Options of `slidelake copy`.

    Attributes:
        dest: Folder or URL of the copy; nothing is there yet.
    """

    lake: LakeArg
    dest: Annotated[str, typer.Argument(metavar="DEST"), PathKind.LAKE]
    at: AtOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "copy")
def copy_command(options: CopyOptions) -> None:
    """Copy a whole lake while jobs write to it: from or to a folder or a bucket.

    One version is copied (the newest, or --at), with all snapshots and the versions that runs were
    made from. A copy that was stopped goes on when the same command is given again.

    Example: slidelake copy my-lake s3://lab/my-lake
    """
    from cluster import progress
    from featurestore import copy_lake

    with contextlib.ExitStack() as stack:
        bars = []
        copied = copy_lake(
            options.lake,
            options.dest,
            version=options.at,
            on_plan=lambda files: bars.append(
                stack.enter_context(progress("copy", total=files, unit="files"))
            ),
            on_file=lambda size: bars[0].advance(1, kB=round(size / 1000)),
        )
    versions = ", ".join(str(version) for version in copied.versions)
    text = (
        f"{copied.uri}: version {copied.version}, {counted(copied.files, 'file')}, "
        f"{copied.bytes / 1e6:,.1f} MB ({copied.copied:,} copied now); readable: versions "
        f"{versions}"
    )
    print_answer(asdict(copied), as_json=options.json, text=text)
