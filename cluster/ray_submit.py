"""Run a slidelake command as a Ray job, print its output, and return its exit code.

The cluster's image has slidelake in it. A job sends one command line, and those small files that
it names; no environment, so that no secret of the laptop's ends up in the cluster's job table.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job_outputs import OutputLines
from cluster.ray_jobs import (
    INTERRUPTED,
    JobRequest,
    JobServer,
    exit_code,
    job_server,
    print_job_note,
)

#: Program that the cluster's image runs.
PROGRAM = ("python", "-m", "slidelake")

_WITH_OUTPUTS = ("python", "-m", "cluster.job_runner")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of a job, beside its command line.

    Attributes:
        id: id of the job; None for one of Ray's.
        files: path in the job's working directory -> file or folder that travels with it.
        outputs: path in the job's working directory of what the command writes -> place on this
            machine.
        cpus: cores that the command itself reserves, beside its workers; see `JobRequest`.
        memory_gb: memory that the command itself reserves.
    """

    id: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    cpus: float | None = None
    memory_gb: float | None = None


def submit(
    args: Sequence[str],
    *,
    address: str | None = None,
    follow: bool = True,
    on_line: Callable[[str], None] = print,
    program: Sequence[str] = PROGRAM,
    options: JobOptions = JobOptions(),
) -> int:
    """Run `slidelake <args>` on a cluster.

    The token, if any, is looked up as Ray does it: see `cluster.ray_token.auth_headers`.

    Args:
        args: the command's arguments, as `["info", "s3://bucket/lake"]`, as they are right there.
        address: the cluster's dashboard, `http://HOST:8265`; else RAY_API_SERVER_ADDRESS, else
            RAY_ADDRESS if it is an HTTP one, else http://127.0.0.1:8265.
        follow: wait for the job, passing on what it prints. False returns when it is accepted.
        on_line: called with each line that the job prints (its stdout and stderr, mixed), without
            the line's end; with `follow=False` with the job's id alone.
        program: program and first arguments on the cluster, before `args`.
        options: id, files, outputs, and what the command itself reserves.

    Returns:
        The job's exit code: 0 on success, its own code if it has one, else 1; with
        `follow=False` 0. 130 after Ctrl-C, which stops the following and not the job.

    Raises:
        ClusterError: no arguments; an address that is none or is not safe to use; nobody answers
            there; the token is missing or wrong; the id is taken; files that are too large to
            travel.
        ClusterLostError: the connection was lost while following.
    """
    if not args:
        msg = "nothing to submit; give a command, as in `slidelake submit -- info s3://bucket/lake`"
        raise ClusterError(msg)
    words = [*program, *args]
    if options.outputs:
        words = [*_WITH_OUTPUTS, *options.outputs, "--", *words]
    request = JobRequest(
        words=tuple(words),
        command=shlex.join(args),
        id=options.id,
        files=options.files,
        cpus=options.cpus,
        memory_gb=options.memory_gb,
    )
    server = job_server(address)
    job = server.send(request)
    if not follow:
        on_line(job)
        _print_sent(server, job)
        return 0
    print_job_note(f"{job} runs at {server.address}; Ctrl-C stops following it, not the job")
    return followed(server, job, OutputLines(options.outputs), on_line)


def followed(
    server: JobServer, job: str, outputs: OutputLines, on_line: Callable[[str], None]
) -> int:
    """Pass on what a job prints until it ends, write its outputs, and return its exit code."""
    try:
        record = server.follow(job, lambda line: None if outputs.takes(line) else on_line(line))
    except KeyboardInterrupt:
        print_job_note(
            f"stopped following; {job} goes on. Follow it with `{server.log_command(job)}`, stop "
            f"it with `{server.stop_command(job)}`"
        )
        return INTERRUPTED
    print_outputs(outputs)
    return exit_code(record)


def print_outputs(outputs: OutputLines) -> None:
    """Say which outputs of a job were written, and which are in its log still."""
    for path in outputs.written:
        print_job_note(f"{path} was written, from the job")
    for name in outputs.left:
        print_job_note(f"the job has written {name}; --to DIR writes it here")


def _print_sent(server: JobServer, job: str) -> None:
    print_job_note(
        f"{job} was submitted to {server.address}; follow it with `{server.log_command(job)}`, "
        f"stop it with `{server.stop_command(job)}`"
    )
