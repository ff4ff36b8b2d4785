"""Run a slidelake command as a Ray job, print its output, and return its exit code.

Nothing is uploaded: the cluster's image has slidelake in it, and a job sends one command line and
no environment, so that no secret of the laptop's ends up in the cluster's job table.
"""

import asyncio
import os
import shlex
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.environment import patched_environ
from cluster.errors import ClusterError, ClusterLostError
from cluster.ray_faults import while_it_answers
from cluster.ray_token import auth_headers, check_address

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 130

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_S = 0.3


def submit(
    args: Sequence[str],
    *,
    address: str | None = None,
    follow: bool = True,
    on_line: Callable[[str], None] = print,
    program: Sequence[str] = ("python", "-m", "slidelake"),
) -> int:
    """Run `slidelake <args>` on a cluster.

    The token, if any, is looked up as Ray does it: see `cluster.ray_token.auth_headers`.

    Args:
        args: the command's arguments, as `["info", "s3://bucket/lake"]`.
        address: the cluster's dashboard, `http://HOST:8265`; else RAY_API_SERVER_ADDRESS, else
            RAY_ADDRESS if it is an HTTP one, else http://127.0.0.1:8265.
        follow: wait for the job, passing on what it prints. False returns when it is accepted.
        on_line: called with each line that the job prints (its stdout and stderr, mixed), without
            the line's end; with `follow=False` with the job's id alone.
        program: program and first arguments on the cluster, before `args`.

    Returns:
        The job's exit code: 0 on success, its own code if it has one, else 1; with
        `follow=False` 0. 130 after Ctrl-C, which stops the following and not the job.

    Raises:
        ClusterError: no arguments; an address that is none or is not safe to use; nobody answers
            there; the token is missing or wrong.
        ClusterLostError: the connection was lost while following.
    """
    if not args:
        msg = "nothing to submit; give a command, as in `slidelake submit -- info s3://bucket/lake`"
        raise ClusterError(msg)
    target = _resolve_address(address)
    headers = auth_headers()
    check_address(target, has_token=bool(headers))
    with _clear_errors(target, has_token=bool(headers)):
        client = _client(target, headers)
        job: str = client.submit_job(entrypoint=_entrypoint(program, args))
    if not follow:
        on_line(job)
        _print_note(f"{job} was submitted to {target}; {_log_command(job, target)}")
        return 0
    _print_note(f"{job} runs at {target}; Ctrl-C stops following it, not the job")
    return _followed_job(client, job, target, on_line)


def _entrypoint(program: Sequence[str], args: Sequence[str]) -> str:
    """Return the shell command line that Ray runs on the head node."""
    return shlex.join([*program, *args])


def _resolve_address(address: str | None) -> str:
    if address:
        return _with_scheme(address)
    for name in _ADDRESS_VARIABLES:
        address_text = os.environ.get(name, "")
        if address_text.startswith(("http://", "https://")):
            return _with_scheme(address_text)
    return DEFAULT_ADDRESS


def _with_scheme(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _client(address: str, headers: dict[str, str]) -> Any:  # noqa: ANN401 - ray is untyped
    from ray.job_submission import JobSubmissionClient

    # Ray lets these two override the address it is given; ours was chosen already.
    with patched_environ(dict.fromkeys(_ADDRESS_VARIABLES)):
        return JobSubmissionClient(address, headers=dict(headers))


def _followed_job(client: Any, job: str, address: str, on_line: Callable[[str], None]) -> int:  # noqa: ANN401
    try:
        with _clear_errors(address, has_token=True, job=job):
            asyncio.run(_pass_on_lines(client, job, address, on_line))
            return _exit_code(_ended_job(client, job))
    except KeyboardInterrupt:
        _print_note(f"stopped following; {job} goes on: {_log_command(job, address)}")
        return INTERRUPTED


async def _pass_on_lines(
    client: Any,  # noqa: ANN401
    job: str,
    address: str,
    on_line: Callable[[str], None],
) -> None:
    """Cut the chunks that Ray sends into lines; the last may have no end."""
    rest = ""
    async for chunk in while_it_answers(_chunks(client, job), address):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            on_line(line)
    if rest:
        on_line(rest)


async def _chunks(client: Any, job: str) -> AsyncIterator[str]:  # noqa: ANN401
    """Yield the text that Ray sends, without aiohttp's warning on a call of Ray 2.60 (ssl=None)."""
    chunks = client.tail_job_logs(job)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="ssl=None is deprecated")
        first = await anext(chunks, "")
    yield first
    async for chunk in chunks:
        yield chunk


def _ended_job(client: Any, job: str) -> Any:  # noqa: ANN401
    """Return the job's record once it has ended; the log can end a moment before the record."""
    while not (info := client.get_job_info(job)).status.is_terminal():
        time.sleep(_POLL_S)
    return info


def _exit_code(info: Any) -> int:  # noqa: ANN401
    if info.status == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if code is None or code <= 0:
        # It never ran, was stopped, or a signal ended it: only Ray has the reason.
        _print_note(f"{info.submission_id} {str(info.status).lower()}: {info.message}")
        return 1
    return int(code)


@contextmanager
def _clear_errors(address: str, *, has_token: bool, job: str = "") -> Iterator[None]:
    """Turn errors of Ray, requests and aiohttp into one line with the remedy."""
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as err:
        refusal = "refuses our token" if has_token else "wants a token, and none was found"
        msg = (
            f"the cluster at {address} {refusal}; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a "
            "file with it (`ray get-auth-token` on the head node prints it)"
        )
        raise ClusterError(msg) from err
    except (OSError, ClientError, RequestException, RuntimeError) as err:
        if job:
            msg = (
                f"lost sight of {job}, which goes on unless the head was lost, where it runs: "
                f"{_log_command(job, address)}; if it is gone, the same command goes on ({err})"
            )
            raise ClusterLostError(msg) from err
        if isinstance(err, (OSError, RequestException)):
            msg = (
                f"no Ray dashboard answers at {address}; start one (`ray start --head`), forward "
                "its port (`kubectl port-forward svc/slidelake-head-svc 8265:8265`), or give "
                f"--address ({err})"
            )
        else:
            msg = f"the cluster at {address} did not take the job: {err}"
        raise ClusterError(msg) from err


def _log_command(job: str, address: str) -> str:
    return f"see it with `ray job logs --address {address} --follow {job}`"


def _print_note(text: str) -> None:
    print(f"submit: {text}", file=sys.stderr, flush=True)
