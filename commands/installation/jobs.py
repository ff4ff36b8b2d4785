"""`slidelake jobs`: the jobs of a cluster, listed, followed and stopped."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from commands.options.dataclass_options import command
from commands.options.path_kind import PathKind
from commands.options.printing import print_answer
from commands.options.shared_options import JsonOpt

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class JobsOptions:
    """Options of `slidelake jobs`.

    Attributes:
        action: list all jobs, print the logs of one, or stop one.
        job: Id of a job.
        address: The cluster's job server.
        follow: Follow the job until it ends, and end with its exit code.
        to: Folder for files that the job's command wrote (--out).
    """

    action: Annotated[
        Literal["list", "logs", "stop"], typer.Argument(metavar="[list|logs|stop]")
    ] = "list"
    job: Annotated[str | None, typer.Argument(metavar="[ID]")] = None
    address: str | None = None
    follow: Annotated[bool, typer.Option("--follow")] = False
    to: Annotated[Path | None, typer.Option(metavar="DIR"), PathKind.OUTPUT] = None
    json: JsonOpt = False


@command(app, "jobs", without_pandas=True)
def jobs_command(options: JobsOptions) -> None:
    """List the jobs of a Ray cluster, print what one has printed, or stop one.

    Examples: slidelake jobs
    or: slidelake jobs logs ID --follow
    or: slidelake jobs stop ID

    A job that is stopped leaves what it has committed, and the same command goes on with it. The
    list has the jobs since the cluster was started.
    """
    if options.action == "list":
        _print_list(options)
    elif options.job is None:
        msg = f"give the id of a job, as in: slidelake jobs {options.action} ID"
        raise typer.BadParameter(msg)
    elif options.action == "logs":
        _print_log(options, options.job)
    else:
        _stop(options, options.job)


def _print_list(options: JobsOptions) -> None:
    from cluster.job_record import job_table
    from cluster.ray_jobs import job_server

    jobs = sorted(job_server(options.address).jobs(), key=lambda job: job.started, reverse=True)
    if options.job is not None:
        jobs = [job for job in jobs if job.id == options.job]
    answer = [{**asdict(job), "seconds": round(job.seconds, 1)} for job in jobs]
    text = job_table(jobs) if jobs else "no jobs"
    print_answer({"jobs": answer}, as_json=options.json, text=text)


def _print_log(options: JobsOptions, job: str) -> None:
    from cluster.job_outputs import OutputLines
    from cluster.ray_jobs import job_server
    from cluster.ray_submit import followed, print_outputs

    server = job_server(options.address)
    outputs = OutputLines({}, options.to)
    lines: list[str] = []
    print_line = lines.append if options.json else typer.echo
    if options.follow:
        code = followed(server, job, outputs, print_line)
    else:
        for line in server.log(job).splitlines():
            if not outputs.takes(line):
                print_line(line)
        print_outputs(outputs)
        code = 0
    if options.json:
        written = [str(path) for path in outputs.written]
        answer = {**asdict(server.job(job)), "lines": lines, "written": written}
        print_answer(answer, as_json=True, text="")
    raise typer.Exit(code)


def _stop(options: JobsOptions, job: str) -> None:
    from cluster.ray_jobs import job_server

    server = job_server(options.address)
    stopped = server.stop(job)
    record = server.job(job)
    text = f"{job} was stopped" if stopped else f"{job} had ended before: {record.state}"
    print_answer({**asdict(record), "stopped": stopped}, as_json=options.json, text=text)
