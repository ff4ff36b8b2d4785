"""`slidelake score`: scores of tiles that a lake lacks."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Options of `slidelake score`.

    Attributes:
        names: Names of scores, as haematoxylin.
        dry_run: Count the tiles that lack them. Write nothing.
        drop: Take these scores out of the lake instead.
    """

    lake: LakeArg
    names: Annotated[tuple[str, ...], typer.Argument(metavar="NAME...")]
    dry_run: bool = False
    drop: Annotated[bool, typer.Option("--drop")] = False
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "score")
def score_command(options: ScoreOptions) -> None:
    """Compute scores of the tiles that lack them, from the stored JPEGs, in one commit.

    From then on `slidelake ingest` computes them for new slides. docs/tissue.md lists the scores.

    Example: slidelake score my-lake haematoxylin
    """
    from featurestore import open_lake
    from featurestore.edits.score_columns import drop_scores
    from ingest.scores.fill_scores import fill_scores

    names = list(options.names)
    if options.drop:
        version = drop_scores(open_lake(options.lake), names)
        dropped = {"dropped": names, "version": version}
        text = f"{', '.join(names)} dropped in version {version}"
        print_answer(dropped, as_json=options.json, text=text)
        return
    filled = fill_scores(options.lake, names, dry_run=options.dry_run)
    verb = "would be" if options.dry_run else "were"
    lines = [
        f"{score}: {counted(count, 'tile')} {verb} scored" for score, count in filled.tiles.items()
    ]
    if filled.no_pixels:
        lines.append(
            f"{counted(len(filled.no_pixels), 'slide', 'have')} none: the lake has no pixels of "
            "them"
        )
    if not options.dry_run:
        lines.append(f"version {filled.version}")
    print_answer(asdict(filled), as_json=options.json, text="\n".join(lines))
