"""`slidelake teachers`: the teachers that can be run."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt, WeightsOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class TeachersOptions:
    """Options of `slidelake teachers`.

    Attributes:
        lake: Lake with students to list too.
    """

    lake: Annotated[str | None, typer.Argument(metavar="[LAKE]"), PathKind.LAKE] = None
    weights: WeightsOpt = None
    json: JsonOpt = False


@command(app, "teachers", without_pandas=True)
def teachers_command(options: TeachersOptions) -> None:
    """List the teachers that can be run, and whether their weights are on this machine."""
    from featurestore import open_lake
    from ingest.teachers.find_teacher import list_teachers

    lake = open_lake(options.lake) if options.lake else None
    rows = list_teachers(lake, folder=options.weights)
    lines = [
        f"{row['teacher']:20} {row['dim']:>5} dims  {_field_words(row):16}  "
        f"{_weights_word(row):8}"
        f"{', '.join(row['poolings']):16} {row['licence']}"
        for row in sorted(rows, key=lambda row: not row["available"])
    ]
    print_answer({"teachers": rows}, as_json=options.json, text="\n".join(lines))


def _field_words(row: dict[str, Any]) -> str:
    """Return the field of view of a teacher, as `512 px at 0.5`."""
    px = "/".join(map(str, row["field_px"])) or "any"
    return f"{px} px at {row['mpp'] or 'any'}"


def _weights_word(row: dict[str, Any]) -> str:
    """Return in a word whether a teacher's weights are here, or can be downloaded."""
    if row["available"]:
        return "here"
    return "gated" if row["gated"] else "on hub" if row["downloads"] else "missing"
