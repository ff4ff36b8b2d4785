"""`slidelake search`: the tiles or slides nearest to one, and how well slides are found."""

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
        labels: Instead of --like, measure the search: every slide with a label searches those of
            other patients. A table of slides or patients as for mil, or lake:NAME.
        target: With --labels: the column of the classes.
        features: A teacher or student with features in the lake; with --labels, repeat to compare.
        count: Number of results.
        other_patients_only: Leave out the query's own patient; else its own tiles are marked.
        exact: Compare with all tiles, even if there is an index.
        build_index: First index the features, if no index covers all of them. Worth it for a
            million tiles or more; tiles that are added later are found without it, too.
        recall_tiles: Random tiles on which the index is compared with the exact search, which is
            one pass over all features; 16 if they are 2 GB or less, else 0.
        out: Picture of the results: a .png or .html file; of the measures: .html.
    """

    lake: LakeArg
    like: Annotated[str | None, typer.Option(metavar="SLIDE[:x,y]")] = None
    labels: Annotated[str | None, typer.Option(metavar="FILE"), PathKind.FILES] = None
    target: Annotated[str | None, typer.Option(metavar="COLUMN")] = None
    features: Annotated[tuple[str, ...], typer.Option("--features", metavar="NAME")]
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
    """Find the tiles or slides nearest to one by a teacher's features, or measure how well it does.

    Examples: slidelake search my-lake --like slide7:10240,8192 --features uni2_h --out found.html
    or: slidelake search my-lake --like slide7 --features uni2_h --other-patients-only
    or: slidelake search my-lake --labels labels.csv --target grade --features uni2_h

    Near is the cosine of features, 1 for the same direction. Tiles of one slide share its stain and
    scanner and are often each other's nearest: --other-patients-only looks beyond them.
    """
    _check_form(options)
    if options.labels is not None and options.target is not None:
        _measure(options, options.labels, options.target)
    elif options.like is not None:
        _search(options, options.like)


def _check_form(options: SearchCommandOptions) -> None:
    """Raise BadParameter unless the options are a query's, or labels' with their column."""
    if (options.like is None) == (options.labels is None):
        msg = "give either --like SLIDE[:x,y], to search, or --labels TABLE, to measure the search"
        raise typer.BadParameter(msg)
    if (options.labels is None) != (options.target is None):
        msg = "--labels TABLE and --target COLUMN come together"
        raise typer.BadParameter(msg)
    if options.like is not None and len(options.features) > 1:
        msg = f"--features {', '.join(options.features)} given; a query searches by one of them"
        raise typer.BadParameter(msg)


def _measure(options: SearchCommandOptions, labels: str, target: str) -> None:
    """Measure the search on labelled slides, and print the answer."""
    from downstream import LabelledSearchOptions, evaluate_search
    from downstream.retrieval.labelled_search import labelled_text

    labelled = LabelledSearchOptions(
        labels=labels,
        target=target,
        features=tuple(dict.fromkeys(options.features)),
        mpp=options.mpp,
        version=options.at,
    )
    answer = evaluate_search(options.lake, labelled, out=options.out)
    print_answer(answer, as_json=options.json, text=labelled_text(answer))


def _search(options: SearchCommandOptions, like: str) -> None:
    """Search for what is like a tile or a slide, and print the answer."""
    from downstream import SearchOptions, search_lake
    from downstream.retrieval.search import found_text

    query = SearchOptions(
        like=like,
        features=options.features[0],
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
