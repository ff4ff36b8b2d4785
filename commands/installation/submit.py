"""`slidelake submit`: another command as a Ray job."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="The cluster's job server.")] = None,
) -> None:
    """Run any of the other commands as a Ray job: slidelake submit -- info my-lake."""
    from cluster import submit

    if not context.args:
        msg = "give the command to run after --, as in: slidelake submit -- info my-lake"
        raise typer.BadParameter(msg)
    raise typer.Exit(submit(context.args, address=address))
