"""The command that lists the licences of what slidelake stands on."""

from typing import Annotated

import typer

from commands.options import JsonOpt, tell

app = typer.Typer()


@app.command("licences")
def licences_command(
    copyleft: Annotated[
        bool, typer.Option("--copyleft", help="Only those with conditions on what is made of them.")
    ] = False,
    json_: JsonOpt = False,
) -> None:
    """List the packages that slidelake needs and that are installed here, with their licences.

    Copyleft is marked: strong (GPL, AGPL) holds for a program that is handed on with it, weak
    (LGPL, MPL, EPL) for the package itself. It is what the packages say of themselves; libraries
    that their wheels bring along are in docs/licences.md.
    """
    from commands.licence_list import installed_licences

    rows = [row for row in installed_licences() if row["copyleft"] or not copyleft]
    lines = [
        f"{row['package']:32} {row['version']:14} {row['copyleft'] or '':7} {row['licence']}"
        for row in rows
    ]
    strong = [row["package"] for row in rows if row["copyleft"] == "strong"]
    if strong:
        lines.append(f"strong copyleft: {', '.join(strong)}; see docs/licences.md")
    tell({"packages": rows}, as_json=json_, text="\n".join(lines))
