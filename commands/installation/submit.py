"""`slidelake submit`: another command as a Ray job."""

from typing import Annotated, Any, cast

import typer

app = typer.Typer()


@app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit_command(
    context: typer.Context,
    address: Annotated[str | None, typer.Option(help="The cluster's job server.")] = None,
    wait: Annotated[
        bool,
        typer.Option(help="Wait for the job, and print what it prints; else print its id alone."),
    ] = True,
    job_id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="Id of the job; one of Ray's if not given."),
    ] = None,
    shared: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Folder that all nodes see by the same path, as on a network disk; repeat for "
            "several; SLIDELAKE_SHARED if not given.",
        ),
    ] = None,
    entrypoint_cpus: Annotated[
        float | None,
        typer.Option(
            metavar="CORES",
            help="Cores that the command itself reserves, beside its workers: it then runs on any "
            "node that has them, and not on the head.",
        ),
    ] = None,
    entrypoint_memory: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Memory that the command itself reserves, likewise."),
    ] = None,
) -> None:
    """Run any of the other commands as a Ray job: slidelake submit -- info s3://lab/my-lake.

    Small files that the command names travel with the job, up to 50 MB: tables, splits, masks, a
    Python file of your own. Files that it writes (--out) come back. A lake, slides and weights on
    this machine do not travel: name them by URL. No variable of this shell travels.

    Ctrl-C stops following the job, not the job; `slidelake jobs` lists, follows and stops jobs.
    """
    from cluster.extensions import loaded_extensions
    from cluster.ray_jobs import job_server
    from cluster.ray_submit import JobOptions, submit
    from commands.installation.job_paths import JobPaths, shared_folders
    from commands.installation.job_words import job_words

    if not context.args:
        msg = "give the command to run after --, as in: slidelake submit -- info s3://lab/my-lake"
        raise typer.BadParameter(msg)
    extensions = [word for one in loaded_extensions() for word in ("--extend", one.path)]
    group = cast("Any", context.find_root().command)
    paths = JobPaths(here=False, shared=shared_folders(shared or ()))
    words = [*extensions, *context.args]
    job_words(group, words, JobPaths(here=True))  # a wrong option needs no cluster to be found
    paths.here = job_server(address).is_this_machine()
    options = JobOptions(
        id=job_id,
        cpus=entrypoint_cpus,
        memory_gb=entrypoint_memory,
        files=paths.files,
        outputs=paths.outputs,
    )
    words = job_words(group, words, paths)
    raise typer.Exit(submit(words, address=address, follow=wait, options=options))
