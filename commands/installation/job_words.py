"""A command line as a job runs it: checked against the command's options, its paths replaced."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from commands.installation.job_paths import JobPaths
from commands.options.command_paths import field_path_kinds, path_kinds
from commands.options.path_kind import PathKind

#: Options before the command that are paths, as `--extend FILE`.
_GROUP_KINDS = {"extensions": PathKind.FILES}
#: Commands that talk to a cluster themselves.
_NO_JOBS = ("submit", "jobs", "demo")


@dataclass(frozen=True, kw_only=True)
class ValuePlace:
    """The place of an option's or argument's value in a command line.

    Attributes:
        name: name of the parameter.
        index: position of the word.
        start: position of the value in the word, after `--option=`.
    """

    name: str
    index: int
    start: int


def job_words(app: TyperGroup, words: Sequence[str], paths: JobPaths) -> list[str]:
    """Return the words of a command as a job needs them; `paths` collects what travels.

    Args:
        app: the group of all commands.
        words: the command line, after `slidelake`.
        paths: collector of files and outputs.

    Raises:
        BadParameter: a job can't run this command.
        ClusterError: a path can't travel.
        TyperException: there is no such command or option, or a value is wrong.
    """
    outer = app.make_context("slidelake", list(words), resilient_parsing=True)
    rest = [*outer._protected_args, *outer.args]
    head = list(words[: len(words) - len(rest)])
    if not rest:
        return head  # as `--version`
    if rest[0] in _NO_JOBS:
        msg = f"`slidelake {rest[0]}` is no job for a cluster; run it without submit"
        raise typer.BadParameter(msg)
    outer.resilient_parsing = False  # an unknown command is an error
    name, command, after = app.resolve_command(outer, rest)
    assert command is not None
    command.make_context(name, list(after), parent=outer)  # a mistake ends here, not in the job
    callback: Any = command.callback
    kinds = path_kinds(callback.options_type)
    fields = field_path_kinds(callback.options_type)
    replaced = _replaced(app, head, _GROUP_KINDS, {}, paths)
    tail = _replaced(cast("TyperCommand", command), after, kinds, fields, paths)
    return [*replaced, rest[0], *tail]


def _replaced(
    command: TyperCommand | TyperGroup,
    words: Sequence[str],
    kinds: Mapping[str, PathKind],
    fields: Mapping[str, PathKind],
    paths: JobPaths,
) -> list[str]:
    """Return words with each path replaced; outputs with a default count where none is given."""
    replaced, seen = list(words), set()
    for place in value_places(command, words):
        seen.add(place.name)
        if (kind := kinds.get(place.name)) is None:
            continue
        word = replaced[place.index]
        value = word[place.start :]
        if kind is PathKind.SETTING:
            path, equals, text = value.partition("=")
            field_kind = fields.get(path.strip())
            moved = value
            if field_kind is not None:
                moved = f"{path}{equals}{paths.in_job(text.strip(), field_kind)}"
        else:
            moved = paths.in_job(value, kind)
        replaced[place.index] = word[: place.start] + moved
    for parameter in command.params:
        name = str(parameter.name)
        default = parameter.default
        if kinds.get(name) is PathKind.OUTPUT and name not in seen and isinstance(default, str):
            replaced = [max(parameter.opts, key=len), paths.in_job(default, PathKind.OUTPUT)]
            replaced += list(words)
    return replaced


def value_places(command: TyperCommand | TyperGroup, words: Sequence[str]) -> Iterator[ValuePlace]:
    """Yield the place of each value in the words after a command's name, as the parser reads them.

    Args:
        command: the command.
        words: its options and arguments, known to be valid.
    """
    options = {
        flag: parameter
        for parameter in command.params
        if isinstance(parameter, TyperOption)
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    loose: list[int] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            loose += range(index + 1, len(words))
            break
        flag, equals, _ = word.partition("=")
        short = not word.startswith("--") and word[:2] in options
        option = options.get(word[:2] if short else flag)
        if option is None or not word.startswith("-"):
            loose.append(index)
        elif not option.is_flag:
            if equals and not short:
                yield ValuePlace(name=str(option.name), index=index, start=len(flag) + 1)
            elif short and len(word) > 2:
                yield ValuePlace(name=str(option.name), index=index, start=2)
            else:
                index += 1
                yield ValuePlace(name=str(option.name), index=index, start=0)
        index += 1
    yield from _argument_places(command, loose)


def _argument_places(
    command: TyperCommand | TyperGroup, loose: Sequence[int]
) -> Iterator[ValuePlace]:
    """Yield the places of arguments: one word each, and one that takes all that is left."""
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    left = list(loose)
    for number, argument in enumerate(arguments):
        later = sum(one.nargs for one in arguments[number + 1 :] if one.nargs > 0)
        count = argument.nargs if argument.nargs > 0 else max(0, len(left) - later)
        for index in left[:count]:
            yield ValuePlace(name=str(argument.name), index=index, start=0)
        left = left[count:]
