"""Command lines that tests run in this process, and a list of all of them.

A test module declares each line once, at its top level, so that `test_every_option.py` can read
all lines without running any, and name the options that no line has.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import slidelake

Output = pytest.CaptureFixture[str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        """The JSON object that `--json` prints last."""
        value: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return value


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """A command line as a user types it after `slidelake`; {names} stand for places of a test."""

    text: str

    def words(self, places: Mapping[str, object]) -> list[str]:
        """The words of the line, with the places put in."""
        return [word.format_map(places) for word in shlex.split(self.text)]

    def run(self, output: Output, places: Mapping[str, object], *, code: int = 0) -> Answer:
        """Run the line in this process, and check its exit code."""
        return run_words(output, self.words(places), code=code)


def run_words(output: Output, words: list[str], *, code: int = 0) -> Answer:
    """Run `slidelake` with some words in this process, and check its exit code."""
    output.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["slidelake", *words])
        patch.setenv("SLIDELAKE_DEBUG", "")
        with pytest.raises(SystemExit) as ended:
            slidelake.main()
    printed = output.readouterr()
    answer = Answer(code=int(ended.value.code or 0), out=printed.out, err=printed.err)
    assert answer.code == code, f"slidelake {shlex.join(words)}\n{answer.out}\n{answer.err}"
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
