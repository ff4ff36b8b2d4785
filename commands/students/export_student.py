"""`slidelake export-student`: a student for use without slidelake."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, LakeArg, PermissionOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class ExportStudentOptions:
    """Options of `slidelake export-student`.

    Attributes:
        name: Name of a student that sees pixels.
        out: New local folder.
        onnx: Also export ONNX, checked for equality.
    """

    lake: LakeArg
    name: Annotated[str, typer.Argument()]
    out: Annotated[str, typer.Argument(metavar="OUT"), PathKind.OUTPUT]
    onnx: Annotated[bool, typer.Option("--onnx")] = False
    permission: PermissionOpt = None
    json: JsonOpt = False


@command(app, "export-student")
def export_student_command(options: ExportStudentOptions) -> None:
    """Write a student for use without slidelake: safetensors, card, and a README with timm's code.

    Example: slidelake export-student my-lake small small-model --onnx
    """
    from distill.students.export import export_student

    exported = export_student(
        options.lake,
        options.name,
        options.out,
        onnx=options.onnx,
        permission=options.permission,
    )
    lines = [f"licences: {exported['licence']}"]
    text = "\n".join([*lines, *(f"{options.out}/{file}" for file in exported["files"])])
    print_answer(exported, as_json=options.json, text=text)
