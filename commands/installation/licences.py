"""`slidelake licences`: the licences of the packages that slidelake needs."""

from dataclasses import dataclass
from typing import Annotated

import typer

from commands.options.dataclass_options import command
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class LicencesOptions:
    """Options of `slidelake licences`.

    Attributes:
        copyleft: Only those with conditions on what is made of them.
    """

    copyleft: Annotated[bool, typer.Option("--copyleft")] = False
    json: JsonOpt = False


@command(app, "licences")
def licences_command(options: LicencesOptions) -> None:
    """List the packages that slidelake needs and that are installed here, with their licences.

    Copyleft is marked: strong (GPL, AGPL) holds for a program that is handed on with it, weak
    (LGPL, MPL, EPL) for the package itself. The licences are those that the packages declare;
    libraries that their wheels bring along are in docs/licences.md.
    """
    from commands.installation.licence_list import installed_licences

    rows = [row for row in installed_licences() if row["copyleft"] or not options.copyleft]
    lines = [
        f"{row['package']:32} {row['version']:14} {row['copyleft'] or '':7} {row['licence']}"
        for row in rows
    ]
    strong = [row["package"] for row in rows if row["copyleft"] == "strong"]
    if strong:
        lines.append(f"strong copyleft: {', '.join(strong)}; see docs/licences.md")
    print_answer({"packages": rows}, as_json=options.json, text="\n".join(lines))
