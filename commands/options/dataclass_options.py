"""Frozen dataclasses as the options of a command.

Each field is an option with the field's type and default; its help is its entry under
`Attributes:` in the docstring of the class. `Annotated[T, typer.Option("--name", metavar=...)]`
gives what a field alone cannot, `Annotated[T, typer.Argument(...)]` makes it positional. A field
with a dataclass type is a group: its fields become options of the same command, under
the heading `PANEL` of the group; a field marked with `FieldOptions` holds the options that set
fields of a run's settings. A command is a function of the finished dataclass; if that has a field
`quiet` which is set, the command shows no progress.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from cluster.progress import quiet_progress
from commands.options.failure_report import reported_failure
from commands.options.field_docs import field_docs
from commands.options.field_options import FieldOptions
from commands.options.printing import short_answers
from commands.options.quick_start import starting_without_pandas
from commands.options.typer_types import annotated, typer_type

Options = TypeVar("Options")
Command = TypeVar("Command", bound=Callable[..., None])


def command(
    app: typer.Typer,
    name: str,
    *,
    without_pandas: bool = False,
    **settings: Any,  # noqa: ANN401
) -> Callable[[Command], Command]:
    """Register a function of an options dataclass as a command.

    Args:
        app: the group that gets the command.
        name: the command's name.
        without_pandas: whether the command starts without pandas, which halves its start: for
            commands that read a few tables and call nothing that uses pandas.
        **settings: further arguments of `typer.Typer.command`.

    Returns:
        A decorator of a function whose one parameter, `options`, is annotated with the dataclass.
    """

    def register(function: Command) -> Command:
        started = starting_without_pandas(function) if without_pandas else function
        app.command(name, **settings)(as_callback(started, name))
        return function

    return register


def as_callback(function: Callable[..., None], name: str = "") -> Callable[..., None]:
    """Return a function with a parameter for each option, which builds the dataclass and calls.

    Args:
        function: the command, of one parameter `options`.
        name: the command's name, for the report of `--on-failure`.
    """
    hints = get_type_hints(function)
    options_type = hints["options"]

    def callback(context: typer.Context, **parsed_options: object) -> None:
        options = build_options(options_type, parsed_options, command_line_names(context))
        quiet = quiet_progress() if getattr(options, "quiet", False) else nullcontext()
        with quiet, short_answers(options), reported_failure(name, options):
            function(options)

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = inspect.Signature([context, *option_parameters(options_type)])
    callback.__dict__["__signature__"] = signature
    callback.__dict__["options_type"] = options_type
    callback.__doc__, callback.__name__ = function.__doc__, function.__name__
    return callback


def command_line_names(context: typer.Context) -> frozenset[str]:
    """Return the names of the options on the command line."""
    return frozenset(
        name
        for name in context.params
        if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    )


def option_parameters(options_type: type[object]) -> Iterator[inspect.Parameter]:
    """Yield a parameter, as typer reads it, for each option of a dataclass and of its groups.

    Raises:
        TypeError: a field has no entry under `Attributes:` and no help of its own.
    """
    hints = get_type_hints(options_type, include_extras=True)
    docs = field_docs(options_type)
    for field in fields(cast("Any", options_type)):
        if field_options := _field_options(hints[field.name]):
            yield from field_options.parameters()
            continue
        field_type, info = _type_and_marker(hints[field.name])
        if is_dataclass(field_type):
            yield from option_parameters(cast("type[object]", field_type))
            continue
        info.help = info.help or docs.get(field.name)
        if not info.help:
            msg = f"field '{field.name}' of {options_type.__name__} has no entry under Attributes:"
            raise TypeError(msg)
        info.rich_help_panel = info.rich_help_panel or getattr(options_type, "PANEL", None)
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotated(typer_type(field_type, optional=not field.default), info),
            default=_default(field),
        )


def build_options(
    options_type: type[Options], parsed_options: Mapping[str, object], option_names: frozenset[str]
) -> Options:
    """Return the dataclass, groups included, with the values that typer has parsed.

    Args:
        options_type: the dataclass.
        parsed_options: value of each option, by the name of its field.
        option_names: names of the options on the command line.
    """
    hints = get_type_hints(options_type, include_extras=True)
    arguments: dict[str, object] = {}
    for field in fields(cast("Any", options_type)):
        field_type, _ = _type_and_marker(hints[field.name])
        if field_options := _field_options(hints[field.name]):
            arguments[field.name] = field_options.changes(parsed_options, option_names)
        elif is_dataclass(field_type):
            group = cast("type[object]", field_type)
            arguments[field.name] = build_options(group, parsed_options, option_names)
        elif get_origin(field_type) is tuple:
            arguments[field.name] = tuple(cast("list[object]", parsed_options[field.name]) or ())
        else:
            arguments[field.name] = parsed_options[field.name]
    return options_type(**arguments)


def _field_options(annotation: object) -> FieldOptions | None:
    """Return the options of a run's settings that a field holds, or None."""
    extras = get_args(annotation) if get_origin(annotation) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, FieldOptions)), None)


def _type_and_marker(annotation: object) -> tuple[object, OptionInfo | ArgumentInfo]:
    """Return the type of a field, and a copy of its typer marker, or a new one."""
    if get_origin(annotation) is not Annotated:
        return annotation, cast("OptionInfo", typer.Option())
    field_type, *extras = get_args(annotation)
    markers = [extra for extra in extras if isinstance(extra, (OptionInfo, ArgumentInfo))]
    marker = markers[0] if markers else cast("OptionInfo", typer.Option())
    return field_type, copy(marker)


def _default(field: "Field[Any]") -> object:
    if field.default is MISSING:
        return inspect.Parameter.empty
    return None if field.default == () else field.default
