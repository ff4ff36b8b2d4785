"""Every command runs in the default suite, and every option of it is given there at least once.

Lines are read, not run: each is declared by `command_line` at the top of the test module that runs
it and looks at what its options change.
"""

import importlib
import re
from pathlib import Path
from typing import cast

import pytest
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import slidelake
from tests.conftest import ROOT
from tests.worlds.command_lines import COMMAND_LINES

#: Modules with this text declare command lines.
DECLARES = "command_line("

APP = cast("TyperGroup", typer.main.get_command(slidelake.app))
COMMANDS = cast("dict[str, TyperCommand]", APP.commands)


class _AnyPlace(dict[str, object]):
    """A path for every place of a line."""

    def __missing__(self, name: str) -> object:
        return f"/{name}"


def options_of(command: TyperCommand | TyperGroup) -> dict[str, str]:
    """Return a command's options: parameter's name -> the longest way to write it."""
    return {
        str(parameter.name): max(parameter.opts, key=len)
        for parameter in command.params
        if isinstance(parameter, TyperOption) and parameter.name != "help"
    }


def given_options(command: TyperCommand | TyperGroup, words: list[str]) -> tuple[set[str], str]:
    """Return the options in a command line, and the first word that is no option."""
    context = command.make_context(command.name or "", list(words), resilient_parsing=True)
    names = {
        option
        for name, option in options_of(command).items()
        if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    }
    rest = [*context._protected_args, *context.args]
    return names, rest[0] if rest else ""


def declaring_modules() -> list[Path]:
    """Test modules that declare command lines."""
    paths = sorted(Path(__file__).parents[1].rglob("test_*.py"))
    return [path for path in paths if DECLARES in path.read_text() and path != Path(__file__)]


@pytest.fixture(scope="module")
def options_of_lines() -> dict[str, set[str]]:
    """Command -> the options that some line gives it; "" stands for `slidelake` itself."""
    for path in declaring_modules():
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    options_by_command: dict[str, set[str]] = {}
    for line in COMMAND_LINES:
        words = line.words(_AnyPlace())
        options, name = given_options(APP, words)
        options_by_command.setdefault("", set()).update(options)
        if not name:  # as `slidelake --version`
            continue
        after = words[words.index(name) + 1 :]
        options_by_command.setdefault(name, set()).update(given_options(COMMANDS[name], after)[0])
    return options_by_command


def test_every_command_and_every_option_is_run(options_of_lines: dict[str, set[str]]) -> None:
    commands: dict[str, TyperCommand | TyperGroup] = {"": APP, **COMMANDS}
    missing = [f"slidelake {name}" for name in commands if name not in options_of_lines]
    missing += [
        f"slidelake {name} {option}"
        for name, command in commands.items()
        if name in options_of_lines
        for option in sorted(set(options_of(command).values()) - options_of_lines[name])
    ]
    assert missing == [], (
        f"run by no test: {', '.join(missing)}; declare a line with each by `command_line` in a "
        "test module (tests/test_options_*.py), run it, and check what the option changes"
    )


@pytest.mark.parametrize("path", declaring_modules(), ids=lambda path: path.stem)
def test_each_declared_line_is_run(path: Path) -> None:
    text = path.read_text()
    names = re.findall(r"^(\w+) = \[?command_line\(", text, re.MULTILINE)
    assert [name for name in names if len(re.findall(rf"\b{name}\b", text)) < 2] == []


def test_a_command_or_option_without_a_line_is_named(options_of_lines: dict[str, set[str]]) -> None:
    """The reading itself: options by any name, flags, and what stands before the command."""
    assert given_options(APP, ["--debug", "info", "x"]) == ({"--debug"}, "info")
    info, search, vacuum = (COMMANDS[name] for name in ("info", "search", "vacuum"))
    assert given_options(info, ["lake"])[0] == set()
    assert given_options(info, ["lake", "--at", "3"])[0] == {"--at"}
    assert given_options(search, ["lake", "-k", "3", "--exact"])[0] == {"-k", "--exact"}
    assert given_options(vacuum, ["lake", "--no-dry-run"])[0] == {"--dry-run"}
