"""Command lines that tests run in this process, and a list of all of them.

A test module declares each line once, at its top level, so that `test_every_option.py` can read
all lines without running any, and name the options that no line has.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

import slidelake

Output = pytest.CaptureFixture[str]


class Slidelake(Protocol):
    """Runs the words after `slidelake`; a code of None allows any."""

    def __call__(self, *words: object, code: int | None = 0) -> "Answer":
        """Run them, and check the exit code."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The output of a command, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def value(self) -> dict[str, Any]:
        """The JSON object that `--json` prints last."""
        value: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return value


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line as a user types it after `slidelake`; {names} stand for places of a test."""

    text: str

    def words(self, places: Mapping[str, object]) -> list[str]:
        """The words of the line, with the places put in."""
        return [word.format_map(places) for word in shlex.split(self.text)]

    def run(self, output: Output, places: Mapping[str, object], *, code: int | None = 0) -> Answer:
        """Run the line in this process, and check its exit code."""
        return run_words(output, self.words(places), code=code)


def run_words(output: Output, words: list[str], *, code: int | None = 0) -> Answer:
    """Run `slidelake` with some words in this process, and check its exit code, if one is given.

    A line with --quiet that succeeds prints one line and nothing else.
    """
    output.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["slidelake", *words])
        patch.setenv("SLIDELAKE_DEBUG", "")
        patch.setenv("SLIDELAKE_METRICS_PORT", "")
        patch.delenv("SLIDELAKE_PROGRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            slidelake.main()
    printed = output.readouterr()
    answer = Answer(code=int(ended.value.code or 0), stdout=printed.out, stderr=printed.err)
    assert code in (None, answer.code), (
        f"slidelake {shlex.join(words)}\n{answer.stdout}\n{answer.stderr}"
    )
    if "--quiet" in words and answer.code == 0:
        assert (answer.stderr, answer.stdout.count("\n")) == ("", 1), shlex.join(words)
    return answer


#: Every line that some module of tests has declared.
COMMAND_LINES: list[CommandLine] = []


def command_line(text: str) -> CommandLine:
    """Declare a line that a test of the default suite runs."""
    line = CommandLine(text=text)
    COMMAND_LINES.append(line)
    return line


class Places(dict[str, object]):
    """Names in a line -> paths and values, each made when a line first needs it."""

    def __init__(self, makers: Mapping[str, Callable[[], object]]) -> None:
        super().__init__()
        self.makers = makers

    def __missing__(self, name: str) -> object:
        """Make the place."""
        self[name] = self.makers[name]()
        return self[name]
