"""`slidelake import`: files of another tool into a lake."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `slidelake import`.

    Attributes:
        folder: Folder that the other tool wrote; of the format hub also a URL.
        format: Format of the tool that wrote it, as clam; docs/interop.md has all, and an unknown
            one lists them.
        mpp: Microns per pixel of the tiles; the files of CLAM lack it.
        level0_mpp: Microns per pixel of the slides' level 0; the files of STAMP lack it.
        teachers: NAME of the encoder where the files lack it, or NAMEs to take of several;
            NAME=FOLDER names one folder of features. Repeat for several.
        tile_px: Side of a tile in its own pixels, where files lack it.
        tile_px_level0: Side of a tile in level-0 pixels, where files lack it.
    """

    lake: LakeArg
    folder: Annotated[str, typer.Argument(metavar="DIR"), PathKind.FILES]
    format: str
    mpp: float | None = None
    level0_mpp: float | None = None
    teachers: Annotated[tuple[str, ...], typer.Option("--teacher")] = ()
    tile_px: int | None = None
    tile_px_level0: int | None = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "import")
def import_command(options: ImportOptions) -> None:
    """Import tiles and features of another tool, without pixels. Run it again to continue.

    Example: slidelake import my-lake CLAM_FEATURES --format clam --mpp 0.5 --teacher resnet50
    """
    from cluster import progress
    from featurestore.interop import ImportFacts, import_folder

    facts = ImportFacts(
        mpp=options.mpp,
        level0_mpp=options.level0_mpp,
        teachers=options.teachers,
        tile_px=options.tile_px,
        tile_px_level0=options.tile_px_level0,
    )
    with progress("import", total=None, unit="files") as bar:
        imported = import_folder(
            options.lake,
            options.folder,
            format=options.format,
            facts=facts,
            on_slide=lambda slide, outcome: bar.advance(),
        )
    errors = [f"{failure['slide_id']} failed: {failure['reason']}" for failure in imported.failed]
    lines = [f"{slide['slide_id']} left out: {slide['reason']}" for slide in imported.left_out]
    lines += [f"{counted(tiles, 'tile')} at {name} mpp" for name, tiles in imported.tiles.items()]
    lines += [f"{name}: {counted(slides, 'slide')}" for name, slides in imported.features.items()]
    lines.append(
        f"{counted(imported.slides, 'slide')}, {imported.new} new; "
        f"{counted(len(imported.failed), 'file')} failed"
    )
    print_answer(asdict(imported), as_json=options.json, errors=errors, text="\n".join(lines))
    raise typer.Exit(1 if imported.failed else 0)
