"""The command for scores of tiles that a lake lacks."""

from dataclasses import asdict
from typing import Annotated

import typer

from commands.options import JsonOpt, LakeArg, tell

app = typer.Typer()


@app.command("score")
def score_command(
    lake: LakeArg,
    name: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names of scores, as haematoxylin.")
    ],
    dry_run: Annotated[
        bool, typer.Option(help="Count the tiles that lack them. Write nothing.")
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Take these scores out of the lake instead.")
    ] = False,
    json_: JsonOpt = False,
) -> None:
    """Compute scores of the tiles that lack them, from the stored JPEGs, in one commit.

    From then on `slidelake ingest` computes them for new slides. docs/tissue.md lists the scores.

    Example: slidelake score my-lake haematoxylin
    """
    from featurestore import open_lake
    from featurestore.edits.score_columns import drop_scores
    from ingest.scores.fill_scores import fill_scores

    if drop:
        version = drop_scores(open_lake(lake), name)
        dropped = {"dropped": name, "version": version}
        tell(dropped, as_json=json_, text=f"{', '.join(name)} dropped in version {version}")
        return
    filled = fill_scores(lake, name, dry_run=dry_run)
    verb = "would get" if dry_run else "got"
    lines = [f"{count:,} tiles {verb} {score}" for score, count in filled.tiles.items()]
    if filled.no_pixels:
        lines.append(f"{len(filled.no_pixels)} slides have none: the lake has no pixels of them")
    if not dry_run:
        lines.append(f"version {filled.version}")
    tell(asdict(filled), as_json=json_, text="\n".join(lines))
