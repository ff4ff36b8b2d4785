"""`slidelake drop`: slides, teachers, annotations or slides' vectors out of a lake."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.edits.edit_lines import print_edit
from commands.options.dataclass_options import command
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """Options of `slidelake drop`.

    Attributes:
        slides: slide_id of a slide; repeat for several.
        teachers: Name of a teacher; repeat for several.
        annotations: Name of an annotation; repeat for several.
        encodings: Name of slides' vectors, as mean.uni2_h; repeat for several.
    """

    lake: LakeArg
    slides: Annotated[tuple[str, ...], typer.Option("--slide")] = ()
    teachers: Annotated[tuple[str, ...], typer.Option("--teacher")] = ()
    annotations: Annotated[tuple[str, ...], typer.Option("--annotation")] = ()
    encodings: Annotated[tuple[str, ...], typer.Option("--encoding")] = ()
    json: JsonOpt = False


@command(app, "drop", without_pandas=True)
def drop_command(options: DropOptions) -> None:
    """Remove slides, teachers, annotations or slides' vectors from a lake, in one commit.

    Earlier versions keep them (--at) until `slidelake vacuum`. A dropped slide can be ingested
    again, as a new one.

    Example: slidelake drop my-lake --slide P003-1
    """
    from featurestore import listing, open_lake
    from featurestore.edits import drop

    chosen = {
        "slide": options.slides,
        "teacher": options.teachers,
        "annotation": options.annotations,
        "encoding": options.encodings,
    }
    requests = [(kind, list(names)) for kind, names in chosen.items() if names]
    if len(requests) != 1:
        msg = "give one of --slide, --teacher, --annotation and --encoding; each may be repeated"
        raise typer.BadParameter(msg)
    [(kind, names)] = requests
    edit = drop(open_lake(options.lake), kind, names)  # type: ignore[arg-type]
    dropped = f"{kind} {listing(edit.names)}"
    text = f"{dropped}: dropped before, nothing to do"
    if edit.done:
        text = f"{dropped}: dropped in version {edit.version}; --at {edit.before} still reads it"
    print_edit(edit, text, as_json=options.json)
