"""`slidelake attention`: the attention of a run's models on a slide."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.completion import complete_run
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt
from commands.studies.study_lines import heatmap_lines, heatmaps_answer

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of `slidelake attention`.

    Attributes:
        run: Name of a finished run.
        slide: Id of a slide that the run tested; or --all for every slide.
        every: Write every slide that the run tested, and index.html, which lists them; what is
            there whole is not drawn again.
        arm: Arm of the run; all that weigh tiles if not given.
        out: Folder for the files.
    """

    lake: LakeArg
    run: Annotated[str, typer.Argument(metavar="RUN", autocompletion=complete_run)]
    slide: Annotated[str | None, typer.Argument(metavar="[SLIDE]")] = None
    every: Annotated[bool, typer.Option("--all")] = False
    arm: str | None = None
    out: Annotated[str, typer.Option(metavar="DIR"), PathKind.OUTPUT] = "attention"
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "attention")
def attention_command(options: AttentionOptions) -> None:
    """Write the attention of a slide, or of all: a picture, tiles for QuPath (GeoJSON), a table.

    With --all each slide also has a picture of the tiles with the most attention.

    Examples: slidelake attention my-lake mil-0123456789ab S-0012
    or: slidelake attention my-lake mil-0123456789ab --all --out maps
    """
    if (options.slide is None) != options.every:
        which = "both" if options.every else "neither"
        msg = f"{which} given of SLIDE and --all; name a slide, or write all of them by --all"
        raise typer.BadParameter(msg)
    if options.every:
        _write_all(options)
        return
    from downstream.report.attention_maps import write_attention
    from featurestore import open_lake

    paths = write_attention(
        open_lake(options.lake), options.run, str(options.slide),
        arm=options.arm, folder=options.out,
    )  # fmt: skip
    files = [str(path) for path in paths]
    answer = {"run": options.run, "slide": options.slide, "files": files}
    print_answer(answer, as_json=options.json, text="\n".join(files))


def _write_all(options: AttentionOptions) -> None:
    """Write every slide of the run, and print how many are there."""
    from downstream.report.heatmaps.all_attention import write_all_attention
    from featurestore import open_lake

    written = write_all_attention(
        open_lake(options.lake), options.run, arm=options.arm, folder=options.out
    )
    print_answer(
        {"run": options.run, **heatmaps_answer(written)},
        as_json=options.json,
        errors=written.failed,
        text="\n".join(heatmap_lines(written)),
    )
    raise typer.Exit(1 if written.failed else 0)
