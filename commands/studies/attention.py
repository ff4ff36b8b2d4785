"""`slidelake attention`: the attention of a run's models on a slide."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.completion import complete_run
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of `slidelake attention`.

    Attributes:
        run: Name of a finished run.
        slide: Id of a slide that the run tested.
        arm: Arm of the run; all that weigh tiles if not given.
        out: Folder for the files.
    """

    lake: LakeArg
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_run)]
    slide: Annotated[str, typer.Argument(metavar="SLIDE")]
    arm: str | None = None
    out: Annotated[str, typer.Option(metavar="DIR"), PathKind.OUTPUT] = "attention"
    json: JsonOpt = False


@command(app, "attention")
def attention_command(options: AttentionOptions) -> None:
    """Write a slide's attention in a run: a picture, tiles for QuPath (GeoJSON), and a table."""
    from downstream.report.attention_maps import write_attention
    from featurestore import open_lake

    paths = write_attention(
        open_lake(options.lake), options.run, options.slide, arm=options.arm, folder=options.out
    )
    files = [str(path) for path in paths]
    answer = {"run": options.run, "slide": options.slide, "files": files}
    print_answer(answer, as_json=options.json, text="\n".join(files))
