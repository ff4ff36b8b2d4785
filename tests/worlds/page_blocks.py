"""Fenced blocks of a page of the docs, and the comparison of its output with what was printed."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language and its text."""

    kind: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in their order."""
    for kind, text in FENCE.findall(page.read_text()):
        yield Block(kind=kind, text=text)


def command_lines_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command line of a block of shell; a backslash joins lines."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def lines_not_printed(expected: str, printed: str) -> list[str]:
    """Return the lines of a page's output that a command did not print.

    `…` stands for anything. Numbers may differ by 2 %, as features do between machines.
    """
    lines = printed.splitlines()
    return [
        line
        for line in expected.splitlines()
        if line.strip("… ") and not any(_is_like(line, other) for other in lines)
    ]


def _is_like(expected: str, printed: str) -> bool:
    pieces = [NUMBER.sub("\0", piece) for piece in expected.split("…")]
    pattern = ".*".join(
        re.escape(piece).replace(re.escape("\0"), f"({NUMBER.pattern})") for piece in pieces
    )
    match = re.fullmatch(pattern.replace(r"\ ", r"\s*"), printed.rstrip())
    if match is None:
        return False
    numbers = NUMBER.findall(expected)
    return all(
        abs(_value(number) - _value(other)) <= TOLERANCE * abs(_value(number))
        for number, other in zip(numbers, match.groups(), strict=True)
    )


def _value(text: str) -> float:
    return float(text.replace(",", ""))
