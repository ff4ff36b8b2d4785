"""Options that each set one field of a run's settings.

A run's settings are nested dataclasses of another package, with more fields than a command has
options. The type, default and help of an option are those of the field, so they are written once.
Fields without an option of their own are reached by `--set`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import typer
from typer.models import OptionInfo

from commands.options.field_docs import field_docs
from commands.options.path_kind import PathKind
from commands.options.set_fields import FieldPlace, field_at
from commands.options.typer_types import annotated, typer_type

#: Path of a field -> the value that the user gave for it.
Changes = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class FieldOption:
    """An option for one field of a run's settings.

    Attributes:
        flag: the option, as `--folds`.
        path: the field that it sets, as `folds.folds`.
        panel: heading of the option in `--help`.
        metavar: word for its value in `--help`.
        default: default that `--help` shows, where it is not the field's own value.
        text: help in place of the field's documentation.
        more: a sentence that `--help` adds to it.
        single: whether a truth value has no `--no-` form.
        required: whether the option or `--like` must be given.
        least: least value of a number.
        complete: function that completes the value in a shell.
        value_type: type as which the value is read, where it is not the field's.
        path_kind: kind of the path that it names, if it names one.
        commas: whether one value may be several, joined by commas.
    """

    flag: str
    path: str
    panel: str | None = None
    metavar: str | None = None
    default: object = None
    text: str = ""
    more: str = ""
    single: bool = False
    required: bool = False
    least: float | None = None
    complete: Callable[[typer.Context, str], list[str]] | None = None
    value_type: object = None
    path_kind: PathKind | None = None
    commas: bool = False

    @property
    def parameter_name(self) -> str:
        """Return the name of the parameter that receives the option's value."""
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class FieldOptions:
    """The options of a command that set fields of a run's settings; marks a field `Changes`.

    Attributes:
        template: settings with the types and default values of the options.
        options: the options, in the order of `--help`.
    """

    template: object
    options: Sequence[FieldOption]

    def parameters(self) -> Iterator[inspect.Parameter]:
        """Yield a parameter, as typer reads it, for each option."""
        for option in self.options:
            field = field_at(self.template, option.path)
            default = option.default or field.value
            default = None if option.required or default == () else default
            field_type = option.value_type or field.type
            value_type = typer_type(field_type, optional=default is None)
            if default is None:
                value_type = value_type | None
            yield inspect.Parameter(
                option.parameter_name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=annotated(value_type, _option_info(option, field)),
                default=default,
            )

    def changes(
        self, parsed_options: Mapping[str, object], option_names: frozenset[str]
    ) -> Changes:
        """Return the fields that the user gave, by path."""
        changes: dict[str, object] = {}
        for option in self.options:
            if option.parameter_name in option_names:
                setting = parsed_options[option.parameter_name]
                if option.commas and isinstance(setting, list):
                    setting = [part for text in setting for part in text.split(",")]
                changes[option.path] = tuple(setting) if isinstance(setting, list) else setting
        return changes


def _option_info(option: FieldOption, field: FieldPlace) -> OptionInfo:
    text = option.text or _help_text(field_docs(field.owner)[field.name])
    needed = "Required, unless --like gives it." if option.required else ""
    flags = [option.flag] if option.single or field.type is not bool else []
    info: OptionInfo = typer.Option(
        *flags,
        metavar=option.metavar,
        min=option.least,
        autocompletion=option.complete,
        help=" ".join(filter(None, [text, option.more, needed])),
        rich_help_panel=option.panel,
    )
    return info


def _help_text(documentation: str) -> str:
    """Return a field's documentation in the words of a command line, where None is not given.

    >>> _help_text("Version of the lake; the newest if None.")
    'Version of the lake; the newest if not given.'
    """
    text = documentation.replace("`", "").replace("if None", "if not given")
    return text.replace(". None for ", ". Not given: ").replace("None for ", "not given: ")
