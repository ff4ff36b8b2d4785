"""The jobs of a Ray cluster, through its dashboard: sent, listed, followed, stopped.

Ray's own errors on the way (of four libraries) become one line with the remedy.
"""

import asyncio
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.environment import patched_environ
from cluster.errors import ClusterError, ClusterLostError
from cluster.job_package import write_package
from cluster.job_record import JobRecord
from cluster.ray_faults import while_it_answers
from cluster.ray_token import auth_headers, check_address

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 130
#: Key of a job's metadata with the words after `slidelake`.
COMMAND = "slidelake_command"

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_S = 0.3
_STOP_S = 30.0
_NODES_S = 3.0
_TIMEOUT_S = 15.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_GB = 10**9


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A command that is to run as a job.

    Attributes:
        words: program and arguments.
        command: words after `slidelake`, for lists of jobs.
        id: id of the job; None for one of Ray's.
        files: path in the job's working directory -> file or folder that travels with it.
        cpus: cores that the command itself reserves, beside its workers; the job then runs on any
            node that has them. None: it runs on the head, and reserves nothing.
        memory_gb: memory that the command itself reserves, likewise.

    Raises:
        ClusterError: the id or a number is not valid.
    """

    words: tuple[str, ...]
    command: str
    id: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    cpus: float | None = None
    memory_gb: float | None = None

    @property
    def entrypoint(self) -> str:
        """Return the shell command line that Ray runs."""
        return shlex.join(self.words)

    def __post_init__(self) -> None:
        """Check what a user gave."""
        if self.id is not None and not _ID.fullmatch(self.id):
            msg = (
                f"id {self.id!r} given; give up to 100 letters, digits, '_', '.' and '-', as in "
                "extract-uni2"
            )
            raise ClusterError(msg)
        for name, number in (("cores", self.cpus), ("GB of memory", self.memory_gb)):
            if number is not None and not 0 < number < float("inf"):
                msg = f"{number:g} {name} given for the job's own command; give more than 0"
                raise ClusterError(msg)


@dataclass(frozen=True, kw_only=True)
class JobServer:
    """The dashboard of a Ray cluster, which takes jobs.

    Attributes:
        address: its address, as `http://127.0.0.1:8265`.
        headers: HTTP headers with the token; empty without one.
    """

    address: str
    headers: Mapping[str, str]

    @cached_property
    def _client(self) -> Any:  # noqa: ANN401 - ray is untyped
        from ray.job_submission import JobSubmissionClient

        # Ray lets these two override the address it is given; ours was chosen already.
        with patched_environ(dict.fromkeys(_ADDRESS_VARIABLES)):
            return JobSubmissionClient(self.address, headers=dict(self.headers))

    def send(self, request: JobRequest) -> str:
        """Send a job, with its files, and return its id.

        Raises:
            ClusterError: nobody answers, the token is refused, the id is taken, or files can't
                travel.
        """
        with tempfile.TemporaryDirectory(prefix="slidelake-") as folder:
            runtime_env: dict[str, Any] = {}
            if request.files:
                archive = Path(folder, "files.zip")
                write_package(request.files, archive)
                runtime_env["working_dir"] = str(archive)
            with self._clear_errors():
                job: str = self._client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=request.id,
                    runtime_env=runtime_env,
                    metadata={COMMAND: request.command},
                    entrypoint_num_cpus=request.cpus,
                    entrypoint_memory=request.memory_gb and int(request.memory_gb * _GB),
                )
        return job

    def jobs(self) -> list[JobRecord]:
        """Return all jobs that were sent to the cluster since it was started.

        Raises:
            ClusterError: nobody answers, or the token is refused.
        """
        with self._clear_errors():
            return [_record(job) for job in self._client.list_jobs() if job.submission_id]

    def job(self, job: str) -> JobRecord:
        """Return a job.

        Raises:
            ClusterError: there is no such job; the message names those that there are.
        """
        with self._clear_errors(job=job):
            return _record(self._client.get_job_info(job))

    def log(self, job: str) -> str:
        """Return all that a job has printed so far.

        Raises:
            ClusterError: there is no such job, or its log can't be read.
        """
        with self._clear_errors(job=job):
            text: str = self._client.get_job_logs(job)
            return text

    def follow(self, job: str, on_line: Callable[[str], None]) -> JobRecord:
        """Pass on what a job prints until it ends, and return its last record.

        Raises:
            ClusterError: there is no such job.
            ClusterLostError: the connection was lost.
        """
        with self._clear_errors(job=job):
            asyncio.run(self._pass_on_lines(job, on_line))
        while not (record := self.job(job)).has_ended:
            time.sleep(_POLL_S)  # the log can end a moment before the record
        return record

    def stop(self, job: str) -> bool:
        """Stop a job, and wait for its end; return False if it had ended before.

        Raises:
            ClusterError: there is no such job, or it runs on after 30 s.
        """
        if self.job(job).has_ended:
            return False
        with self._clear_errors(job=job):
            self._client.stop_job(job)
        end = time.monotonic() + _STOP_S
        while time.monotonic() < end:
            if self.job(job).has_ended:
                return True
            time.sleep(_POLL_S)
        msg = f"{job} was told to stop, and still runs after {_STOP_S:.0f} s; look again later"
        raise ClusterError(msg)

    def is_this_machine(self) -> bool:
        """Return whether the cluster is this one machine, so that each path is a path there too.

        By its host name, and by its nodes' addresses, each of which has to be one of ours: a
        forwarded port of another machine has a loopback address as well.
        """
        end = time.monotonic() + _NODES_S
        while not (names := self._names_of_hosts()) and time.monotonic() < end:
            time.sleep(_POLL_S)  # a dashboard that has just been started
        return names == {socket.gethostname()} and all(map(_is_own, self._addresses_of_nodes()))

    def log_command(self, job: str) -> str:
        """Return the command that follows a job from now on."""
        return f"slidelake jobs logs {job} --follow{self._address_option}"

    def stop_command(self, job: str) -> str:
        """Return the command that stops a job."""
        return f"slidelake jobs stop {job}{self._address_option}"

    @property
    def _address_option(self) -> str:
        return "" if self.address == _address_of(None) else f" --address {self.address}"

    def _answer(self, path: str) -> Any:  # noqa: ANN401 - JSON
        import requests

        with self._clear_errors():
            reply = requests.get(
                f"{self.address}{path}", headers=dict(self.headers), timeout=_TIMEOUT_S
            )
            reply.raise_for_status()
            return reply.json()["data"]

    def _names_of_hosts(self) -> set[str]:
        return set(self._answer("/nodes?view=hostNameList").get("hostNameList", []))

    def _addresses_of_nodes(self) -> list[str]:
        nodes = self._answer("/api/v0/nodes")["result"]["result"]
        return [node["node_ip"] for node in nodes if node["state"] == "ALIVE"]

    async def _pass_on_lines(self, job: str, on_line: Callable[[str], None]) -> None:
        """Cut the chunks that Ray sends into lines; the last may have no end."""
        rest = ""
        async for chunk in while_it_answers(self._chunks(job), self.address):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                on_line(line)
        if rest:
            on_line(rest)

    async def _chunks(self, job: str) -> AsyncIterator[str]:
        """Yield the text that Ray sends, without aiohttp's warning on a call of Ray 2.60."""
        chunks = self._client.tail_job_logs(job)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="ssl=None is deprecated")
            first = await anext(chunks, "")
        yield first
        async for chunk in chunks:
            yield chunk

    @contextmanager
    def _clear_errors(self, job: str = "") -> Iterator[None]:
        """Turn errors of Ray, requests and aiohttp into one line with the remedy."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            yield
        except AuthenticationError as err:
            refusal = "refuses our token" if self.headers else "wants a token, and none was found"
            msg = (
                f"the cluster at {self.address} {refusal}; set RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH to a file with it (`ray get-auth-token` on the head node "
                "prints it)"
            )
            raise ClusterError(msg) from err
        except (OSError, ClientError, RequestException, RuntimeError) as err:
            raise self._clear_error(err, job) from err

    def _clear_error(self, err: Exception, job: str) -> ClusterError:
        from requests.exceptions import RequestException

        if "does not exist" in str(err) and "status code 404" in str(err):
            known = ", ".join(record.id for record in self.jobs()[-5:]) or "none"
            msg = f"the cluster at {self.address} has no job {job!r}; it has: {known}"
            return ClusterError(msg)
        if "already exists" in str(err):
            msg = (
                f"the cluster at {self.address} has a job of this id already; give another --id, "
                "or see `slidelake jobs`"
            )
            return ClusterError(msg)
        if job:
            msg = (
                f"lost sight of {job}, which goes on unless the head was lost, where it runs: see "
                f"it with `{self.log_command(job)}`; if it is gone, the same command goes on "
                f"({err})"
            )
            return ClusterLostError(msg)
        if isinstance(err, (OSError, RequestException)):
            msg = (
                f"no Ray dashboard answers at {self.address}; start one (`ray start --head`), "
                "forward its port (`kubectl port-forward svc/slidelake-head-svc 8265:8265`), or "
                f"give --address ({err})"
            )
            return ClusterError(msg)
        return ClusterError(f"the cluster at {self.address} did not take the job: {err}")


def job_server(address: str | None = None) -> JobServer:
    """Return the job server at an address; nothing is sent to it yet.

    Args:
        address: the cluster's dashboard, `http://HOST:8265`; else RAY_API_SERVER_ADDRESS, else
            RAY_ADDRESS if it is an HTTP one, else http://127.0.0.1:8265.

    Raises:
        ClusterError: the address is none, or is not safe to use.
    """
    target, headers = _address_of(address), auth_headers()
    check_address(target, has_token=bool(headers))
    return JobServer(address=target, headers=headers)


def exit_code(record: JobRecord) -> int:
    """Return the exit code for an ended job; say why, where only Ray has the reason."""
    if record.state == "succeeded":
        return 0
    if record.exit_code is None or record.exit_code <= 0:
        # It never ran, was stopped, or a signal ended it.
        print_job_note(f"{record.id} {record.state}: {record.message}")
        return 1
    return record.exit_code


def print_job_note(text: str) -> None:
    """Print a line about the sending of a job, beside what the job prints."""
    print(f"submit: {text}", file=sys.stderr, flush=True)


def _address_of(address: str | None) -> str:
    if address:
        return _with_scheme(address)
    for name in _ADDRESS_VARIABLES:
        address_text = os.environ.get(name, "")
        if address_text.startswith(("http://", "https://")):
            return _with_scheme(address_text)
    return DEFAULT_ADDRESS


def _with_scheme(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _record(info: Any) -> JobRecord:  # noqa: ANN401 - ray is untyped
    # Ray names a job of its own interface by this id; other drivers have none and are left out.
    return JobRecord(
        id=info.submission_id,
        state=str(getattr(info.status, "value", info.status)).lower(),
        command=(info.metadata or {}).get(COMMAND, info.entrypoint),
        started=(info.start_time or 0) / 1000,
        ended=info.end_time and info.end_time / 1000,
        exit_code=info.driver_exit_code,
        message=" ".join((info.message or "").split()),
    )


def _is_own(address: str) -> bool:
    """Return whether an address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
