"""The answer of `slidelake drop` and `slidelake rename`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from commands.options.printing import print_answer

if TYPE_CHECKING:
    from featurestore.edits.drop_and_rename import Edited


def print_edit(edit: "Edited", text: str, *, as_json: bool) -> None:
    """Print an edit of a lake, and the folders that still have the old name."""
    lines = [f"named in {folder}, which stays as it is" for folder in edit.named_in]
    print_answer(asdict(edit), as_json=as_json, text="\n".join([*lines, text]))
