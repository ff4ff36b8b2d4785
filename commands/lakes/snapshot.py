"""`slidelake snapshot`: a name for a version."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import AtOpt, JsonOpt, LakeArg

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """Options of `slidelake snapshot`.

    Attributes:
        name: Name of the snapshot: letters, digits, _ . -
    """

    lake: LakeArg
    name: Annotated[str, typer.Argument()]
    at: AtOpt = None
    json: JsonOpt = False


@command(app, "snapshot", without_pandas=True)
def snapshot_command(options: SnapshotOptions) -> None:
    """Name a version of a lake: --at NAME opens it, and vacuum never removes it.

    Example: slidelake snapshot my-lake paper-v1
    """
    from featurestore import open_lake

    lake = open_lake(options.lake, version=options.at)
    lake.snapshot(options.name)
    answer = {"snapshot": options.name, "version": lake.version}
    text = f"snapshot '{options.name}' is version {lake.version}"
    print_answer(answer, as_json=options.json, text=text)
