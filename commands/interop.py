"""Commands that take other tools' files and write them."""

from dataclasses import asdict
from typing import Annotated

import typer

from commands.options import (
    AtOpt,
    JsonOpt,
    LakeArg,
    tell,
)

app = typer.Typer()


@app.command("import")
def import_command(
    lake: LakeArg,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="What the other tool wrote.")],
    format_: Annotated[
        str, typer.Option("--format", help="Of which tool: trident, clam, stamp or slide2vec.")
    ],
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of the tiles; CLAM does not say it.")
    ] = None,
    level0_mpp: Annotated[
        float | None,
        typer.Option(help="Microns per pixel of the slides' level 0; STAMP does not say it."),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME of the encoder where files do not say it, or NAMEs to take of several; "
            "NAME=FOLDER names one folder of features. Repeat for several."
        ),
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Side of a tile in its own pixels, where files lack it.")
    ] = None,
    tile_px_level0: Annotated[
        int | None, typer.Option(help="Side of a tile in level-0 pixels, where files lack it.")
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Take tiles and features that another tool extracted; without pixels. Run it again to go on.

    Example: slidelake import my-lake CLAM_FEATURES --format clam --mpp 0.5 --teacher resnet50
    """
    from cluster import progress
    from featurestore.interop import ImportFacts, import_folder

    facts = ImportFacts(
        mpp=mpp,
        level0_mpp=level0_mpp,
        teachers=tuple(teacher or ()),
        tile_px=tile_px,
        tile_px_level0=tile_px_level0,
    )
    with progress("import", total=None, unit="files") as bar:
        result = import_folder(
            lake, folder, format=format_, facts=facts, on_slide=lambda slide, what: bar.advance()
        )
    lines = [f"{f['slide_id']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{f['slide_id']} left out: {f['reason']}" for f in result.left_out]
    lines += [f"{tiles:,} tiles at {name} mpp" for name, tiles in result.tiles.items()]
    lines += [f"{name}: {slides} slides" for name, slides in result.features.items()]
    lines.append(f"{result.slides} slides, {result.new} new; {len(result.failed)} files failed")
    tell(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)


@app.command("export")
def export_command(
    lake: LakeArg,
    out: Annotated[str, typer.Argument(metavar="OUT", help="Local folder to write to.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="For which tool: trident, clam, stamp, anndata or geojson."),
    ],
    teacher: Annotated[
        list[str] | None, typer.Option(help="Whose features; repeat for several; all if not given.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel; needed if the lake has several.")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="With geojson: the tiles as rectangles, too.")
    ] = False,
    at: AtOpt = None,
    json_: JsonOpt = False,
) -> None:
    """Write a lake's tiles and features as another tool's files; what is there stays.

    Example: slidelake export my-lake for-trident --format trident --teacher uni2 --mpp 0.5
    """
    from cluster import progress
    from featurestore.interop import export_folder

    with progress("export", total=None, unit="slides") as bar:
        result = export_folder(
            lake,
            out,
            format=format_,
            teachers=tuple(teacher or ()),
            mpp=mpp,
            version=at,
            tiles=tiles,
            on_slide=lambda slide, files: bar.advance(),
        )
    lines = [f"{f['slide']} failed: {f['reason']}" for f in result.failed]
    lines += [f"{f['slide']} left out: {f['reason']}" for f in result.left_out]
    lines.append(
        f"{result.out}: {result.written} slides written in {result.files} files, "
        f"{result.complete} were there already, {len(result.failed)} failed"
    )
    tell(asdict(result), as_json=json_, text="\n".join(lines))
    raise typer.Exit(1 if result.failed else 0)
