"""`slidelake rename`: another name for a slide, a teacher or an annotation."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from commands.edits.edit_lines import print_edit
from commands.options.dataclass_options import command
from commands.options.shared_options import JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class RenameOptions:
    """Options of `slidelake rename`.

    Attributes:
        old: Name of a slide, a teacher or an annotation.
        new: New name of the slide, teacher or annotation.
        kind: slide, teacher or annotation, where several have this name.
    """

    lake: LakeArg
    old: Annotated[str, typer.Argument()]
    new: Annotated[str, typer.Argument()]
    kind: Annotated[Literal["slide", "teacher", "annotation"] | None, typer.Option("--what")] = None
    json: JsonOpt = False


@command(app, "rename", without_pandas=True)
def rename_command(options: RenameOptions) -> None:
    """Rename a slide, a teacher or an annotation, in one commit.

    Nothing else of it changes: a teacher keeps its identity, a slide its number. Tars keep the
    name that a slide had when it was cut in their .json members.

    Example: slidelake rename my-lake P003-1 P003-A
    """
    from featurestore import open_lake
    from featurestore.edits.drop_and_rename import rename

    old, new = options.old, options.new
    edit = rename(open_lake(options.lake), old, new, what=options.kind)
    text = f"{edit.what} '{new}' is there and no '{old}': renamed before, nothing to do"
    if edit.done:
        text = (
            f"{edit.what} '{old}' is '{new}' from version {edit.version} on; --at {edit.before} "
            "has the old name"
        )
    print_edit(edit, text, as_json=options.json)
