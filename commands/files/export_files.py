"""`slidelake export`: a lake as files of another tool."""

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from cluster.progress_text import counted
from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg, PermissionOpt, QuietOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `slidelake export`.

    Attributes:
        out: Local folder to write to; with hub also a URL, as s3://lab/cohort or
            hf://datasets/lab/cohort.
        format: Format of the tool that reads the files, as trident; docs/interop.md has all, and
            an unknown one lists them.
        teachers: Teacher to export; repeat for several; all if not given.
        mpp: Microns per pixel; needed if the lake has several.
        tiles: Also write the tiles as rectangles, with geojson.
        deidentify: CSV outside OUT for the key, which is made or extended. Slides and patients get
            random names, which it holds; users' own columns, texts and paths are left out.
    """

    lake: LakeArg
    out: Annotated[str, typer.Argument(metavar="OUT"), PathKind.OUTPUT]
    format: str
    teachers: Annotated[tuple[str, ...], typer.Option("--teacher")] = ()
    mpp: float | None = None
    tiles: Annotated[bool, typer.Option("--tiles")] = False
    deidentify: Annotated[
        str | None, typer.Option("--deidentify", metavar="KEY.csv"), PathKind.OUTPUT
    ] = None
    permission: PermissionOpt = None
    at: AtOpt = None
    quiet: QuietOpt = False
    json: JsonOpt = False


@command(app, "export")
def export_command(options: ExportOptions) -> None:
    """Write a lake's tiles and features as another tool's files; existing files stay.

    Example: slidelake export my-lake for-trident --format trident --teacher uni2_h --mpp 0.5
    """
    from cluster import progress
    from featurestore import licences_text, open_lake
    from featurestore.interop import Sharing, export_folder
    from ingest import column_licences

    lake = open_lake(options.lake, version=options.at)
    columns = {feature["teacher"] for feature in lake.info()["features"]}

    with progress("export", total=None, unit="slides") as bar:
        exported = export_folder(
            options.lake,
            options.out,
            format=options.format,
            teachers=options.teachers,
            mpp=options.mpp,
            version=options.at,
            tiles=options.tiles,
            sharing=Sharing(
                licences=column_licences(lake, sorted(columns)),
                permission=options.permission,
                deidentify=options.deidentify,
            ),
            on_slide=lambda slide, files: bar.advance(),
        )
    errors = [f"{failure['slide']} failed: {failure['reason']}" for failure in exported.failed]
    lines = [f"{slide['slide']} left out: {slide['reason']}" for slide in exported.left_out]
    lines.append(
        f"{exported.out}: {counted(exported.written, 'slide')} written in "
        f"{counted(exported.files, 'file')}, "
        f"{exported.complete} were there already, {len(exported.failed)} failed"
    )
    if options.deidentify:
        lines.append(f"de-identified; the key of the names is {options.deidentify}: keep it apart")
    if exported.licences:
        lines.append(licences_text(exported.licences))
    print_answer(asdict(exported), as_json=options.json, errors=errors, text="\n".join(lines))
    raise typer.Exit(1 if exported.failed else 0)
