"""`slidelake search`: the tiles or slides nearest to a tile or slide."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg, MppOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class SearchCommandOptions:
    """Options of `slidelake search`.

    Attributes:
        like: With a place in level-0 pixels: tiles like the one that covers it. Without: slides
            like this one, by the mean of their tiles' features.
        features: A teacher or student with features in the lake.
        count: Number of results.
        other_patients_only: Leave out the query's own patient; else its own tiles are marked.
        exact: Compare with all tiles, even if there is an index.
        build_index: First index the features, if no index covers all of them. Worth it for a
            million tiles or more; tiles that are added later are found without it, too.
        recall_tiles: Random tiles on which the index is compared with the exact search, which is
            one pass over all features; 16 if they are 2 GB or less, else 0.
        out: Picture of the results: a .png or .html file.
    """

    lake: LakeArg
    like: Annotated[str, typer.Option(metavar="SLIDE[:x,y]")]
    features: str
    mpp: MppOpt = 0.5
    count: Annotated[int, typer.Option("-k")] = 12
    other_patients_only: Annotated[bool, typer.Option("--other-patients-only")] = False
    exact: Annotated[bool, typer.Option("--exact")] = False
    build_index: Annotated[bool, typer.Option("--build-index")] = False
    recall_tiles: Annotated[int | None, typer.Option(min=0)] = None
    out: Annotated[Path | None, PathKind.OUTPUT] = None
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "search")
def search_command(options: SearchCommandOptions) -> None:
    """Find the tiles nearest to a tile, or the slides nearest to a slide, by a teacher's features.

    Examples: slidelake search my-lake --like slide7:10240,8192 --features uni2_h --out found.html
    or: slidelake search my-lake --like slide7 --features uni2_h --other-patients-only

    Near is the cosine of features, 1 for the same direction. Tiles of one slide share its stain and
    scanner and are often each other's nearest: --other-patients-only looks beyond them.
    """
    from downstream import SearchOptions, search_lake
    from downstream.retrieval.search import found_text

    query = SearchOptions(
        like=options.like,
        features=options.features,
        mpp=options.mpp,
        k=options.count,
        exact=options.exact,
        build_index=options.build_index,
        other_patients_only=options.other_patients_only,
        recall_tiles=options.recall_tiles,
        version=options.at,
    )
    neighbours = search_lake(options.lake, query, out=options.out)
    print_answer(neighbours, as_json=options.json, text=found_text(neighbours))
