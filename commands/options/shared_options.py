"""Options that many commands have, each written once."""

from typing import Annotated

import typer

from commands.options.completion import complete_run, complete_teacher
from commands.options.path_kind import PathKind

LakeArg = Annotated[
    str, typer.Argument(metavar="LAKE", help="Folder or URL of the lake."), PathKind.LAKE
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object last on stdout.")]
QuietOpt = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Show no progress: only errors, and the last line or the JSON object."
    ),
]
TeachersOpt = Annotated[
    tuple[str, ...],
    typer.Option(
        "--teacher",
        help="Name of a teacher; repeat for several.",
        autocompletion=complete_teacher,
    ),
    PathKind.PYTHON,
]
WeightsOpt = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|URL",
        help="Folder that is searched for weights first, with NAME.safetensors, NAME.pth or "
        "folders NAME as on the hub; SLIDELAKE_WEIGHTS if not given. Of a bucket's folder, as "
        "s3://lab/weights, each node fetches what it needs, once.",
    ),
    PathKind.WEIGHTS,
]
MppOpt = Annotated[float, typer.Option(help="Microns per pixel of the tiles.")]
MppsOpt = Annotated[
    tuple[float, ...], typer.Option("--mpp", help="Microns per pixel; repeat for several.")
]
AtOpt = Annotated[
    str | None, typer.Option(help="Version number or snapshot to read; the newest if not given.")
]
AddressOpt = Annotated[
    str | None, typer.Option(help="Ray cluster to use; without one a local Ray is started.")
]
AutoVacuumOpt = Annotated[
    bool,
    typer.Option(
        help="Remove old versions at the end. The newest 100 stay, those younger than 7 days, and "
        "those that runs, snapshots or the last verify use."
    ),
]
PermissionOpt = Annotated[
    str | None,
    typer.Option(
        "--i-have-permission",
        metavar="TEXT",
        help="Who permitted what a licence forbids, and when; the text is kept with the result.",
    ),
]
SeedOpt = Annotated[int, typer.Option(help="Random seed: the same seed gives the same result.")]
DistinctIdsOpt = Annotated[
    bool,
    typer.Option(
        "--distinct-ids",
        help="Treat ids, sites and classes that differ only by case, blanks or Unicode form as "
        "different; else they are refused.",
        rich_help_panel="Tables",
    ),
]
SetOpt = Annotated[
    tuple[str, ...],
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set any field of the run's settings; repeat for several. An unknown field lists all.",
        rich_help_panel="Settings",
    ),
    PathKind.SETTING,
]
LikeOpt = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="RUN",
        autocompletion=complete_run,
        help="Start from the saved settings of this run; options and --set override them.",
        rich_help_panel="Settings",
    ),
]
