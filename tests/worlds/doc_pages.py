"""Pages of docs run as they stand: files are written, command lines and Python are run, in order.

A fenced block with a title (`python title="my_score.py"`) is a file, `sh` holds command lines, and
`python` is run with the names of the blocks before it. Other blocks are only shown.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.worlds.command_lines import Answer

FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page: its kind, the file that it is (or ""), its text and its line."""

    kind: str
    title: str
    code: str
    line: int


@dataclass(frozen=True, kw_only=True)
class PageRun:
    """What a page left: the names of its Python, and the answers of its command lines in order."""

    names: dict[str, Any]
    answers: list[Answer]


def blocks_of(page: Path, replaced: Mapping[str, str] | None = None) -> list[Block]:
    """Return the fenced blocks of a page, with some texts replaced by others."""
    text = page.read_text()
    blocks = []
    for match in FENCE.finditer(text):
        code = match[3]
        for old, new in (replaced or {}).items():
            code = code.replace(old, new)
        line = text.count("\n", 0, match.start()) + 1
        blocks.append(Block(kind=match[1], title=match[2] or "", code=code, line=line))
    return blocks


def run_page(
    page: Path,
    folder: Path,
    run: Callable[[list[str]], Answer],
    replaced: Mapping[str, str] | None = None,
    *,
    scripts: bool = True,
) -> PageRun:
    """Run a page in a folder, which is the one that is worked in.

    Args:
        page: the page.
        folder: folder for the files of the page.
        run: function that runs the words after `slidelake`.
        replaced: texts of the page that stand for places of a test.
        scripts: whether lines that start with `python` are run, in processes of their own.
    """
    names: dict[str, Any] = {"__name__": "__page__"}
    answers: list[Answer] = []
    for block in blocks_of(page, replaced):
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.kind == "python":
            # empty lines before it, so that an error names the line of the page
            code = "\n" * block.line + block.code
            exec(compile(code, page.name, "exec"), names)
        elif block.kind == "sh":
            for line in block.code.splitlines():
                program, *words = shlex.split(line, comments=True)
                if program == "slidelake":
                    answers.append(run(words))
                elif scripts:
                    answers.append(script(words, folder))
    return PageRun(names=names, answers=answers)


def script(words: list[str], folder: Path) -> Answer:
    """Run a Python file of a page in a process of its own, and check that it ends well."""
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"python {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return Answer(code=0, stdout=done.stdout, stderr=done.stderr)
